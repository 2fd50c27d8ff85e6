"""What somebody who misspelt a name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """``"; did you mean 'demo'?"`` with the known name that is most like it; empty if none is.

    Of names with dots the last part may have been meant, as in ``threshold``.
    """
    last = [k for k in known if "." in k and k.rpartition(".")[2] == name]
    found = last[:1] or difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean {found[0]!r}?" if found else ""
