"""Tables as CSV with lines that end in a line feed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(head: Sequence[str], body: Iterable[Iterable[object]]) -> str:
    """Rows under their columns' names.

    Raises:
        ValueError: two columns have one name.
    """
    if len(set(head)) < len(head):
        raise ValueError(f"columns must not be named as other columns are; got {list(head)}")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(body)
    return text.getvalue()
