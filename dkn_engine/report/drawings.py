"""The figures of a run, drawn into its ``figures`` folder and handed to the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.report import figures
from dkn_engine.report.clean import clean
from dkn_engine.report.content import Figure
from dkn_engine.report.family import component_name, members_of
from dkn_engine.report.summary import Summary, drop_rows
from dkn_engine.statistics.words import number
from dkn_engine.types import Component, FactResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FOLDER = "figures"
_MOST_SETS = 10  # of the overlap's rows
_LONGEST = 24  # letters of their names
_MOST_NAMED = 12  # neurons of a component


def draw_run(folder: Path, results: Sequence[FactResult], summary: Summary) -> dict[str, Figure]:
    """Draw and save the figures of a whole run: ``drops``, ``neurons``, ``overlap``.

    Args:
        folder: made if absent.
        results: in any order; a figure without data is left out.
        summary: of those results.

    Raises:
        OSError: the folder cannot be written.
    """
    made: dict[str, Figure] = {}
    rows = [row for row in drop_rows(summary) if row[3].full_drop.n]
    if rows:
        means = [row.full_drop for _, _, _, row in rows]
        figure = figures.bars(
            [label for label, _, _, _ in rows],
            [e.mean for e in means],
            [e.ci_low for e in means],
            [e.ci_high for e in means],
            axis="full drop, share of the answer's probability that is lost",
            n=[e.n for e in means],
            control=[is_control for _, is_control, _, _ in rows],
        )
        made["drops"] = _kept(
            figure,
            folder / "drops",
            "Bar chart of mean full drops with intervals: "
            + "; ".join(f"{row[0]} {e.mean:.2f}" for row, e in zip(rows, means, strict=True)),
            "Full drop: mean over facts with its 95% interval. Hatched bars are controls of the "
            "filled bar above them.",
        )
    known = [r for r in results if r.status == "ok" and len(r.neurons)]
    if known:
        made["neurons"] = _neurons(known, folder / "neurons", "all known facts")
        if (sets := sets_of(known)) is not None:
            made["overlap"] = _overlap(*sets, folder / "overlap")
    return made


def draw_fact(folder: Path, result: FactResult, place: int) -> list[Figure]:
    """Draw and save one fact's graph, the lattice of a small family, barcode and subset map.

    And the interactions of its neurons, where the run measured them.

    Args:
        folder: made if absent.
        result: with components.
        place: of the fact in the run, from 1; part of the files' names.
    """
    stem = folder / f"fact-{place:05d}"
    pictures = pictures_of(result, stem)
    if len(result.pair_interactions):
        pictures.append(_interactions(result, stem))
    if not all(math.isnan(c.birth) for c in result.components):  # a filtration made them
        pictures.append(_barcode(result, stem))
    is_whole = len(figures.lattice_family(result)) == len(result.components)
    if figures.has_drops(result) and not (figures.has_lattice(result) and is_whole):
        pictures.append(_subsets(result, stem))
    return pictures


def pictures_of(result: FactResult, stem: Path | None = None) -> list[Figure]:
    """A fact's graph, and the lattice if its family is small; saved if there is a stem for it.

    Args:
        result: with neurons.
        stem: path of the files, to whose name ``-graph`` or ``-lattice`` is added.
    """
    pictures = [_graph(result, stem)]
    if figures.has_lattice(result):
        pictures.append(_lattice(result, stem))
    return pictures


def _barcode(result: FactResult, stem: Path) -> Figure:
    members = ", ".join(component_name(i) for i in result.dkn) or "none"
    return _kept(
        figures.barcode(result),
        _beside(stem, "barcode"),
        f"Bars of {len(result.components)} components from birth to death; in the DKN: {members}.",
        "Life of the components in the filtration. Those of the DKN have a *.",
    )


def _subsets(result: FactResult, stem: Path) -> Figure:
    full = result.candidates.full_drop if result.candidates is not None else math.nan
    return _kept(
        figures.subset_map(result),
        _beside(stem, "subsets"),
        "Map of the relative drop with each subset of components suppressed; with all "
        f"suppressed: {number(full)}.",
        "Drop with each subset suppressed: a square says that a component is, a plus "
        "that the probability rose. Framed: subsets of the DKN's own components.",
    )


def _interactions(result: FactResult, stem: Path) -> Figure:
    _, labels, matrix = figures.grouped_interactions(result)
    means = [
        f"within {component_name(i)} {_mean(matrix[np.ix_(labels == i, labels == i)])}"
        for i in range(len(result.components))
    ]
    grouped = np.outer(labels >= 0, labels >= 0)
    apart = grouped & (labels[:, None] != labels)
    means.append(f"between components {_mean(matrix[apart])}")
    return _kept(
        figures.interaction_matrix(result),
        _beside(stem, "interactions"),
        f"Matrix of the interactions of {len(labels):,} neurons in the order of their components; "
        f"means in nats: {', '.join(means)}.",
        "What two neurons lose together beyond what each does by itself, nothing else suppressed, "
        "estimated by gradients; dark above 0, where they cover for one another, a dash below 0. "
        "Rows and columns: neurons in the order of their components, whose own pairs are framed.",
    )


def _mean(values: NDArray[np.float64]) -> str:
    there = values[np.isfinite(values)]
    return f"{there.mean():.2g}" if there.size else "–"


def _graph(result: FactResult, stem: Path | None) -> Figure:
    sets = "; ".join(
        f"{component_name(i)}{'*' if i in result.dkn else ''} {_named(c)}"
        for i, c in enumerate(result.components)
    )
    return _kept(
        figures.dkn_graph(result),
        _beside(stem, "graph"),
        f"Graph of {len(result.neurons):,} knowledge neurons by layer, their connections, and "
        f"{len(result.components)} components: {sets}.",
        "The fact's knowledge neurons, layers upwards; wide edges are strong connections, colours "
        "are components, rings mark the DKN. Numbers are the neurons' indices in their layers.",
    )


def _named(component: Component) -> str:
    neurons = component.neurons.tolist()
    more = f" and {len(neurons) - _MOST_NAMED:,} more" if len(neurons) > _MOST_NAMED else ""
    return ", ".join(f"{layer}:{index}" for layer, index in neurons[:_MOST_NAMED]) + more


def _lattice(result: FactResult, stem: Path | None) -> Figure:
    of = "the DKN" if result.is_degenerate else "the candidates"
    p = dict(zip(result.subset_masks.tolist(), result.subset_probabilities.tolist(), strict=True))
    members = sum(1 << i for i in figures.lattice_family(result))
    left = "; ".join(
        f"{members_of(mask)} {p[mask]:.2g}" for mask in sorted(p) if mask & ~members == 0
    )
    return _kept(
        figures.lattice(result),
        _beside(stem, "lattice"),
        f"The answer's probability with each subset of {of} suppressed: {left}.",
        f"Every subset of {of}: what is suppressed, the answer's probability p, and how much of "
        "it is left.",
    )


def facts_to_draw(results: Sequence[FactResult], most: int) -> list[int]:
    """Places of the facts with figures of their own: those with a DKN first, then the others."""
    there = [i for i, r in enumerate(results) if r.status == "ok" and r.components]
    return sorted(sorted(there, key=lambda i: not results[i].is_degenerate)[:most])


def _neurons(results: Sequence[FactResult], stem: Path, of: str) -> Figure:
    members = [r.components[i].neurons for r in results for i in r.dkn]
    located = np.concatenate([r.neurons for r in results])
    dkn = np.concatenate([*members, np.empty((0, 2), dtype=np.int32)])
    layers = max((len(r.n_points) for r in results), default=0)
    return _kept(
        figures.neuron_map(located, dkn, n_layers=layers or None),
        stem,
        f"Map of neurons by layer and index: {_count(located):,} knowledge neurons, "
        f"{_count(dkn):,} of them in DKNs.",
        f"Knowledge neurons (N) and DKN neurons (D) of {of}, each counted once.",
    )


def _count(neurons: NDArray[np.int32]) -> int:
    return len(np.unique(neurons, axis=0))


def sets_of(results: Sequence[FactResult]) -> tuple[str, list[str], list[NDArray[np.int64]]] | None:
    """Sets of knowledge neurons by relation, else by fact if there are few; None for one set."""
    sizes = Counter(r.relation for r in results)
    if len(sizes) > 1:
        kept = [name for name, _ in sizes.most_common(_MOST_SETS)]
        groups = [[r for r in results if r.relation == name] for name in kept]
        names = [f"{_short(name or '(none)')} ({sizes[name]:,})" for name in kept]
        return "relation", names, [_codes(group) for group in groups]
    if 1 < len(results) <= _MOST_SETS:
        names = [_short(r.fact_id) for r in results]
        return "fact", names, [_codes([r]) for r in results]
    return None


def _short(name: str) -> str:
    text = clean(name)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _codes(results: Sequence[FactResult]) -> NDArray[np.int64]:
    """Neurons as one number each, once each."""
    neurons = np.concatenate([r.neurons for r in results]).astype(np.int64)
    return np.unique(neurons[:, 0] << 32 | neurons[:, 1])


def shares_of(sets: Sequence[NDArray[np.int64]]) -> list[list[float]]:
    """The share of each set that each of the sets holds."""
    return [[float(np.isin(a, b).mean()) for b in sets] for a in sets]


def _overlap(of: str, names: list[str], sets: list[NDArray[np.int64]], stem: Path) -> Figure:
    return _kept(
        figures.overlap(shares_of(sets), names),
        stem,
        f"Matrix of shares of knowledge neurons in common, by {of}: {', '.join(names)}.",
        f"How many of the knowledge neurons of one {of} (row) are also those of another (column).",
    )


def _beside(stem: Path | None, kind: str) -> Path | None:
    return stem and stem.with_name(f"{stem.name}-{kind}")


def _kept(figure: Drawing, stem: Path | None, alt: str, caption: str) -> Figure:
    """The figure for a page; in files, too, if there is a stem for their names."""
    if stem is None:
        return Figure(figures.to_svg(figure), alt, caption)
    svg, _ = figures.save(figure, stem)
    return Figure(svg.read_text(encoding="utf-8"), alt, caption)
