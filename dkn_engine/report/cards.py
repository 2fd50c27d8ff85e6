"""A fact's card: one line that opens into everything that was found about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dkn_engine.config import CONTROL_EXACT, CONTROL_SAMPLES
from dkn_engine.report.columns import own_drops
from dkn_engine.report.content import HtmlTable, Picture
from dkn_engine.report.family import about_family, component_name
from dkn_engine.report.figures.subsets import has_drops, subset_drops
from dkn_engine.report.html.markup import Markup, escape, join
from dkn_engine.report.html.pictures import render_picture
from dkn_engine.report.html.tables import cell_text, render_table
from dkn_engine.report.rows import CONTROL_WORDS
from dkn_engine.report.table import STATUS_WORDS, dkn_sizes
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


def kind_of(result: FactResult) -> str:
    """A key of :data:`KINDS`."""
    if result.status != "ok":
        return result.status
    return "dkn" if result.is_degenerate else "no_dkn"


def render_card(result: FactResult, number: int, pictures: Sequence[Picture] = ()) -> Markup:
    """A ``details`` element, closed.

    Args:
        result: of any status.
        number: of the fact in the run, from 1; unique in the page.
        pictures: of this fact.
    """
    kind = kind_of(result)
    badge = {"dkn": f"DKN {dkn_sizes(result, 12)}", "no_dkn": "no DKN"}.get(kind)
    chance = f"p = {cell_text(result.probability)}" if math.isfinite(result.probability) else ""
    question = (
        f"{escape(result.prompt)} → <strong>{escape(result.answer)}</strong>"
        if result.prompt or result.answer
        else escape(result.fact_id)
    )
    about = f"{result.fact_id} {result.relation or ''} {result.reason}"
    lines = [
        f'<details class="card" id="fact-{number}" data-kind="{kind}" '
        f'data-about="{escape(about)}">',
        f'<summary><span class="question" dir="auto">{question}</span>'
        f'<span class="chance">{chance}</span>'
        f'<span class="badge {kind}">{escape(badge or STATUS_WORDS[result.status])}</span>'
        "</summary>",
        '<div class="inside">',
        _about(result),
    ]
    if pictures:
        lines += [
            '<div class="pictures">',
            *(render_picture(p, f"fact-{number}-{i}-") for i, p in enumerate(pictures, 1)),
            "</div>",
        ]
    if result.components:
        lines += _parts(result)
    elif result.status == "ok":
        lines.append("<p>No candidate components: there is nothing to suppress.</p>")
    return join([*lines, "</div>", "</details>"])


def _about(result: FactResult) -> str:
    """The fact and its figures by name."""
    long = {"Prompt": result.prompt, "Reason": result.reason}
    layers = result.neurons[:, 0]
    short: dict[str, object] = {
        "Answer": result.answer,
        "Fact": result.fact_id,
        "Relation": result.relation,
        "Status": STATUS_WORDS[result.status],
        "Probability of the answer": _finite(result.probability),
        "Rank of its first token": result.rank or None,
    }
    if len(result.neurons):
        first, last = layers.min(), layers.max()
        span = f"layer {first}" if first == last else f"layers {first} to {last}"
        borderline = f", {len(result.borderline):,} borderline" if len(result.borderline) else ""
        short["Knowledge neurons"] = f"{len(result.neurons):,} in {span}{borderline}"
    if len(result.n_points):
        short["Attribution"] = _attribution(result)
    items = [_item(name, text, long=True) for name, text in long.items() if text]
    items += [
        _item(name, value, long=False) for name, value in short.items() if value not in (None, "")
    ]
    return f'<dl class="about">\n{join(items)}\n</dl>'


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _item(name: str, value: object, *, long: bool) -> str:
    kind = ' class="long"' if long else ""
    return f'<div{kind}><dt>{escape(name)}</dt><dd dir="auto">{cell_text(value)}</dd></div>'


def _attribution(result: FactResult) -> str:
    delta = np.abs(result.convergence_delta[np.isfinite(result.convergence_delta)])
    largest = f", largest delta {delta.max():.1e}" if delta.size else ""
    stopped = "" if result.converged else ", not converged in every layer"
    return f"{result.n_points.mean():.1f} points a layer{largest}{stopped}"


def _parts(result: FactResult) -> list[str]:
    """Components, what suppressing them does, and the controls."""
    about = f"<p>{escape(about_family(result))}</p>"
    lines = ["<h3>Components</h3>", about, render_table(_components(result))]
    if has_drops(result):
        lines += ["<h3>Subsets suppressed</h3>", *map(render_table, _subsets(result))]
    return [*lines, "<h3>Controls</h3>", *_controls(result)]


def _components(result: FactResult) -> HtmlTable:
    return HtmlTable(
        (
            "component",
            "neurons",
            "birth",
            "death",
            "persistence",
            "p, all other candidates suppressed",
            "drop if it alone is suppressed",
            "its neurons, layer:index",
        ),
        [
            (
                component_name(i) + ("*" if i in result.dkn else ""),
                len(c.neurons),
                c.birth,
                c.death,
                c.persistence,
                c.probability_alone,
                c.drop_if_suppressed,
                _neurons(c),
            )
            for i, c in enumerate(result.components)
        ],
        "Candidates, the most persistent first; * in the DKN. Birth, death and persistence in "
        "units of the distance 1/|w|.",
        controls=[i for i in range(len(result.components)) if i not in result.dkn],
    )


def _neurons(component: Component) -> str:
    named = [f"L{layer}:{index}" for layer, index in component.neurons[:_MOST_NAMED].tolist()]
    more = len(component.neurons) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _subsets(result: FactResult) -> list[HtmlTable]:
    """The subsets of the DKN (else of all candidates, if few), and all subsets by their size."""
    drops = dict(zip(result.subset_masks.tolist(), subset_drops(result).tolist(), strict=True))
    p = dict(zip(result.subset_masks.tolist(), result.subset_probabilities.tolist(), strict=True))
    family = result.dkn if result.is_degenerate else tuple(range(len(result.components)))
    inside = sum(1 << i for i in family)
    own = sorted((m for m in drops if m & ~inside == 0), key=lambda m: (m.bit_count(), m))
    tables = []
    if len(own) <= _MOST_SUBSETS:
        of = "the DKN" if result.is_degenerate else "the candidates"
        tables.append(
            HtmlTable(
                ("suppressed", "p of the answer", "relative drop"),
                [(_members(m), p[m], drops[m]) for m in own],
                f"Every subset of {of}",
            )
        )
    if len(own) < len(drops) or len(own) > _MOST_SUBSETS:
        sizes = sorted({m.bit_count() for m in drops})
        by_size = [[d for m, d in drops.items() if m.bit_count() == size] for size in sizes]
        tables.append(
            HtmlTable(
                ("components suppressed", "subsets", "smallest drop", "mean drop", "largest drop"),
                [
                    (str(size), len(d), min(d), sum(d) / len(d), max(d))
                    for size, d in zip(sizes, by_size, strict=True)
                ],
                f"All {len(drops):,} measured subsets of the candidates, by size",
            )
        )
    return tables


def _members(mask: int) -> str:
    members = [i for i in range(mask.bit_length()) if mask >> i & 1]
    return " + ".join(map(component_name, members)) or "nothing"


def _controls(result: FactResult) -> list[str]:
    of = "the DKN" if result.is_degenerate else "all candidates"
    own = own_drops(result)
    rows = [(f"{of[0].upper()}{of[1:]} on this prompt", own)]
    if result.is_degenerate and result.candidates is not None:
        rows.append(("All candidates on this prompt", result.candidates))
    first = len(rows)
    rows += [(CONTROL_WORDS[name], drops) for name, drops in result.controls.items()]
    table = HtmlTable(
        ("suppressed", "measurements", "partial drop", "full drop", "redundancy", "excess"),
        [
            (
                name,
                d.n,
                _spread(d.partial_drop, d.partial_std),
                _spread(d.full_drop, d.full_std),
                _redundancy(d),
                d.excess,
            )
            for name, d in rows
        ],
        f"Drops of {of} and of its controls, ± standard deviation over the measurements; random "
        "neurons are as many in the same layers and none of the fact's own knowledge neurons",
        controls=range(first, len(rows)),
    )
    return [render_table(table), *(f'<p class="note">{escape(n)}</p>' for n in _notes(result))]


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
            f"With {size} components the controls are measured on {CONTROL_SAMPLES} subsets, the "
            "components themselves on all."
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
    text = cell_text(round(value, 3) + 0.0)
    return f"{text} ± {deviation:.2g}" if math.isfinite(deviation) else text
