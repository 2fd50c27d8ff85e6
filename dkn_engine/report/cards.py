"""A fact's card: one line that opens into everything that was found about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dkn_engine.config import CONTROL_EXACT, CONTROL_SAMPLES
from dkn_engine.report.columns import CONTROL_WORDS, own_drops
from dkn_engine.report.content import (
    Block,
    Card,
    Cards,
    Figure,
    Figures,
    Heading,
    Item,
    Paragraph,
    Section,
    Table,
    cell_text,
    number,
    paragraphs,
)
from dkn_engine.report.family import about_family, component_name, members_of, objectives
from dkn_engine.report.figures.subsets import has_drops, subset_drops
from dkn_engine.report.run import FACTS, STATUS_WORDS, dkn_sizes
from dkn_engine.statistics.words import DASH
from dkn_engine.types import Component, Drops, FactResult

KINDS = {
    "dkn": "with a DKN",
    "no_dkn": "without a DKN",
    "not_known": "not known to the model",
    "skipped": "skipped",
    "error": "failed",
}
_MOST_NAMED = 12  # neurons of a component
_MOST_SUBSETS = 16  # listed one by one
_OBJECTIVE = "the objective is what attribution scores"


def fact_cards(
    results: Sequence[FactResult], figures: Mapping[int, Sequence[Figure]], most: int
) -> Section:
    """The facts as cards.

    Args:
        results: all results, in the order of the facts.
        figures: by the fact's place in ``results``.
        most: cards; the other facts are counted, and it is said where they are.
    """
    if not results:
        return Section(FACTS, [Paragraph("No facts.")])
    shown = results[:most]
    more = len(results) - len(shown)
    cards = [_card(r, i + 1, figures.get(i, ())) for i, r in enumerate(shown)]
    texts = ["Each card has the components of a fact, every control, and the subsets suppressed."]
    notes = []
    if more:
        texts.append(f"The first {len(shown):,} of {len(results):,} facts have a card.")
        notes.append(
            f"{more:,} more facts have no card here. They are in facts-*.parquet and the other "
            f"tables of the run directory; “dkn-engine report --cards {len(results)}” gives each "
            "a card."
        )
    there = {card.kind for card in cards}
    kinds = {kind: words for kind, words in KINDS.items() if kind in there}
    listed = Cards(cards, kinds)
    return Section(FACTS, [*paragraphs(texts), listed, *paragraphs(notes, note=True)])


def _card(result: FactResult, place: int, figures: Sequence[Figure]) -> Card:
    kind: str = result.status
    badge = STATUS_WORDS[result.status]
    if result.status == "ok":
        kind = "dkn" if result.is_degenerate else "no_dkn"
        badge = f"DKN {dkn_sizes(result, 12)}" if result.is_degenerate else "no DKN"
    blocks: list[Block] = [Figures(figures)] if figures else []
    if result.components:
        blocks += _parts(result)
    elif result.status == "ok":
        blocks.append(Paragraph("No candidate components: there is nothing to suppress."))
    chance = f"p = {cell_text(result.probability)}" if math.isfinite(result.probability) else ""
    about = f"{result.fact_id} {result.relation or ''} {result.reason}"
    names = (result.prompt, result.answer, result.fact_id)
    return Card(place, kind, badge, *names, chance, about, list(_items(result)), blocks)


def _items(result: FactResult) -> Iterator[Item]:
    """The fact and its figures by name, without those that it does not have."""
    every: dict[str, object] = {
        "Prompt": result.prompt,
        "Reason": result.reason,
        "Answer": result.answer,
        "Fact": result.fact_id,
        "Relation": result.relation,
        "Status": STATUS_WORDS[result.status],
        "Probability of the answer": result.probability,
        "Rank of its first token": result.rank or None,
        "Knowledge neurons": _neurons(result),
        "Attribution": _attribution(result),
    }
    for name, value in every.items():
        if value not in (None, "") and not (isinstance(value, float) and math.isnan(value)):
            yield Item(name, cell_text(value), long=name in {"Prompt", "Reason"})


def _neurons(result: FactResult) -> str:
    if not len(result.neurons):
        return ""
    first, last = result.neurons[:, 0].min(), result.neurons[:, 0].max()
    span = f"layer {first}" if first == last else f"layers {first} to {last}"
    borderline = f", {len(result.borderline):,} borderline" if len(result.borderline) else ""
    return f"{len(result.neurons):,} in {span}{borderline}"


def _attribution(result: FactResult) -> str:
    if not len(result.n_points):
        return ""
    delta = np.abs(result.convergence_delta[np.isfinite(result.convergence_delta)])
    largest = f", largest delta {delta.max():.1e}" if delta.size else ""
    stopped = "" if result.converged else ", not converged in every layer"
    return f"{result.n_points.mean():.1f} points a layer{largest}{stopped}"


def _parts(result: FactResult) -> list[Block]:
    """Components, what suppressing them does, and the controls."""
    blocks: list[Block] = [Heading("Components"), Paragraph(about_family(result))]
    blocks.append(components_table(result))
    if has_drops(result):
        blocks += [Heading("Subsets suppressed"), *_subsets(result)]
    blocks += [Heading("Controls"), _controls(result)]
    return [*blocks, *paragraphs(list(_notes(result)), note=True)]


def components_table(result: FactResult) -> Table:
    """A fact's candidate components, one a row."""
    filtered = not all(math.isnan(c.birth) for c in result.components)
    life = ("birth", "death", "persistence") if filtered else ()
    effects = ("p, all other candidates suppressed", "drop if it alone is suppressed")
    order = ", the most persistent first" if filtered else ""
    units = " Birth, death and persistence in units of the distance 1/|w|." if filtered else ""
    return Table(
        ("component", *map(number, ("neurons", *life, *effects)), "its neurons, layer:index"),
        [
            (
                component_name(i) + ("*" if i in result.dkn else ""),
                len(c.neurons),
                *(getattr(c, name) for name in life),
                c.probability_alone,
                c.drop_if_suppressed,
                _named(c),
            )
            for i, c in enumerate(result.components)
        ],
        f"Candidates{order}; * in the DKN.{units}",
        controls=[i for i in range(len(result.components)) if i not in result.dkn],
    )


