"""The comparison of clusterers as text, plain data and table rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from dkn_engine.analysis.experiments.clusterers.experiment import (
    FIGURES,
    LABELS,
    ClustererComparison,
    Difference,
    MethodSummary,
)
from dkn_engine.files.plain_json import plain
from dkn_engine.report.content import Block, Points, Section, Table, number, paragraphs
from dkn_engine.report.text import to_text
from dkn_engine.statistics.intervals import FEWEST, Estimate
from dkn_engine.statistics.words import DASH, interval
from dkn_engine.statistics.words import number as short

ROW_COLUMNS = (
    "method",
    "figure",
    "n",
    "mean",
    "ci_low",
    "ci_high",
    "median",
    "control",
    "larger_than_interval",
)


def render(comparison: ClustererComparison, *, width: int | None = None) -> str:
    """Tables and what they say in words for a terminal, ending in a newline.

    Args:
        comparison: to be shown.
        width: most columns; None: the terminal's, or 80 where there is none.
    """
    left_out = f", {comparison.n_unusable} cannot be used" if comparison.n_unusable else ""
    facts = (
        f"{comparison.n_facts} facts, of which the model knows {comparison.n_known}{left_out}; "
        "means [95% interval over facts]."
    )
    tables = [_clusters(comparison.methods), _drops(comparison.methods)]
    blocks: list[Block] = [*paragraphs([facts]), *tables, Points(sentences(comparison))]
    return to_text([Section("", blocks)], width=width)


def _clusters(methods: Sequence[MethodSummary]) -> Table:
    several = number("facts with two or more components", ">=2 comp.")
    rows = [
        (
            LABELS[m.method],
            m.n_with_two,
            interval(m.degenerate),
            interval(m.components, 1),
            interval(m.neurons, 0),
        )
        for m in methods
    ]
    return Table(("clusterer", several, "degenerate", "components", "neurons"), rows)


def _drops(methods: Sequence[MethodSummary]) -> Table:
    rows = [
        (
            LABELS[m.method],
            m.full_drop.n,
            interval(m.partial_drop),
            interval(m.full_drop),
            m.dkn_full_drop.n,
            *(DASH if not e.n else short(e.mean) for e in (m.dkn_partial_drop, m.dkn_full_drop)),
        )
        for m in methods
    ]
    columns = (
        "clusterer",
        number("facts", "n"),
        "partial drop",
        "full drop",
        number("DKNs"),
        number("their partial drop"),
        number("their full drop"),
    )
    caption = "Mean drop when some (partial) and when all (full) candidates are suppressed"
    return Table(columns, rows, f"{caption}; on the right, of DKNs alone")


def sentences(comparison: ClustererComparison) -> list[str]:
    """What differs from NTC by more than its interval, clusterer by clusterer."""
    found = []
    for method in dict.fromkeys(d.method for d in comparison.differences):
        mine = [d for d in comparison.differences if d.method == method]
        parts = [
            _listed("larger than its interval", [d for d in mine if d.larger_than_interval]),
            _listed(
                "not larger than its interval",
                [d for d in mine if d.enough and not d.larger_than_interval],
            ),
            _listed(f"fewer than {FEWEST} facts to compare", [d for d in mine if not d.enough]),
        ]
        text = "; ".join(p for p in parts if p)
        found.append(f"{LABELS[method]} minus NTC: {text}.")
    if found:
        n = len(comparison.differences)
        found.append(
            f"Differences are paired over facts. Of {n} of them about {0.05 * n:.1f} would be "
            "larger than their 95% interval by chance."
        )
    if any(m.method == "pairs" for m in comparison.methods):
        found.append(
            "AMIG pairs are chosen by the filter's own thresholds among all pairs of neurons, so a "
            "fact with a pair passes it by construction."
        )
    return found


def _listed(head: str, differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    texts = [
        FIGURES[d.figure] + (f" {_signed(d.estimate)}" if d.estimate.n else "") for d in differences
    ]
    return f"{head}: {', '.join(texts)}"


def _signed(estimate: Estimate) -> str:
    text = interval(estimate)
    return text if text.startswith("-") else f"+{text}"


def document(comparison: ClustererComparison) -> dict[str, Any]:
    """Plain data for JSON; what is not finite is None."""
    data: dict[str, Any] = plain(comparison)
    data["sentences"] = sentences(comparison)
    return data


def rows(comparison: ClustererComparison) -> Iterator[tuple[object, ...]]:
    """One row a clusterer and figure (columns: :data:`ROW_COLUMNS`), then the differences."""
    for m in comparison.methods:
        two = m.n_with_two / m.n_facts
        yield (m.method, "two_or_more", m.n_facts, f"{two:.4f}", "", "", "", m.control, "")
        for field in dataclasses.fields(m):
            if isinstance(shown := getattr(m, field.name), Estimate):
                yield (m.method, field.name, *_values(shown), m.control, "")
    for d in comparison.differences:
        figure = f"{d.figure}_minus_ntc"
        yield (
            d.method,
            figure,
            *_values(d.estimate),
            d.method == "random",
            d.larger_than_interval if d.enough else "",
        )


def _values(e: Estimate) -> tuple[object, ...]:
    return (e.n, *(f"{v:.4f}" for v in (e.mean, e.ci_low, e.ci_high, e.median)))
