"""The pictures of a notebook: on axes that are given, or in a figure that shows itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import dkn_engine as dkn
from dkn_engine.report.figures.picture import Picture
from tests.support.fact_results import known, several

RESULTS = dkn.Results(several())
FACT = RESULTS["c"]
OF_A_FACT = (dkn.plot.graph, dkn.plot.barcode, dkn.plot.subsets)
EVERY: dict[str, Callable[..., Any]] = {name: getattr(dkn.plot, name) for name in dkn.plot.__all__}


def given(name: str) -> Any:
    return FACT if EVERY[name] in OF_A_FACT else RESULTS


@pytest.mark.parametrize("name", EVERY)
def test_a_figure_of_its_own_shows_itself(name: str) -> None:
    figure = EVERY[name](given(name))
    assert isinstance(figure, Picture)
    png, size = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert size == {"width": round(96 * figure.get_figwidth())}
    assert figure.get_figwidth() <= 7


@pytest.mark.parametrize("name", EVERY)
def test_axes_that_are_given_are_drawn_on_and_come_back(name: str) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    untouched, axes = figure.subplots(1, 2)
    assert EVERY[name](given(name), ax=axes) is axes
    assert axes.has_data() or axes.texts
    assert not untouched.has_data()
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_result_is_refused(name: str) -> None:
    with pytest.raises(dkn.UserError, match=f"{name} draws results; got str"):
        EVERY[name](["a"])


@pytest.mark.parametrize("plot", OF_A_FACT)
def test_one_fact_alone_may_come_in_a_sequence(plot: Any) -> None:
    assert isinstance(plot(RESULTS[2:3]), Figure)
    name = plot.__name__
    with pytest.raises(
        dkn.UserError, match=rf"{name} draws one fact; got 7 results .*results\[0\]"
    ):
        plot(RESULTS)


def test_the_graph_has_the_lattice_of_a_small_family_beside_it() -> None:
    graph, beside = sorted(dkn.plot.graph(FACT).axes, key=lambda axes: len(axes.get_xlabel()))[::-1]
    assert "width: weight" in graph.get_xlabel().replace("\n", " ")
    assert {t.get_text().splitlines()[0] for t in beside.texts} == {"none", "C2", "C4", "both"}
    large = known("x", q=4, dkn=())
    assert len(dkn.plot.graph(large).axes) == 1


def test_the_graphs_title_is_the_fact_and_no_formula() -> None:
    figure = dkn.plot.graph(dataclasses.replace(FACT, prompt="Between $ and", answer="$"))
    figure.draw_without_rendering()
    assert figure.get_suptitle() == "Between $ and → $"


def test_subsets_are_a_lattice_a_map_or_dots() -> None:
    small = dkn.plot.subsets(known("x", q=3, dkn=(0, 1, 2))).axes[0]
    assert len(small.texts) == 8
    whole = dkn.plot.subsets(known("x", q=3, dkn=(0, 2))).axes[0]  # The lattice would lack C2.
    assert len(whole.texts) == 8
    assert whole.collections
    assert not small.collections
    axes = Figure().subplots()
    dkn.plot.subsets(FACT, ax=axes)
    assert len(np.asarray(axes.lines[0].get_xdata())) == 32


def test_one_result_has_neurons_to_map() -> None:
    axes = dkn.plot.neurons(FACT).axes[0]
    assert len(np.asarray(axes.lines[0].get_xdata())) == len(FACT.neurons)
    assert isinstance(dkn.plot.neurons(dkn.Results()), Figure)


def test_overlap_needs_two_sets() -> None:
    with pytest.raises(dkn.UserError, match="needs results of two or more relations"):
        dkn.plot.overlap(FACT)
    with pytest.raises(dkn.UserError, match="of two to ten facts"):
        dkn.plot.overlap([])
    matrix = dkn.plot.overlap([FACT, dataclasses.replace(FACT, fact_id="other")])
    assert [t.get_text() for t in matrix.axes[0].texts] == ["100%"] * 4


def test_without_matplotlib_it_is_said_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\nimport dkn_engine as dkn\n"
        "from tests.support.fact_results import known\n"
        "try:\n    dkn.plot.graph(known('a'))\nexcept dkn.UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "figures need matplotlib: pip install matplotlib\n", done.stderr


def test_matplotlib_is_imported_when_something_is_drawn_and_pyplot_never() -> None:
    code = (
        "import sys\nimport dkn_engine as dkn\ndkn.plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from tests.support.fact_results import known\n"
        "dkn.plot.graph(known('a'))._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
