"""What the figures show, that they are the same each time, and that nothing global changes."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle

from dkn_engine.errors import UserError
from dkn_engine.report.figures import (
    barcode,
    bars,
    dkn_graph,
    grouped_interactions,
    interaction_matrix,
    lattice,
    neuron_map,
    overlap,
    save,
    subset_drops,
    subset_map,
    to_png,
    to_svg,
)
from dkn_engine.report.figures.files import compact
from tests.support.fact_results import known

NAN = math.nan
FACT = known("a", q=3, dkn=(0, 2))
N = len(FACT.neurons)
INTERACTIONS = np.random.default_rng(1).normal(size=N * (N - 1) // 2).astype(np.float32)
MEASURED = dataclasses.replace(FACT, pair_interactions=INTERACTIONS)


def some_bars() -> Figure:
    return bars(
        ["D", "Rnd", "none"],
        [0.5, 0.1, NAN],
        [0.4, -0.1, NAN],
        [0.6, 0.3, NAN],
        axis="drop, share",
        n=[8, 8, 0],
        control=[False, True, True],
    )


MAKERS: dict[str, Callable[[], Figure]] = {
    "bars": some_bars,
    "overlap": lambda: overlap([[1, 0.25], [NAN, 1]], ["D", "N"]),
    "graph": lambda: dkn_graph(FACT),
    "interactions": lambda: interaction_matrix(MEASURED),
    "lattice": lambda: lattice(FACT),
    "barcode": lambda: barcode(FACT),
    "subset_map": lambda: subset_map(FACT),
    "neuron_map": lambda: neuron_map(FACT.neurons, FACT.components[0].neurons),
}


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def rectangles(axes: Axes) -> list[Rectangle]:
    assert all(isinstance(p, Rectangle) for p in axes.patches)
    return [p for p in axes.patches if isinstance(p, Rectangle)]


def legend_of(axes: Axes) -> Legend:
    legend = axes.get_legend()
    assert legend is not None
    return legend


def luminance(color: Any) -> float:
    r, g, b = to_rgb(color)
    return 0.299 * r + 0.587 * g + 0.114 * b


@pytest.mark.parametrize("name", MAKERS)
def test_same_bytes_each_time_and_no_global_state(name: str, tmp_path: Path) -> None:
    settings = dict(mpl.rcParams)
    first, second = (save(MAKERS[name](), tmp_path / f"new{i}" / name) for i in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.name == other.name
    svg, png = first
    assert (svg.suffix, png.suffix) == (".svg", ".png")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<dc:date>" not in svg.read_text(encoding="utf-8")
    assert dict(mpl.rcParams) == settings
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


@pytest.mark.parametrize("name", MAKERS)
def test_svg_is_well_formed_and_its_references_lead_somewhere(name: str) -> None:
    svg = to_svg(MAKERS[name]())
    root = ET.fromstring(svg)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    assert references <= set(ids)
    groups = {e.get("id") for e in root.iter() if e.tag.endswith("}g") and e.get("id")}
    assert groups <= references
    assert not re.search(r'(?:href|src)="https?:', svg)


def leaves(svg: str) -> list[tuple[str, dict[str, str]]]:
    """Elements without children in their order, each with all that applies to it."""
    found = []

    def walk(element: ET.Element, above: dict[str, str]) -> None:
        own = {k: v for k, v in element.attrib.items() if k != "id" or element.tag[-1:] != "g"}
        here = above | {"style": own.get("style", above.get("style", ""))}
        here["transform"] = f"{above.get('transform', '')} {own.get('transform', '')}".strip()
        if len(element):
            for child in element:
                walk(child, here)
        elif element.tag.rpartition("}")[2] != "g":
            found.append((element.tag, here | {k: v for k, v in own.items() if k not in here}))

    walk(ET.fromstring(svg), {})
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_a_compact_drawing_is_the_same_to_a_thousandth(name: str) -> None:
    figure, whole = MAKERS[name](), io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dkn_engine"}):
        figure.savefig(whole, format="svg", facecolor="white", metadata={"Date": None})
    short = compact(whole.getvalue())
    assert len(short) < 0.9 * len(whole.getvalue())
    one, other = leaves(whole.getvalue()), leaves(short)
    assert len(one) == len(other) > 20
    for (tag, all_of_it), (short_tag, less) in zip(one, other, strict=True):
        assert (tag, all_of_it.keys()) == (short_tag, less.keys())
        for key, value in all_of_it.items():
            texts = [re.split(NUMBER, v) for v in (value, less[key])]
            assert [t.split() for t in texts[0]] == [t.split() for t in texts[1]]
            numbers = [np.array(re.findall(NUMBER, v), float) for v in (value, less[key])]
            np.testing.assert_allclose(numbers[0], numbers[1], rtol=0, atol=1e-3)


NUMBER = r"-?\d+\.?\d*"


def test_letters_stay_letters_as_they_are() -> None:
    title = "Pi is 3.14159 < 4.000 &"
    figure = bars(["a"], [0.5], [NAN], [NAN], axis=title)
    root = ET.fromstring(to_svg(figure))
    shown = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert title in shown
    assert {"0.0", "0.50"} <= set(shown)


@pytest.mark.parametrize("name", MAKERS)
def test_letters_are_at_least_eight_points(name: str) -> None:
    figure = MAKERS[name]()
    figure.draw_without_rendering()
    found: list[Any] = figure.findobj(mpl.text.Text)
    sizes = [t.get_fontsize() for t in found if t.get_text()]
    assert min(sizes) >= 8
    assert figure.get_size_inches()[0] <= 7


def test_figures_can_be_drawn_in_threads() -> None:
    alone = to_svg(some_bars())
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: to_svg(some_bars()), range(8)))
    assert set(together) == {alone}


def test_bars_intervals_and_controls() -> None:
    figure = some_bars()
    (axes,) = figure.axes
    assert axes.get_xlabel() == "drop, share"
    assert [round(p.get_width(), 6) for p in rectangles(axes)] == [0.5, 0.1]
    assert [bool(p.get_hatch()) for p in rectangles(axes)] == [False, True]
    assert (
        luminance(axes.patches[1].get_facecolor())
        > 0.9
        > luminance(axes.patches[0].get_facecolor())
    )
    whiskers = [np.asarray(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"]
    assert [list(x) for x in whiskers] == [[0.4, 0.6], [-0.1, 0.3]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["D", "Rnd", "none"]
    written = texts(figure)
    assert {"0.50  n = 8", "0.10  n = 8", "not measured  n = 0"} <= set(written)


def test_names_are_no_formulas() -> None:
    figure = bars(["cost in $ and $"], [1], [0], [2], axis="x")
    assert "cost in $ and $" in texts(figure)
    to_png(figure)


@pytest.mark.parametrize("argument", ["means", "lows", "highs", "control", "n", "fills"])
def test_bars_of_unequal_lengths_are_refused(argument: str) -> None:
    arguments: dict[str, Any] = {
        "means": [1, 2],
        "lows": [0, 1],
        "highs": [2, 3],
        "control": [False, True],
        "n": [3, 3],
        "fills": ["#000000", "#ffffff"],
    }
    arguments[argument] = arguments[argument][:1]
    with pytest.raises(ValueError, match=f"{argument} must have one entry a label, 2; got 1"):
        bars(["a", "b"], axis="x", **arguments)


def test_overlap_writes_every_share() -> None:
    figure = overlap([[1, 0.25], [NAN, 0.9]], ["D", "N"])
    written = [t.get_text() for t in figure.axes[0].texts]
    assert written == ["100%", "25%", "–", "90%"]
    dark, light = figure.axes[0].texts[0], figure.axes[0].texts[1]
    assert luminance(dark.get_color()) > 0.9 > luminance(light.get_color())
    with pytest.raises(
        ValueError, match=re.escape("shares must be [1, 2], as the names; got [2, 1]")
    ):
        overlap([[1], [1]], ["D"], ["D", "N"])


def test_barcode_marks_the_dkn() -> None:
    figure = barcode(FACT)
    (axes,) = figure.axes
    assert "1/|w|" in axes.get_xlabel()
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "C1*, 3 neurons",
        "C2, 3 neurons",
        "C3*, 3 neurons",
    ]
    bars_by_place = {round(p.get_y() + p.get_height() / 2): p for p in rectangles(axes)}
    for i, component in enumerate(FACT.components):
        bar = bars_by_place[i]
        assert bar.get_x() == pytest.approx(component.birth)
        assert bar.get_x() + bar.get_width() == pytest.approx(component.death)
        assert (luminance(bar.get_facecolor()) < 0.4) == (i in FACT.dkn)


def test_barcode_of_a_component_that_never_dies_ends_in_an_arrow() -> None:
    endless = dataclasses.replace(FACT.components[1], death=math.inf)
    figure = barcode(dataclasses.replace(FACT, components=(FACT.components[0], endless), dkn=()))
    (arrow,) = [line for line in figure.axes[0].lines if line.get_marker() == ">"]
    assert list(np.asarray(arrow.get_ydata())) == [1]
    assert np.asarray(arrow.get_xdata())[0] == pytest.approx(figure.axes[0].get_xlim()[1])
    with pytest.raises(ValueError, match="fact 'a' has no components"):
        barcode(dataclasses.replace(FACT, components=()))


def test_interactions_are_in_the_order_of_the_groups() -> None:
    """Each pair's figure is found where its two neurons are, the DKN's members first."""
    places, labels, matrix = grouped_interactions(MEASURED)
    assert labels.tolist() == [0] * 3 + [2] * 3 + [1] * 3 + [-1] * 4
    of = {tuple(n): i for i, c in enumerate(FACT.components) for n in c.neurons.tolist()}
    assert [of.get(tuple(n), -1) for n in FACT.neurons[places].tolist()] == labels.tolist()
    assert sorted(places.tolist()) == list(range(N))
    row = {int(place): i for i, place in enumerate(places)}
    for k, (a, b) in enumerate(itertools.combinations(range(N), 2)):
        assert matrix[row[a], row[b]] == matrix[row[b], row[a]] == INTERACTIONS[k]
    assert np.isnan(np.diag(matrix)).all()


def test_interactions_are_framed_by_group_and_marked_below_zero() -> None:
    figure = interaction_matrix(MEASURED)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["C1*", "C3*", "C2", "in none: 4"]
    frames = {(*p.get_xy(), p.get_width()) for p in rectangles(axes)}
    assert frames == {(0, 0, 3), (3, 3, 3), (6, 6, 3)}
    layer, index = MEASURED.components[0].neurons[0]
    assert axes.get_yticklabels()[0].get_text() == f"{layer}:{index}"
    (mesh,) = axes.collections
    drawn: np.ndarray[Any, Any] = np.ma.filled(np.ma.asarray(mesh.get_array()), NAN).reshape(N, N)
    _, _, matrix = grouped_interactions(MEASURED)
    np.testing.assert_array_equal(drawn, matrix)
    most = float(np.nanmax(np.abs(matrix[:9, :9])))
    assert mesh.get_clim() == (-most, most)
    (marks,) = axes.lines
    below = {(int(x), int(y)) for x, y in zip(*np.asarray(marks.get_data()), strict=True)}
    assert below == {(j, i) for i, j in np.ndindex(N, N) if matrix[i, j] < -0.05 * most}


def test_of_many_neurons_those_in_groups_and_the_best_others_are_drawn() -> None:
    n = 100
    neurons = np.stack([np.arange(n) // 10, np.arange(n) % 10], axis=1).astype(np.int32)
    many = dataclasses.replace(
        FACT,
        neurons=neurons,
        scores=np.linspace(1, 0, n, dtype=np.float32),
        components=tuple(
            dataclasses.replace(c, neurons=neurons[90 + 2 * i : 92 + 2 * i])
            for i, c in enumerate(FACT.components)
        ),
        pair_interactions=np.zeros(n * (n - 1) // 2, dtype=np.float32),
    )
    places, _, _ = grouped_interactions(many)
    assert places.tolist() == [90, 91, 94, 95, 92, 93, *range(54)]
    figure = interaction_matrix(many)
    assert "in none: 54 of 94" in texts(figure)
    assert len(to_svg(figure)) < 100_000


@pytest.mark.parametrize("pairs", [0, 5])
def test_interactions_of_other_neurons_are_refused(pairs: int) -> None:
    other = dataclasses.replace(FACT, pair_interactions=np.ones(pairs, dtype=np.float32))
    with pytest.raises(ValueError, match=f"each of the {N * (N - 1) // 2} pairs .* got {pairs}"):
        interaction_matrix(other)


def test_interactions_that_are_not_finite_are_left_empty() -> None:
    lost = np.full_like(INTERACTIONS, NAN)
    lost[0] = np.inf
    to_svg(interaction_matrix(dataclasses.replace(FACT, pair_interactions=lost)))


def test_subset_map_holds_every_drop_and_frames_the_dkn() -> None:
    figure = subset_map(FACT)
    cells = figure.axes[0].collections[0].get_array()
    assert cells is not None
    assert cells.shape == (2, 4)  # C1 and C2 along the columns, C3 along the rows
    expected = [[1 - 0.8 ** (bin(c).count("1") + r) for c in range(4)] for r in range(2)]
    np.testing.assert_allclose(cells, expected, atol=1e-12)
    assert [t.get_text() for t in figure.axes[0].texts][:2] == ["0.00", "0.20"]
    dark = [p for p in rectangles(figure.axes[0]) if luminance(p.get_edgecolor()) < 0.5]
    assert {(p.get_x(), p.get_y()) for p in dark} == {(1, 0), (0, 1), (1, 1)}
    assert {"C1*", "C2", "C3*", "relative drop of the answer's probability"} <= set(texts(figure))


def test_subset_map_marks_probabilities_that_rise() -> None:
    fact = known("a", q=7, dkn=())
    risen = fact.subset_probabilities.copy()
    risen[5] = 0.6
    figure = subset_map(dataclasses.replace(fact, subset_probabilities=risen))
    (plus,) = figure.axes[0].texts
    assert (plus.get_text(), plus.get_position()) == ("+", (5.5, 0.5))


def test_sampled_subsets_become_dots_by_size() -> None:
    fact = known("a", q=14, dkn=())
    masks = np.array([0, 1, 6, 7, (1 << 14) - 1])
    sampled = dataclasses.replace(
        fact, subset_masks=masks, subset_probabilities=np.array([0.5, 0.4, 0.3, 0.2, 0.1])
    )
    (axes,) = subset_map(sampled).axes
    np.testing.assert_allclose(subset_drops(sampled), [0, 0.2, 0.4, 0.6, 0.8])
    dots, means = axes.lines
    assert list(np.asarray(dots.get_xdata())) == [0, 1, 2, 3, 14]
    np.testing.assert_allclose(np.asarray(means.get_ydata()), [0, 0.2, 0.4, 0.6, 0.8])


def test_subsets_without_a_clean_probability_are_refused() -> None:
    with pytest.raises(ValueError, match="needs subsets and a positive probability"):
        subset_drops(dataclasses.replace(FACT, subset_probabilities=np.zeros(8)))


def test_neuron_map_counts_each_neuron_once() -> None:
    located = [[0, 3], [0, 3], [2, 1], [2, 9]]
    figure = neuron_map(located, [[2, 9], [2, 9]], n_layers=4, width=10)
    place, counts = figure.axes
    every, dkn = place.lines
    assert list(zip(np.asarray(every.get_ydata()), np.asarray(every.get_xdata()), strict=True)) == [
        (0, 3),
        (2, 1),
        (2, 9),
    ]
    assert list(zip(np.asarray(dkn.get_ydata()), np.asarray(dkn.get_xdata()), strict=True)) == [
        (2, 9)
    ]
    assert every.get_marker() != dkn.get_marker()
    assert [p.get_width() for p in rectangles(counts)] == [1, 0, 2, 0, 0, 0, 1, 0]
    assert (place.get_xlabel(), place.get_ylabel()) == ("index of the neuron in its layer", "layer")
    legend = [t.get_text() for t in legend_of(place).get_texts()]
    assert legend == ["N, knowledge neurons (3)", "D, neurons of DKNs (1)"]


def test_maps_of_very_many_neurons_stay_small() -> None:
    rng = np.random.default_rng(0)
    located = rng.integers(0, (80, 10_000), (100_000, 2))
    assert len(to_svg(neuron_map(located, located[:2000]))) < 600_000


def test_neurons_outside_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("within 4 layers of 10; got (layer, index) up")):
        neuron_map([[4, 1]], [], n_layers=4, width=10)
    with pytest.raises(ValueError, match=re.escape("up to (1, 10)")):
        neuron_map([], [[1, 10]], n_layers=4, width=10)


def test_neuron_map_without_neurons_is_empty() -> None:
    to_svg(neuron_map([], []))


def test_without_matplotlib_a_figure_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from dkn_engine.report import figures\n"
        "assert not figures.available()\n"
        "try:\n    figures.bars(['a'], [1], [0], [2], axis='x')\n"
        "except figures.style.UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "figures need matplotlib: pip install matplotlib\n", done.stderr
    assert issubclass(UserError, ValueError)
