"""What the report of a run says: headline figures, drops beside controls, relations, facts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dkn_engine.report.answers import WORDS, answers
from dkn_engine.report.comparisons import comparison_table
from dkn_engine.report.content import (
    Block,
    Column,
    Figure,
    Figures,
    Fold,
    Paragraph,
    Points,
    Report,
    Section,
    Table,
    Tile,
    Tiles,
    number,
    paragraphs,
)
from dkn_engine.report.family import NULL_WORDS
from dkn_engine.report.reading import (
    DEFINITIONS,
    DISPUTED,
    FULL_DROPS,
    caveats,
    versions_text,
)
from dkn_engine.report.summary import Summary, drop_rows
from dkn_engine.statistics.intervals import Estimate
from dkn_engine.statistics.words import DASH, interval, no_interval, share_interval
from dkn_engine.statistics.words import number as short
from dkn_engine.types import HOLDS_FULL, HOLDS_SINGLE, FactResult

TITLE = "Degenerate knowledge neurons"
FACTS = "Facts"
LEGEND = (
    "KNs: knowledge neurons, the located ones. DKN 3+4: two components of 3 and 4 of them. Partial "
    "→ full: the share of p that is lost with some, and with all, of the components suppressed."
)
STATUS_WORDS = {"ok": "known", "not_known": "not known", "skipped": "skipped", "error": "failed"}


def run_report(
    summary: Summary,
    facts: Section,
    *,
    manifest: Mapping[str, Any] | None = None,
    problems: Sequence[Mapping[str, Any]] = (),
    figures: Mapping[str, Figure] | None = None,
    shared: Table | None = None,
    notes: Sequence[str] = (),
    most_relations: int | None = None,
) -> Report:
    """The report of a run, whatever it is rendered as.

    Args:
        summary: of all results.
        facts: table (:func:`facts_table`) or cards (``cards.fact_cards``) of them.
        manifest: of the run directory; model, configuration and versions are quoted from it.
        problems: facts that the loader left out (``file``, ``line``, ``id``, ``reason``).
        figures: ``drops``, ``neurons`` and ``overlap``, those that were drawn.
        shared: neurons of several facts (``shared_neurons``).
        notes: said at the start, such as why there are no figures.
        most_relations: rows of their table; None for all.
    """
    drawn = figures or {}
    sections = [Section("At a glance", _glance(summary, manifest, notes))]
    if summary.n_facts:
        sections.append(Section("Drops and controls", _drops(summary, drawn)))
    where = [drawn[name] for name in ("neurons", "overlap") if name in drawn]
    if where or shared:
        blocks: list[Block] = [Figures(where)] if where else []
        blocks += [shared] if shared else []
        sections.append(Section("Where the neurons lie", blocks))
    if len(summary.by_relation) > 1:
        sections.append(Section("Relations", _relations(summary, most_relations)))
    sections.append(facts)
    if problems:
        sections.append(Section("Left out by the loader", [_left_out(problems)]))
    if manifest is not None:
        sections.append(Section("How this run was made", _made(manifest)))
    return Report(TITLE, _subtitle(summary, manifest), sections)


def facts_table(results: Sequence[FactResult], limit: int | None, total: int) -> Section:
    """One row a fact: prompt and answer, probability, sizes, drops.

    Args:
        results: in the order of the rows; the first ``limit`` are enough.
        limit: most rows; None for all.
        total: number of facts.
    """
    shown = results if limit is None else results[:limit]
    if not shown:
        return Section(FACTS, [Paragraph("No facts.")])
    # Two columns for those who have them: a terminal is narrow.
    held_out = any(result.holds is not None for result in shown)
    drawn = any(result.null_draws for result in shown)
    table = Table(
        (
            Column("prompt", least=10, one_line=True),
            Column("answer", least=10, one_line=True),
            number("p"),
            number("KNs"),
            number("components", "comp."),
            "DKN",
            *([Column("holds", least=5)] if held_out else []),
            *([number("p of its null", "null")] if drawn else []),
            Column("partial → full", least=14),
        ),
        [_fact(result, held_out, drawn) for result in shown],
    )
    notes = [LEGEND] if any(r.components for r in shown) else []
    if len(shown) < total:
        notes.append(f"… and {total - len(shown):,} more facts, which facts-*.parquet holds.")
    if any(r.status == "ok" and r.components and not r.is_degenerate for r in shown):
        notes.append("Drops in brackets are of all candidate components: the fact has no DKN.")
    more = ["Holds: a DKN that shows on held-out paraphrases, too."] * held_out
    more += ["Null: p-value against chance, the share of draws and itself that do as well."] * drawn
    notes += [" ".join(more)] if more else []
    return Section(FACTS, [table, *paragraphs(notes, note=True)])


def dkn_sizes(result: FactResult, columns: int = 9) -> str:
    """Sizes of the DKN's components, "2+3"; "9×2–14" (number, smallest, largest) if too many."""
    sizes = [len(result.components[i].neurons) for i in result.dkn]
    if not sizes:
        return DASH
    text = "+".join(map(str, sizes))
    return text if len(text) <= columns else f"{len(sizes)}×{min(sizes)}–{max(sizes)}"


