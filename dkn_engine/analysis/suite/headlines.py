"""Which figures of an analysis are drawn, and the bars that are drawn of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dkn_engine.statistics.table import Row, Table
from dkn_engine.statistics.words import words

NONE = ""


@dataclass(frozen=True)
class Headline:
    """Rows of one figure that are drawn as bars.

    Attributes:
        figure: whose.
        axis: what the bars show, with its unit.
        keep: values of conditions that rows must have; several are separated by ``|``, and
            :data:`NONE` stands for rows without the condition.
        groups: whose rows; empty for all.
        tested: the figure by which groups are compared, if it is another one.
    """

    figure: str
    axis: str
    keep: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    tested: str = ""

    def rows(self, table: Table) -> list[Row]:
        """The rows, in the order of the table."""
        return [
            row
            for row, conditions in ((r, dict(r.conditions)) for r in table.rows)
            if row.figure == self.figure
            and (not self.groups or row.group in self.groups)
            and all(conditions.get(k, NONE) in v.split("|") for k, v in self.keep.items())
        ]

    def labels(self, rows: Sequence[Row]) -> list[str]:
        """A label for each row: its group, and the conditions in which the rows differ."""
        names = dict.fromkeys(name for r in rows for name, _ in r.conditions)
        differ = [n for n in names if len({dict(r.conditions).get(n) for r in rows}) > 1]
        found = []
        for r in rows:
            here = [words(dict(r.conditions)[n]) for n in differ if n in dict(r.conditions)]
            found.append(", ".join([*here, words(r.group)]))
        return found


def headline_rows(table: Table) -> tuple[Row, ...]:
    """The rows that are drawn, for where there is no room for all."""
    every = [row for headline in HEADLINES.get(table.analysis, ()) for row in headline.rows(table)]
    return tuple(dict.fromkeys(every)) or table.rows


HEADLINES: Mapping[str, tuple[Headline, ...]] = {
    "robustness": (
        Headline(
            "drop",
            "relative drop of the answer's probability when neurons are suppressed",
            {
                "action": "suppress",
                "value": "zero",
                "on": "answer",
                "query": "clean|perturbed|paraphrase|unrelated",
            },
            ("D", "N", "Rnd"),
            tested="log_drop",
        ),
        Headline(
            "recovered",
            "share of perturbed queries got wrong that come back, neurons enhanced",
            {"on": "answer|all", "query": "perturbed"},
        ),
    ),
    "fact_check": (
        Headline(
            "auroc",
            "AUROC of true against false statements; 0.5 is chance",
            {"query": "short", "facts": "with DKN"},
        ),
    ),
    "evolvability": (
        Headline(
            "greedy_match",
            "share of answers got right",
            {"query": "Q_new|Q_old|Q_au", "draw": NONE},
        ),
        Headline(
            "overlap",
            "share of the set that is among the neurons changed most",
            {"trained": "all", "changed": "top 0.01|top 0.05"},
        ),
    ),
    "complexity": (
        Headline("degenerate", "share of known facts with a DKN"),
        Headline("full_drop", "drop with all candidates suppressed", {"sets": "candidates"}),
    ),
    "sharing": (
        Headline(
            "shared",
            "share of a component's neurons that other facts have",
            {"matched": "D"},
        ),
    ),
    "complexity_of_models": (
        Headline("degenerate", "share of known facts with a DKN"),
        Headline("redundancy", "redundancy of all candidates, median", {"sets": "candidates"}),
    ),
}
