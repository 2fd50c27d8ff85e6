"""What a run found, for people (text, Markdown) and for machines (JSON)."""

from __future__ import annotations

from dkn_engine.files.plain_json import plain
from dkn_engine.report.files import write_summary
from dkn_engine.report.records import fact_record
from dkn_engine.report.render import render_markdown, render_report
from dkn_engine.report.summary import (
    DropSummary,
    FamilySummary,
    RelationSummary,
    Summary,
    summarize,
)
from dkn_engine.statistics.intervals import Estimate, mean_estimate, wilson_share

__all__ = [
    "DropSummary",
    "Estimate",
    "FamilySummary",
    "RelationSummary",
    "Summary",
    "fact_record",
    "mean_estimate",
    "plain",
    "render_markdown",
    "render_report",
    "summarize",
    "wilson_share",
    "write_summary",
]
