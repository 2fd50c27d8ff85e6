"""The plain-text report: at most 80 columns, one row a fact, then the summary."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from dkn_engine.report.reading import sentences
from dkn_engine.report.rows import drop_rows
from dkn_engine.report.summary import Summary
from dkn_engine.report.text import clean, fit, shorten, width
from dkn_engine.statistics.intervals import Estimate
from dkn_engine.statistics.words import DASH, interval, number
from dkn_engine.types import FactResult

COLUMNS = 80
STATUS_WORDS = {"ok": "known", "not_known": "not known", "skipped": "skipped", "error": "failed"}
_FACT, _ANSWER, _REASON = 35, 14, 37
_MOST_RELATIONS = 20


def render_report(
    results: Sequence[FactResult], summary: Summary, *, limit: int | None = 40
) -> str:
    """The table and the summary below it, ending in a newline.

    Args:
        results: in the order of the rows; the first ``limit`` are enough.
        summary: of all of them.
        limit: most rows; None for all.
    """
    return f"{render_table(results, limit=limit, total=summary.n_facts)}\n{render_summary(summary)}"


def render_table(
    results: Sequence[FactResult], *, limit: int | None = 40, total: int | None = None
) -> str:
    """One row a fact: prompt and answer, probability, sizes, drops.

    Args:
        results: in the order of the rows.
        limit: most rows; None for all.
        total: number of facts, if ``results`` are only the first of them.
    """
    if not results:
        return "No facts.\n"
    head = (
        f"{fit('Prompt → answer', _FACT)} {'p':>5} {'KNs':>5} {'comp.':>5}  "
        f"{fit('DKN', 9)}  partial → full"
    )
    shown = results if limit is None else results[:limit]
    lines = [head, "─" * COLUMNS, *map(_row, shown)]
    total = len(results) if total is None else total
    if len(shown) < total:
        lines.append(f"… and {total - len(shown):,} more facts")
    if any(r.status == "ok" and r.components and not r.is_degenerate for r in shown):
        lines.append("(In brackets: no DKN; drops of all candidate components.)")
    return "\n".join(lines) + "\n"


def _row(result: FactResult) -> str:
    label = fact_label(result, _FACT)
    if result.status != "ok":
        word = STATUS_WORDS[result.status]
        text = f"{word}: {result.reason}" if result.reason else word
        return f"{label} {number(result.probability):>5}  {shorten(clean(text), _REASON)}"
    return (
        f"{label} {number(result.probability):>5} {len(result.neurons):>5} "
        f"{len(result.components):>5}  {fit(dkn_sizes(result), 9)}  {drops(result):>14}"
    ).rstrip()


def fact_label(result: FactResult, columns: int) -> str:
    """Prompt and answer in exactly so many columns; a long prompt gives way to the answer."""
    answer = shorten(clean(result.answer), _ANSWER)
    if not result.prompt and not answer:
        return fit(result.fact_id, columns)
    return fit(f"{shorten(clean(result.prompt), columns - width(answer) - 3)} → {answer}", columns)


def dkn_sizes(result: FactResult, columns: int = 9) -> str:
    """Sizes of the DKN's components, "2+3"; "9×2–14" (number, smallest, largest) if too many."""
    sizes = [len(result.components[i].neurons) for i in result.dkn]
    if not sizes:
        return DASH
    text = "+".join(map(str, sizes))
    return text if len(text) <= columns else f"{len(sizes)}×{min(sizes)}–{max(sizes)}"


def drops(result: FactResult) -> str:
    """Partial and full drop; in brackets where they are of all candidates, not of a DKN."""
    if not result.components:
        return DASH
    text = f"{number(result.partial_drop)} → {number(result.full_drop)}"
    return text if result.is_degenerate else f"({text})"


def render_summary(summary: Summary) -> str:
    """Headline shares, drops beside their controls, relations, and how to read them."""
    blocks = ["\n".join(headlines(summary))]
    if summary.candidates.n:
        blocks.append("\n".join(_drop_lines(summary)))
    if len(summary.by_relation) > 1:
        blocks.append("\n".join(_relation_lines(summary)))
    if summary.n_facts:
        blocks.append("\n".join(textwrap.fill(s, COLUMNS - 1) for s in sentences(summary)))
    return "\n\n".join(blocks) + "\n"


def headlines(summary: Summary, where: str = "see summary.md") -> list[str]:
    """The figures that are not drops, one a line.

    Args:
        summary: of the facts.
        where: to find what the loader left out.
    """
    counts = ", ".join(
        f"{n:,} {STATUS_WORDS[s]}" for s, n in summary.by_status.items() if n or s == "ok"
    )
    left_out = f" ({summary.n_left_out:,} left out: {where})" if summary.n_left_out else ""
    lines = [f"{summary.n_facts:,} facts{left_out}: {counts}"]
    if summary.n_known:
        several = _share(summary.n_with_candidates, summary.with_candidates)
        lines += [
            f"Degenerate (have a DKN): {_share(summary.n_degenerate, summary.degenerate)}",
            f"Two or more components:  {several}",
            f"Knowledge neurons (KNs) a known fact: {interval(summary.neurons, 1)}",
            f"Candidate components a known fact: {interval(summary.components, 1)}",
        ]
    if math.isfinite(summary.points_per_layer):
        lines += [
            f"Attribution: {summary.points_per_layer:.1f} points a layer; convergence delta "
            f"{summary.mean_abs_convergence_delta:.0e} mean, "
            f"{summary.max_abs_convergence_delta:.0e} largest",
        ]
    if summary.n_not_converged:
        lines.append(f"Not converged to the tolerance: {summary.n_not_converged:,} facts")
    if summary.seconds:
        rate = summary.n_facts / summary.seconds
        lines.append(f"Time: {summary.seconds:,.1f} s, {rate:.3g} facts/s")
    return lines


def _share(hits: int, share: Estimate) -> str:
    return (
        f"{hits:,} of {share.n:,} known facts, {share.mean:.0%} "
        f"(95% interval {share.ci_low:.0%} to {share.ci_high:.0%})"
    )


def _drop_lines(summary: Summary) -> Iterator[str]:
    yield (
        f"{'Mean [95% interval]':<22}{'n':>5} {'partial drop':<20} {'full drop':<20}"
        f"{'red.*':>5}{'exc.*':>6}"
    )
    yield "─" * COLUMNS
    for label, is_control, n, row in drop_rows(summary):
        label = f"  {label}" if is_control else label
        yield (
            f"{label:<22}{n:>5} {interval(row.partial_drop):<20} {interval(row.full_drop):<20}"
            f"{number(row.redundancy.median):>5}{number(row.excess.median):>6}"
        )
    yield "* redundancy and excess: medians, since a few ratios of small numbers can"
    yield "  dominate a mean"


def _relation_lines(summary: Summary) -> Iterator[str]:
    yield f"{'Relation':<30}{'facts':>7}{'known':>7}{'DKN':>6}{'KNs':>8}  partial → full"
    yield "─" * COLUMNS
    for row in summary.by_relation[:_MOST_RELATIONS]:
        drop = f"{number(row.partial_drop)} → {number(row.full_drop)}"
        neurons = f"{row.neurons:.1f}" if math.isfinite(row.neurons) else DASH
        yield (
            f"{fit(row.relation or '(none)', 30)}{row.n_facts:>7}{row.n_known:>7}"
            f"{row.n_degenerate:>6}{neurons:>8}  {drop if row.n_degenerate else DASH:>14}"
        )
    more = len(summary.by_relation) - _MOST_RELATIONS
    if more > 0:
        yield f"… and {more:,} more relations"