def _named(component: Component) -> str:
    named = [f"L{layer}:{index}" for layer, index in component.neurons[:_MOST_NAMED].tolist()]
    more = len(component.neurons) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _subsets(result: FactResult) -> Iterator[Table]:
    """The subsets of the DKN (else of all candidates, if few), and all subsets by their size."""
    drops = dict(zip(result.subset_masks.tolist(), subset_drops(result).tolist(), strict=True))
    p = dict(zip(result.subset_masks.tolist(), result.subset_probabilities.tolist(), strict=True))
    family = result.dkn if result.is_degenerate else tuple(range(len(result.components)))
    inside = sum(1 << i for i in family)
    own = sorted((m for m in drops if m & ~inside == 0), key=lambda m: (m.bit_count(), m))
    if len(own) <= _MOST_SUBSETS:
        read = dict(zip(p, result.subset_objective.tolist(), strict=False))  # of none or of all
        names = ("p of the answer", "relative drop", *(["objective"] if read else []))
        yield Table(
            ("suppressed", *map(number, names)),
            [(members_of(m), p[m], drops[m], *([read[m]] if read else [])) for m in own],
            f"Every subset of {'the DKN' if result.is_degenerate else 'the candidates'}"
            + (f"; {_OBJECTIVE}" if read else ""),
        )
    if len(own) < len(drops) or len(own) > _MOST_SUBSETS:
        sizes = sorted({m.bit_count() for m in drops})
        by_size = [[d for m, d in drops.items() if m.bit_count() == size] for size in sizes]
        names = ("subsets", "smallest drop", "mean drop", "largest drop")
        yield Table(
            (number("components suppressed"), *map(number, names)),
            [
                (size, len(d), min(d), sum(d) / len(d), max(d))
                for size, d in zip(sizes, by_size, strict=True)
            ],
            f"All {len(drops):,} measured subsets of the candidates, by size",
        )


def _controls(result: FactResult) -> Table:
    of = "the DKN" if result.is_degenerate else "all candidates"
    rows = [(f"{of[0].upper()}{of[1:]} on this prompt", own_drops(result))]
    if result.is_degenerate and result.candidates is not None:
        rows.append(("All candidates on this prompt", result.candidates))
    first = len(rows)
    rows += [(CONTROL_WORDS[name], drops) for name, drops in result.controls.items()]
    names = ["measurements", "partial drop", "full drop", "redundancy", "excess"]
    has_objective = any(drops.objective for _, drops in rows)
    if has_objective:
        names += ["objective", "one suppressed", "all suppressed"]
    return Table(
        ("suppressed", *map(number, names)),
        [
            (
                name,
                d.n,
                _spread(d.partial_drop, d.partial_std),
                _spread(d.full_drop, d.full_std),
                _redundancy(d),
                _drop(d.excess),
                *(objectives(d) if has_objective else ()),
            )
            for name, d in rows
        ],
        f"Drops of {of} and of its controls, ± standard deviation over the measurements; random "
        "neurons are as many in the same layers and none of the fact's own knowledge neurons"
        + (f"; {_OBJECTIVE}" if has_objective else ""),
        controls=range(first, len(rows)),
    )


def _notes(result: FactResult) -> Iterator[str]:
    """What the controls leave out, and what they were measured on."""
    if not result.controls:
        yield "No controls were measured, so chance cannot be ruled out."
        return
    if "paraphrases" not in result.controls:
        yield (
            "No paraphrase was held out that the model answers, so there is no figure on "
            "paraphrases."
        )
    elif result.n_paraphrases_not_known:
        yield (
            f"Held-out paraphrases that the model does not answer are left out: "
            f"{result.n_paraphrases_not_known:,}."
        )
    size = len(result.dkn if result.is_degenerate else result.components)
    if size > CONTROL_EXACT:
        yield (
            f"With {size} components the controls are measured on up to {CONTROL_SAMPLES} subsets, "
            "the components themselves on all."
        )
    if result.n_reference_packaged:
        yield (
            f"{result.n_reference_packaged:,} of the {result.n_reference:,} facts that unrelated "
            "facts and mean activations come from are packaged English ones, not of this run."
        )


def _redundancy(drops: Drops) -> str:
    """The figure, and in how many of the measurements it is defined if not in all."""
    text = cell_text(drops.redundancy)
    there = drops.n_redundancy
    if there is None or there == drops.n or not math.isfinite(drops.redundancy):
        return text
    return f"{text} (of {there:,})"


def _spread(value: float, deviation: float) -> str:
    text = _drop(value)
    return f"{text} ± {deviation:.3f}" if math.isfinite(deviation) else text


def _drop(value: float) -> str:
    """To a thousandth; a rounded "-0.000" is 0.000."""
    return f"{round(value, 3) + 0.0:.3f}" if math.isfinite(value) else DASH
