"""A run's report as text and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dkn_engine.report.answers import WORDS
from dkn_engine.report.content import Block, Paragraph, Points, Section, Table
from dkn_engine.report.markdown import to_markdown
from dkn_engine.report.reading import DEFINITIONS, FULL_DROPS
from dkn_engine.report.run import FACTS, facts_table, run_report
from dkn_engine.report.summary import Summary
from dkn_engine.report.text import to_text
from dkn_engine.statistics.table import TOO_FEW
from dkn_engine.types import FactResult

MOST_ROWS = 1000  # of a file's table of facts
_MOST_RELATIONS = 20  # in a terminal


def render_report(
    results: Sequence[FactResult],
    summary: Summary,
    *,
    limit: int | None = 40,
    width: int | None = None,
) -> str:
    """The report for a terminal, facts first, ending in a newline.

    Args:
        results: in the order of the rows; the first ``limit`` are enough.
        summary: of all of them.
        limit: most rows; None for all.
        width: most columns; None: the terminal's, or 80 where there is none.
    """
    facts = facts_table(results, limit, summary.n_facts)
    report = run_report(summary, facts, most_relations=_MOST_RELATIONS)
    sections = sorted(report.sections, key=lambda s: s.title != FACTS)
    return to_text([_without_definitions(section) for section in sections], width=width)


def _without_definitions(section: Section) -> Section:
    """A section for a terminal, where those who look again and again need no definitions."""
    kept = [b for b in section.blocks if not _is_definition(b) and not _compares_too_few(b)]
    if any(isinstance(b, Paragraph) and b.text in DEFINITIONS for b in section.blocks):
        kept.append(Paragraph("summary.md says how to read these figures.", note=True))
    return Section(section.title, kept)


def _is_definition(block: Block) -> bool:
    if isinstance(block, Points):
        return block.texts is WORDS
    return isinstance(block, Paragraph) and block.text in DEFINITIONS


def _compares_too_few(block: Block) -> bool:
    """Whether it is a table that only says, row by row, that there are too few facts."""
    if not isinstance(block, Table) or block.caption != FULL_DROPS:
        return False
    return all(row[-1] == TOO_FEW for row in block.rows)


def render_markdown(
    results: Sequence[FactResult],
    summary: Summary,
    *,
    manifest: Mapping[str, Any] | None = None,
    problems: Sequence[Mapping[str, Any]] = (),
    limit: int | None = MOST_ROWS,
) -> str:
    """The report as Markdown; see :func:`run_report` for what it quotes.

    Args:
        results: in the order of the rows; the first ``limit`` are enough.
        summary, manifest, problems: of the run.
        limit: most rows of the table of facts; None for all.
    """
    facts = facts_table(results, limit, summary.n_facts)
    return to_markdown(run_report(summary, facts, manifest=manifest, problems=problems))
