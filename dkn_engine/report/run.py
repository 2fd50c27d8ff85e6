"""The page of a run: headline figures beside their controls, then a card for every fact."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dkn_engine.report.cards import KINDS, kind_of, render_card
from dkn_engine.report.content import HtmlTable, Picture, Section, Tile
from dkn_engine.report.html.markup import Markup, escape, join
from dkn_engine.report.html.page import render_page
from dkn_engine.report.reading import DEFINITIONS, DISPUTED, caveats, versions_text
from dkn_engine.report.rows import drop_rows
from dkn_engine.report.summary import Summary
from dkn_engine.report.table import STATUS_WORDS
from dkn_engine.report.verdicts import verdict_sentences, verdict_table, verdicts
from dkn_engine.statistics.intervals import FEWEST, Estimate
from dkn_engine.statistics.words import DASH, interval, number
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from dkn_engine.statistics.table import Comparison

TITLE = "Degenerate knowledge neurons"
CARDS = 200


def render_run(
    results: Sequence[FactResult],
    summary: Summary,
    *,
    manifest: Mapping[str, Any] | None = None,
    problems: Sequence[Mapping[str, Any]] = (),
    pictures: Mapping[str, Picture] | None = None,
    fact_pictures: Mapping[int, Sequence[Picture]] | None = None,
    notes: Sequence[str] = (),
    cards: int = CARDS,
) -> str:
    """The page as HTML.

    Args:
        results: all results, in the order of the facts.
        summary: of those results.
        manifest: of the run directory; model, configuration and versions are quoted from it.
        problems: facts that the loader left out (``file``, ``line``, ``id``, ``reason``).
        pictures: ``drops``, ``neurons`` and ``overlap``, those that were drawn.
        fact_pictures: figures by the fact's place in ``results``.
        notes: said at the start, such as why there are no figures.
        cards: most cards; the other facts are counted, and it is said where they are.
    """
    drawn = pictures or {}
    comparisons = verdicts(results)
    said = [*verdict_sentences(comparisons), *notes]
    if manifest is not None and manifest["facts"]["n"] > summary.n_facts:
        total = manifest["facts"]["n"]
        said.append(f"{summary.n_facts:,} of the {total:,} facts of the run are there so far.")
    sections = [_glance(summary, said)]
    if summary.candidates.n:
        sections.append(_drops(summary, comparisons, [drawn[n] for n in ("drops",) if n in drawn]))
    where = [drawn[name] for name in ("neurons", "overlap") if name in drawn]
    if where:
        sections.append(Section("Where the neurons lie", pictures=where))
    if len(summary.by_relation) > 1:
        sections.append(Section("Relations", tables=[_relations(summary)]))
    sections.append(_facts(results, fact_pictures or {}, cards))
    if problems:
        sections.append(_left_out(problems))
    if manifest is not None:
        sections.append(_made(summary, manifest))
    return render_page(TITLE, _subtitle(summary, manifest), sections)


def _subtitle(summary: Summary, manifest: Mapping[str, Any] | None) -> str:
    facts = f"{summary.n_facts:,} {'fact' if summary.n_facts == 1 else 'facts'}"
    if manifest is None:
        return facts
    return f"{manifest['model']['name']} · {facts} · {str(manifest['created'])[:10]}"


def _glance(summary: Summary, notes: Sequence[str]) -> Section:
    counts = ", ".join(
        f"{summary.by_status[status]:,} {words}"
        for status, words in STATUS_WORDS.items()
        if summary.by_status.get(status)
    )
    if summary.n_left_out:
        counts += f"; {summary.n_left_out:,} left out by the loader"
    tiles = [Tile("Facts the model knows", f"{summary.n_known:,} of {summary.n_facts:,}", counts)]
    if summary.n_known:
        tiles += [
            _share("Known facts with a DKN", summary.n_degenerate, summary.degenerate),
            Tile("Knowledge neurons a known fact", *_mean(summary.neurons, 1)),
            Tile("Candidate components a known fact", *_mean(summary.components, 1)),
        ]
    if summary.dkn.n:
        tiles.append(Tile("Full drop, DKN suppressed", *_mean(summary.dkn.drops.full_drop)))
        if "random" in summary.dkn.controls:
            control = summary.dkn.controls["random"].full_drop
            tiles.append(Tile("Full drop, random neurons", *_mean(control)))
    text = [DISPUTED, *notes]
    if summary.n_known and not summary.n_degenerate:
        text.insert(0, "No fact has a DKN: no degenerate family of components was found.")
    if summary.n_facts and not summary.n_known:
        text.insert(0, "The model knows none of these facts, so there is nothing to say of DKNs.")
    return Section("At a glance", text, tiles)


def _share(label: str, hits: int, share: Estimate) -> Tile:
    return Tile(
        label,
        f"{share.mean:.0%}",
        f"{hits:,} of {share.n:,}, 95% interval {share.ci_low:.0%} to {share.ci_high:.0%}",
    )


def _mean(estimate: Estimate, digits: int = 2) -> tuple[str, str]:
    """Value and note of a tile."""
    value, _, ends = interval(estimate, digits).partition(" ")
    note = f"95% interval {ends.strip('[]').replace(', ', ' to ')}" if ends else "no interval"
    if estimate.n < FEWEST:
        note = "too few facts for an interval"
    return value, f"{note}, n = {estimate.n:,}"


def _drops(
    summary: Summary, comparisons: Sequence[Comparison], pictures: Sequence[Picture]
) -> Section:
    rows = list(drop_rows(summary))
    table = HtmlTable(
        (
            "suppressed",
            "facts",
            "partial drop",
            "full drop",
            "redundancy (median)",
            "excess (median)",
        ),
        [
            (
                label,
                n,
                interval(row.partial_drop),
                interval(row.full_drop),
                number(row.redundancy.median),
                number(row.excess.median),
            )
            for label, _, n, row in rows
        ],
        "Mean over facts with 95% bootstrap interval; the rows set in are controls of the family "
        "above them",
        controls=[i for i, (_, is_control, _, _) in enumerate(rows) if is_control],
    )
    tables = [table, verdict_table(comparisons)] if comparisons else [table]
    text = [*DEFINITIONS, *caveats(summary)]
    if not comparisons:
        text.append("No controls were measured, so these drops cannot be told from chance.")
    return Section("Drops and controls", text, pictures=pictures, tables=tables)


def _relations(summary: Summary) -> HtmlTable:
    return HtmlTable(
        ("relation", "facts", "known", "with a DKN", "neurons", "partial drop", "full drop"),
        [
            (
                row.relation or "(none)",
                row.n_facts,
                row.n_known,
                row.n_degenerate,
                *(number(v) for v in (row.neurons, row.partial_drop, row.full_drop)),
            )
            for row in summary.by_relation
        ],
        "Neurons: mean over known facts; drops: mean over facts with a DKN",
    )


def _facts(
    results: Sequence[FactResult], pictures: Mapping[int, Sequence[Picture]], cards: int
) -> Section:
    shown = results[:cards]
    lines = [_filter(shown)] if len(shown) > 1 else []
    lines += [render_card(r, i + 1, pictures.get(i, ())) for i, r in enumerate(shown)]
    more = len(results) - len(shown)
    if more:
        lines.append(
            f'<p class="note">{more:,} more facts have no card here. They are in '
            "<code>facts-*.parquet</code> and the other tables of the run directory; "
            f"<code>dkn-engine report --cards {len(results)}</code> gives each a card.</p>"
        )
    if not results:
        lines.append("<p>No facts.</p>")
    text = ["Open a card for its components, every control, and the subsets suppressed."]
    if more:
        text.append(f"The first {len(shown):,} of {len(results):,} facts have a card.")
    return Section("Facts", text if results else [], body=join(lines))


def _filter(results: Sequence[FactResult]) -> str:
    """Hidden until the script shows it: without the script it would do nothing."""
    there = {kind_of(result) for result in results}
    options = "".join(
        f'<option value="{kind}">{escape(words)}</option>'
        for kind, words in KINDS.items()
        if kind in there
    )
    return (
        '<div class="filter" role="search" hidden>\n'
        '<label>Find a fact <input type="search" autocomplete="off" '
        'placeholder="prompt, answer, relation or id"></label>\n'
        f'<label>Show <select><option value="">all</option>{options}</select></label>\n'
        '<button type="button" value="open">Open all</button>\n'
        '<button type="button" value="close">Close all</button>\n'
        '<output aria-live="polite"></output>\n</div>'
    )


def _left_out(problems: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (p.get("id") or DASH, p.get("file"), _line(p.get("line")), p.get("reason"))
        for p in problems
    ]
    table = HtmlTable(
        ("fact", "file", "line", "reason"),
        rows,
    )
    return Section("Left out by the loader", tables=[table])


def _line(line: object) -> str | None:
    return None if line is None else str(line)


def _made(summary: Summary, manifest: Mapping[str, Any]) -> Section:
    rows: list[tuple[str, object]] = [
        ("Model", f"{manifest['model']['name']} (fingerprint {manifest['model']['fingerprint']})"),
        ("Started", manifest["created"]),
        ("Configuration", manifest["config_hash"]),
        ("Seed", str(manifest["config"].get("seed", DASH))),
        ("Versions", versions_text(manifest)),
    ]
    if manifest.get("mask_token") is not None:
        rows.append(("Baseline", f"prompt tokens masked by {manifest['mask_token']}"))
    if math.isfinite(summary.points_per_layer):
        rows.append(
            (
                "Attribution",
                f"{summary.points_per_layer:.1f} points a layer; convergence delta "
                f"{summary.mean_abs_convergence_delta:.0e} mean, "
                f"{summary.max_abs_convergence_delta:.0e} largest; "
                f"{summary.n_not_converged:,} facts not converged",
            )
        )
    if summary.seconds:
        rows.append(("Time", f"{summary.seconds:,.1f} s"))
    config = html.escape(json.dumps(manifest["config"], indent=2))
    body = f"<details>\n<summary>All settings</summary>\n<pre>{config}</pre>\n</details>"
    table = HtmlTable(("what", "value"), rows)
    return Section("How this run was made", tables=[table], body=Markup(body))
