"""The rows of a run's table of drops: each family, below it its controls."""

from __future__ import annotations

from collections.abc import Iterator

from dkn_engine.report.columns import CONTROL_WORDS
from dkn_engine.report.summary import DropSummary, Summary


def drop_rows(summary: Summary) -> Iterator[tuple[str, bool, int, DropSummary]]:
    """Label, whether it is a control, number of facts, and drops of each row."""
    groups = {
        "DKN families": summary.dkn,
        "Candidates, no DKN": summary.no_dkn,
        "All candidates": summary.candidates,
    }
    for label, group in groups.items():
        if group.n:
            yield label, False, group.n, group.drops
        for name, control in group.controls.items():
            yield CONTROL_WORDS[name], True, control.full_drop.n, control