def _fact(result: FactResult, held_out: bool, drawn: bool) -> tuple[object, ...]:
    start = (result.prompt or result.fact_id, result.answer, short(result.probability))
    more = [DASH if result.holds is None else "yes" if result.holds else "no"] * held_out
    more += [short(result.null_p)] * drawn
    if result.status != "ok":
        gap = (None,) * len(more)
        return (*start, None, None, STATUS_WORDS[result.status], *gap, result.reason)
    drops = DASH
    if result.components:
        drops = f"{short(result.partial_drop)} → {short(result.full_drop)}"
        drops = drops if result.is_degenerate else f"({drops})"
    sizes = len(result.neurons), len(result.components), dkn_sizes(result)
    return (*start, *sizes, *more, drops)


def _subtitle(summary: Summary, manifest: Mapping[str, Any] | None) -> str:
    facts = f"{summary.n_facts:,} {'fact' if summary.n_facts == 1 else 'facts'}"
    if manifest is None:
        return facts
    return f"{manifest['model']['name']} · {facts} · {str(manifest['created'])[:10]}"


def _glance(
    summary: Summary, manifest: Mapping[str, Any] | None, notes: Sequence[str]
) -> list[Block]:
    texts = [DISPUTED, *notes]
    if manifest is not None and manifest["facts"]["n"] > summary.n_facts:
        total = manifest["facts"]["n"]
        texts.append(f"{summary.n_facts:,} of the {total:,} facts of the run are there so far.")
    tiles = Tiles([*_counts(summary), *_means(summary), *_work(summary)])
    return [Points(answers(summary)), Points(WORDS), tiles, *paragraphs(texts)]


def _counts(summary: Summary) -> list[Tile]:
    counts = ", ".join(
        f"{summary.by_status[status]:,} {words}"
        for status, words in STATUS_WORDS.items()
        if summary.by_status.get(status)
    )
    if summary.n_left_out:
        counts += f"; {summary.n_left_out:,} left out by the loader, listed in summary.md"
    tiles = [Tile("Facts the model knows", f"{summary.n_known:,} of {summary.n_facts:,}", counts)]
    if summary.n_known:
        several = summary.n_with_candidates
        tiles += [
            _share("Known facts with a DKN", summary.n_degenerate, summary.degenerate),
            _share("Known facts with two or more components", several, summary.with_candidates),
            *_chance(summary),
            *_holding(summary),
        ]
    return tiles


def _chance(summary: Summary) -> list[Tile]:
    """How many DKNs chance explains, and how many it does not."""
    chance = summary.chance
    if chance is None:
        return []
    drawn = ", ".join(NULL_WORDS.get(name, name) for name in summary.nulls)
    beyond = f"found minus chance, a share of the facts: {interval(chance.beyond)}"
    tiles = [
        Tile(
            "DKNs that chance finds",
            f"{chance.expected:.1f}",
            f"{chance.found:,} found, in {chance.n:,} {'fact' if chance.n == 1 else 'facts'}; "
            f"{drawn}, up to {chance.draws:,} draws a fact; {beyond}",
        )
    ]
    label = f"DKNs beyond chance, FDR {chance.alpha:z.0%}"
    if chance.can_be_told:
        value, fewest = f"{chance.significant:,} of {chance.found:,}", f"{chance.needed:,}"
        needed = f"{fewest} or more must have it for any to count"
    else:
        value, fewest = DASH, f"{math.ceil(1 / chance.alpha) - 1}"
        needed = f"{fewest} or more are needed for any to count"
    floor = f"{chance.draws:,} draws give no p below {1 / (1 + chance.draws):.2g}"
    note = f"false discovery rate; {floor}: {needed}"
    return [*tiles, Tile(label, value, note)]


def _holding(summary: Summary) -> list[Tile]:
    """How many DKNs show on paraphrases that were not used for finding them."""
    if not summary.n_held_out:
        return []
    share = summary.holding
    note = (
        f"one component suppressed costs {HOLDS_SINGLE:.0%} at most on average, all cost "
        f"{HOLDS_FULL:.0%} or more; {share.mean:z.0%} of the {share.n:,} known facts with such "
        f"paraphrases, {share_interval(share)}"
    )
    value = f"{summary.n_holding:,} of {summary.n_held_out_dkn:,}"
    return [Tile("DKNs that hold on held-out paraphrases", value, note)]


