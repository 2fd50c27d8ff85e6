"""The page of decoders, written by what the engine makes of each of them.

``python -m tests.support.family_page`` writes it anew: a minute or two.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import transformers

from tests.support.families import families
from tests.support.family_outcomes import Outcome, outcome

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- written by tests/support/family_page.py -->", "<!-- end -->"
_TITLES = {
    "swept": "Swept, a row a path point; neurons are the inputs of",
    "in blocks": "In blocks; neurons are the inputs of",
    "by full forward passes": "By full forward passes; neurons are the inputs of",
    "refused": "Refused, in these words",
    "not tried": "Not tried: the tiny model that was written for it does not run, for this reason",
}


def row(one: Outcome) -> str:
    words = one.words.replace("|", "\\|").replace("<", "&lt;")
    if one.how not in {"refused", "not tried"}:
        words = f"`{words}`"
    return f"| `{one.kind}` | `{one.model}` | {words} |"


def rendered(outcomes: Sequence[Outcome]) -> str:
    """Tables of all outcomes, those of one kind together."""
    counts = [(how, sum(o.how == how for o in outcomes)) for how in _TITLES]
    parts = [
        f"Of the {len(outcomes)} that transformers {transformers.__version__} knows, "
        + ", ".join(f"{n} {how}" for how, n in counts if n)
        + "."
    ]
    for how, title in _TITLES.items():
        rows = [row(o) for o in outcomes if o.how == how]
        if rows:
            parts.append("\n".join([f"| kind | class | {title} |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def rows_between(begin: str, end: str) -> list[tuple[str, str]]:
    """Kinds and their rows, of the part of the page between two lines."""
    part = PAGE.read_text("utf-8").split(begin)[1].split(end)[0]
    return re.findall(r"^(?=\| `(\S+)` )(.*)$", part, re.M)


def write_between(begin: str, end: str, kinds: Iterable[str], of: Callable[[str], Outcome]) -> None:
    """Write that part anew, by the outcome ``of`` every kind."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    before, rest = PAGE.read_text("utf-8").split(begin)
    page = (
        f"{before}{begin}\n\n{rendered([of(kind) for kind in kinds])}\n\n{end}{rest.split(end)[1]}"
    )
    PAGE.write_text(page, encoding="utf-8", newline="")


def rows_of_the_page() -> list[tuple[str, str]]:
    """Kinds and their rows."""
    return rows_between(BEGIN, END)


if __name__ == "__main__":
    write_between(BEGIN, END, families(), outcome)
