"""The picture of a fact: who stands where, what is joined, what is written, how legibly."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from dkn_engine.neurons import adjacent_pairs
from dkn_engine.report.figures import dkn_graph, has_lattice, lattice, to_svg
from dkn_engine.report.figures.graph_layout import place_neurons
from dkn_engine.report.figures.style import COMPONENTS, OTHERS
from dkn_engine.types import Component, FactResult
from tests.support.fact_results import known

FACT = known("a", q=3, dkn=(0, 2))
FAINT = "#d0d0d0"


def many(n: int, q: int = 8, size: int = 4, dkn: tuple[int, ...] = (0, 2)) -> FactResult:
    """A fact with ``n`` neurons in 24 layers of 11,008, the first of them in components."""
    rng = np.random.default_rng(n)
    codes = np.sort(rng.choice(24 * 11_008, size=n, replace=False))
    neurons = np.stack([codes // 11_008, codes % 11_008], axis=1).astype(np.int32)
    member = rng.permutation(n)
    return dataclasses.replace(
        FACT,
        neurons=neurons,
        scores=np.sort(rng.random(n, dtype=np.float32))[::-1].copy(),
        components=tuple(
            Component(neurons[np.sort(member[size * i : size * (i + 1)])], 0.1, 1.0, 0.9)
            for i in range(q)
        ),
        dkn=dkn,
        connection_weights=rng.normal(size=len(adjacent_pairs(neurons))).astype(np.float32),
    )


PICTURES = {
    "5 neurons": lambda: many(5, q=2, size=2, dkn=(0, 1)),
    "30 neurons": lambda: many(30, q=3, dkn=()),
    "200 neurons": lambda: many(200),
    "200 neurons, 80 in components": lambda: many(200, q=2, size=40, dkn=(0, 1)),
    "200 neurons, all in components": lambda: many(200, q=5, size=40, dkn=(0, 3)),
    "20 components": lambda: many(90, q=20),
}


@functools.cache
def picture(name: str) -> tuple[FactResult, Figure, Axes, Any]:
    """A fact and its graph, laid out once: tests measure it and leave it as it is."""
    result = PICTURES[name]()
    figure = dkn_graph(result)
    return result, figure, *drawn(figure)


def drawn(figure: Figure) -> tuple[Axes, Any]:
    """The axes, and the renderer that laid them out."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure.axes[0], canvas.get_renderer()


def marks(axes: Axes) -> dict[tuple[float, float], list[Any]]:
    """Lines of marks by place: a neuron's mark, then its ring if it has one."""
    found: dict[tuple[float, float], list[Any]] = {}
    for line in axes.lines:
        for place in zip(*map(np.asarray, line.get_data()), strict=True):
            found.setdefault(place, []).append(line)
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_no_label_collides(name: str) -> None:
    """With another, or with a mark, as the renderer measures them."""
    _, figure, axes, renderer = picture(name)
    labels = [t.get_window_extent(renderer) for t in axes.texts]
    assert all(not a.overlaps(b) for a, b in itertools.combinations(labels, 2))
    per_point = figure.dpi / 72
    for place, lines in marks(axes).items():
        x, y = axes.transData.transform(place)
        half = max(m.get_markersize() + m.get_markeredgewidth() for m in lines) / 2 * per_point
        box = mpl.transforms.Bbox([[x - half, y - half], [x + half, y + half]])
        assert not any(box.overlaps(label) for label in labels)
    inside = axes.get_window_extent(renderer)
    assert all(inside.x0 <= label.x0 and label.x1 <= inside.x1 + 2 for label in labels)


@pytest.mark.parametrize("name", PICTURES)
def test_every_located_neuron_is_there_once_in_the_row_of_its_layer(name: str) -> None:
    result, _, axes, _ = picture(name)
    places = marks(axes)
    assert len(places) == len(result.neurons)
    layers = sorted(set(result.neurons[:, 0].tolist()))
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"layer {i}" for i in layers]
    assert list(axes.get_yticks()) == sorted(axes.get_yticks())
    ringed = sum(len(lines) == 2 for lines in places.values())
    assert ringed == sum(len(result.components[i].neurons) for i in result.dkn)
    rows = sorted({y for _, y in places})
    for y in rows:
        x = sorted(x for x, row in places if row == y)
        assert min(np.diff(x), default=1) > 0.1


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("5 neurons", 5),
        ("30 neurons", 30),
        ("200 neurons", 32),
        ("200 neurons, 80 in components", 80),
        ("200 neurons, all in components", 80),
    ],
)
def test_the_largest_kind_of_neurons_that_has_room_is_named(name: str, n: int) -> None:
    result, _, axes, _ = picture(name)
    named = sorted(t.get_text() for t in axes.texts)
    inside = [c.neurons for c in result.components]
    ringed = [inside[i] for i in result.dkn]
    kinds = [result.neurons, *(np.concatenate(k) for k in (inside, ringed) if k)]
    kind = next(k for k in kinds if len(k) == n)
    assert named == sorted(str(index) for index in kind[:, 1].tolist())


