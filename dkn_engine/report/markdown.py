"""The same report as Markdown, for ``summary.md``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dkn_engine.report import table
from dkn_engine.report.reading import sentences, versions_text
from dkn_engine.report.rows import drop_rows
from dkn_engine.report.summary import Summary
from dkn_engine.report.text import clean
from dkn_engine.statistics.words import interval, number
from dkn_engine.types import FactResult

MOST_ROWS = 1000  # of the table of facts
_DROP_COLUMNS = ("mean [95% interval]", "n", "partial drop", "full drop")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|&~#])")


def render_markdown(
    results: Sequence[FactResult],
    summary: Summary,
    *,
    manifest: Mapping[str, Any] | None = None,
    problems: Sequence[Mapping[str, Any]] = (),
    limit: int | None = MOST_ROWS,
) -> str:
    """The report as Markdown.

    Args:
        results: in the order of the rows; the first ``limit`` are enough.
        summary: of all of them.
        manifest: of the run directory; model, configuration and versions are quoted from it.
        problems: facts that the loader left out (``file``, ``line``, ``id``, ``reason``).
        limit: most rows of the table of facts; None for all.
    """
    lines = ["# Degenerate knowledge neurons", ""]
    if manifest is not None:
        lines += [*_provenance(manifest), ""]
    lines += [f"- {' '.join(line.split())}" for line in table.headlines(summary, "listed below")]
    if summary.candidates.n:
        lines += ["", "## Drops and controls", "", *_drops(summary)]
    if summary.n_facts:
        lines += ["", *_paragraphs(sentences(summary))]
    if len(summary.by_relation) > 1:
        lines += ["", "## Relations", "", *_relations(summary)]
    if results:
        lines += ["", "## Facts", "", *_facts(results, limit, summary.n_facts)]
    if problems:
        lines += ["", "## Left out by the loader", "", *map(_problem, problems)]
    return "\n".join(lines) + "\n"


def escape(text: str | None) -> str:
    """Text as it stands, on one line, in a Markdown table."""
    return _SPECIAL.sub(r"\\\1", clean(text or ""))


def _provenance(manifest: Mapping[str, Any]) -> list[str]:
    model = manifest["model"]
    done = {"Model": f"{escape(model['name'])} (fingerprint `{model['fingerprint']}`)"}
    done["Configuration"] = f"`{manifest['config_hash']}`, in full in `manifest.json`"
    if manifest.get("mask_token") is not None:
        done["Baseline"] = f"prompt tokens masked by `{clean(manifest['mask_token'])}`"
    done["Started"] = manifest["created"]
    done["Versions"] = escape(versions_text(manifest))
    return [f"- {key}: {value}" for key, value in done.items()]


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return "\n\n".join(texts).split("\n")


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _drops(summary: Summary) -> list[str]:
    lines = [
        _line([*_DROP_COLUMNS, "redundancy (median)", "excess (median)"]),
        "|---|--:|---|---|--:|--:|",
    ]
    for label, is_control, n, row in drop_rows(summary):
        lines.append(
            _line(
                [
                    f"… {label}" if is_control else f"**{label}**",
                    n,
                    interval(row.partial_drop),
                    interval(row.full_drop),
                    number(row.redundancy.median),
                    number(row.excess.median),
                ]
            )
        )
    return lines


def _relations(summary: Summary) -> list[str]:
    lines = [
        _line(["relation", "facts", "known", "with DKN", "KNs", "partial drop", "full drop"]),
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in summary.by_relation:
        figures = [number(v) for v in (row.neurons, row.partial_drop, row.full_drop)]
        counts = [row.n_facts, row.n_known, row.n_degenerate]
        lines.append(_line([escape(row.relation) or "(none)", *counts, *figures]))
    return lines


def _facts(results: Sequence[FactResult], limit: int | None, total: int) -> list[str]:
    shown = results if limit is None else results[:limit]
    lines = [
        _line(["fact", "prompt → answer", "p", "KNs", "components", "DKN", "partial → full"]),
        "|---|---|--:|--:|--:|---|---|",
    ]
    for r in shown:
        label = f"{escape(r.prompt)} → {escape(r.answer)}" if r.prompt else ""
        cells = [escape(r.fact_id), label, number(r.probability)]
        if r.status == "ok":
            cells += [str(len(r.neurons)), str(len(r.components))]
            cells += [table.dkn_sizes(r, columns=40), table.drops(r)]
        else:
            cells += ["", "", table.STATUS_WORDS[r.status], escape(r.reason)]
        lines.append(_line(cells))
    if len(shown) < total:
        lines += ["", f"{total - len(shown):,} more facts are in `facts-*.parquet`."]
    lines += ["", "Drops in brackets are of all candidate components: the fact has no DKN."]
    return lines


def _problem(problem: Mapping[str, Any]) -> str:
    place = ":".join(str(problem[k]) for k in ("file", "line") if problem.get(k) is not None)
    name = f" {problem['id']}" if problem.get("id") else ""
    return f"- {escape(place + name)}: {escape(problem.get('reason'))}"