def _means(summary: Summary) -> list[Tile]:
    if not summary.n_known:
        return []
    tiles = [
        _mean("Knowledge neurons (KNs) a known fact", summary.neurons, 1),
        _mean("Candidate components a known fact", summary.components, 1),
    ]
    if summary.dkn.n:
        tiles.append(_mean("Full drop, DKN suppressed", summary.dkn.drops.full_drop))
        if "random" in summary.dkn.controls:
            control = summary.dkn.controls["random"].full_drop
            tiles.append(_mean("Full drop, random neurons", control))
    return tiles


def _work(summary: Summary) -> list[Tile]:
    """What it took: points of the path, and seconds."""
    tiles = []
    if math.isfinite(summary.points_per_layer):
        note = "no convergence delta: scores of one gradient have no path"
        if math.isfinite(summary.mean_abs_convergence_delta):
            note = (
                f"convergence delta {summary.mean_abs_convergence_delta:.0e} mean, "
                f"{summary.max_abs_convergence_delta:.0e} largest"
            )
        if summary.n_not_converged:
            note += f"; {summary.n_not_converged:,} facts not converged to the tolerance"
        tiles.append(Tile("Path points a layer", f"{summary.points_per_layer:.1f}", note))
    if summary.seconds:
        rate = f"{summary.n_facts / summary.seconds:.3g} facts/s"
        tiles.append(Tile("Time", f"{summary.seconds:,.1f} s", rate))
    return tiles


def _share(label: str, hits: int, share: Estimate) -> Tile:
    return Tile(label, f"{share.mean:z.0%}", f"{hits:,} of {share.n:,}, {share_interval(share)}")


def _mean(label: str, estimate: Estimate, digits: int = 2) -> Tile:
    value, _, ends = interval(estimate, digits).partition(" ")
    note = f"95% interval {ends.strip('[]').replace(', ', ' to ')}"
    return Tile(label, value, f"{no_interval(estimate) or note}, n = {estimate.n:,}")


def _drops(summary: Summary, figures: Mapping[str, Figure]) -> list[Block]:
    rows = list(drop_rows(summary))
    if not rows:
        return [Paragraph("No fact has candidate components: nothing to suppress or compare.")]
    table = Table(
        (
            "suppressed",
            number("facts", "n"),
            "partial drop",
            "full drop",
            number("redundancy (median)", "red."),
            number("excess (median)", "exc."),
        ),
        [
            (
                label,
                n,
                interval(row.partial_drop),
                interval(row.full_drop),
                short(row.redundancy.median),
                short(row.excess.median),
            )
            for label, _, n, row in rows
        ],
        "Mean over facts with 95% interval, redundancy and excess: median; the rows set in are "
        "controls of the family above them",
        controls=[i for i, (_, is_control, _, _) in enumerate(rows) if is_control],
    )
    compared = [comparison_table(summary.comparisons, FULL_DROPS)] if summary.comparisons else []
    drawn = [Figures([figures["drops"]])] if "drops" in figures else []
    caveat = Points(list(caveats(summary)))
    return [*drawn, table, *compared, *paragraphs(DEFINITIONS), caveat]


def _relations(summary: Summary, most: int | None) -> list[Block]:
    names = ("KNs", "partial drop", "full drop")
    counts = (number("facts"), number("known"), number("with a DKN", "DKN"))
    rows = [
        (
            row.relation or "(none)",
            row.n_facts,
            row.n_known,
            row.n_degenerate,
            *(short(v) for v in (row.neurons, row.partial_drop, row.full_drop)),
        )
        for row in summary.by_relation[:most]
    ]
    caption = "KNs, knowledge neurons: mean over known facts; drops: mean over facts with a DKN"
    table = Table([Column("relation", one_line=True), *counts, *map(number, names)], rows, caption)
    more = len(summary.by_relation) - len(rows)
    return [table, *paragraphs([f"… and {more:,} more relations"] if more else [], note=True)]


def _left_out(problems: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            p.get("id") or DASH,
            p.get("file"),
            None if p.get("line") is None else str(p["line"]),
            p.get("reason"),
        )
        for p in problems
    ]
    return Table(("fact", "file", number("line"), "reason"), rows)


def _made(manifest: Mapping[str, Any]) -> list[Block]:
    model = manifest["model"]
    rows = [
        ("Model", f"{model['name']} (fingerprint {model['fingerprint']})"),
        ("Started", manifest["created"]),
        ("Configuration", f"{manifest['config_hash']}, in full in manifest.json"),
        ("Seed", str(manifest["config"].get("seed", DASH))),
        ("Versions", versions_text(manifest)),
    ]
    if manifest.get("mask_token") is not None:
        rows.append(("Baseline", f"prompt tokens masked by {manifest['mask_token']}"))
    settings = json.dumps(manifest["config"], indent=2)
    return [Table(("what", "value"), rows), Fold("All settings", code=settings)]