def test_edges_are_as_wide_as_their_weights_and_coloured_by_component() -> None:
    result = known("a", q=4, dkn=(0, 1), seed=3)
    mixed = tuple(Component(result.neurons[i:12:2], 0.1, 1.0, 0.9) for i in range(2))
    result = dataclasses.replace(result, components=mixed)
    axes, _ = drawn(dkn_graph(result))
    pairs = adjacent_pairs(result.neurons)
    weights = abs(result.connection_weights)
    assert len(pairs) > 5
    layers = dict(zip(axes.get_yticks(), axes.get_yticklabels(), strict=True))
    labels = {t.get_position(): int(t.get_text()) for t in axes.texts}
    neurons = {}
    for x, y in marks(axes):
        right = min(left for left, row in labels if row == y and left > x)
        neurons[x, y] = (int(layers[y].get_text().split()[1]), labels[right, y])
    found = {}
    for patch in (p for p in axes.patches if isinstance(p, PathPatch) and p.get_linewidth()):
        ends = [neurons[tuple(v)] for v in np.asarray(patch.get_path().vertices).tolist()]
        for a, b in zip(ends[::2], ends[1::2], strict=True):
            found[a, b] = (to_hex(patch.get_edgecolor()), patch.get_linewidth())
    component = {tuple(n): i for i, c in enumerate(result.components) for n in c.neurons.tolist()}
    expected = {}
    for pair, weight in zip(result.neurons[pairs].tolist(), weights.tolist(), strict=True):
        low, high = map(tuple, pair)
        own = component.get(low, -1) == component.get(high, -2)
        share = weight / float(weights.max())
        if own or 5 * share >= 0.3:
            color = COMPONENTS[component[low]][0] if own else FAINT
            expected[low, high] = (color, 5 * max(np.ceil(16 * share), 1) / 16)
    assert found == expected
    assert len({color for color, _ in found.values()}) == 3


def test_areas_are_the_scores() -> None:
    axes, _ = drawn(dkn_graph(FACT))
    areas = sorted(lines[0].get_markersize() ** 2 for lines in marks(axes).values())
    scores = np.sort(FACT.scores / FACT.scores.max())
    np.testing.assert_allclose(areas, 90 * np.ceil(16 * scores) / 16, rtol=1e-12)


def test_what_was_left_out_is_said() -> None:
    without = dataclasses.replace(FACT, connection_weights=np.empty(0, np.float32))
    axes, _ = drawn(dkn_graph(without))
    assert "kept no weights" in axes.get_xlabel().replace("\n", " ")
    assert all(not patch.get_linewidth() for patch in axes.patches)
    apart = (FACT.neurons * [2, 1]).astype(np.int32)
    far = dataclasses.replace(without, neurons=apart, components=(), dkn=())
    assert "no adjacent" in dkn_graph(far).axes[0].get_xlabel().replace("\n", " ")
    keys = [t.get_text() for t in legend_texts(picture("20 components")[1])]
    assert keys[:2] == ["C1*: 4 neurons", "C3*: 4 neurons"]
    assert keys[-3:] == ["12 more components", "ring, *: in the DKN", "in no component: 10"]


def legend_texts(figure: Figure) -> list[Any]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return list(legend.get_texts())


def test_colours_differ_in_grey_or_have_other_forms() -> None:
    forms = [marker for _, marker in (*COMPONENTS, OTHERS)]
    assert len(set(forms)) == len(forms)
    grey = [np.dot(to_rgb(color), (0.299, 0.587, 0.114)) for color, _ in COMPONENTS[:2]]
    assert abs(grey[0] - grey[1]) > 0.2


def test_a_fact_without_neurons_or_with_other_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="fact 'x' has no neurons"):
        dkn_graph(FactResult("x", "ok"))
    other = dataclasses.replace(FACT, connection_weights=np.ones(3, np.float32))
    n = len(adjacent_pairs(FACT.neurons))
    with pytest.raises(ValueError, match=f"for each of its {n} pairs of adjacent neurons; got 3"):
        dkn_graph(other)


def test_files_stay_small() -> None:
    assert len(to_svg(dkn_graph(many(600)))) < 250_000


def test_neurons_stand_in_their_lanes_and_rows() -> None:
    """Two lanes of one and two neurons in three places; a layer that needs two rows; a gap."""
    neurons = np.array([[0, 5], [0, 7], [0, 9], [2, 1]] + [[4, i] for i in range(4)], np.int32)
    lanes = np.array([0, 1, 1, 1, 0, 0, 0, 0])
    found = place_neurons(neurons, lanes, np.empty(0), np.ones(8), 3.0)
    assert found.x[:3].tolist() == [0.5, 1.5, 2.5]
    assert found.y.tolist() == [0, 0, 0, 1.5, 3, 3, 3, 4]
    assert found.layers == {0: 0, 2: 1.5, 4: 3.5}
    assert found.height == 5


@pytest.mark.parametrize("dkn", [(0, 2), ()])
def test_the_lattice_holds_every_subset_of_the_family(dkn: tuple[int, ...]) -> None:
    result = dataclasses.replace(FACT, dkn=dkn)
    axes, _ = drawn(lattice(result))
    p = [0.5 * 0.8**k for k in range(4)]
    text = {t.get_text() for t in axes.texts}
    if dkn:
        expected = {("none", 0), ("C1", 1), ("C3", 1), ("both", 2)}
    else:
        pairs = {("C1 + C2", 2), ("C1 + C3", 2), ("C2 + C3", 2), ("all", 3)}
        expected = {("none", 0), ("C1", 1), ("C2", 1), ("C3", 1)} | pairs
    assert text == {f"{name}\np {p[k]:.2g}\n{0.8**k:.0%}" for name, k in expected}
    assert len(axes.lines) == (4 if dkn else 12)
    boxes = [box.get_window_extent() for t in axes.texts if (box := t.get_bbox_patch())]
    assert len(boxes) == len(expected)
    assert all(not a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_large_families_and_sampled_subsets_have_no_lattice() -> None:
    assert not has_lattice(known("a", q=4, dkn=()))
    assert has_lattice(known("a", q=4, dkn=(1, 3)))
    some = dataclasses.replace(FACT, subset_masks=np.array([0, 1, 2, 3, 4, 6, 7, 8]))
    assert not has_lattice(some)
    assert not has_lattice(FactResult("x", "ok"))
    with pytest.raises(ValueError, match=r"one to 3 components, all of .* got 2 comp"):
        lattice(some)
