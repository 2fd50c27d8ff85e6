"""The whole way on the demo model, with what is known about it from trials."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig, Config, FilterConfig, SelectionConfig
from tests.support.demo import demo_model


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return demo_model()


@pytest.fixture(scope="module")
def results(demo: tuple[Any, Any], tmp_path_factory: Any) -> dkn.Results:
    out = tmp_path_factory.mktemp("demo") / "run"
    found = dkn.find_dkns(*demo, dkn.load_facts("demo", limit=2), out=out)
    assert [r.fact_id for r in dkn.read_results(out)] == [r.fact_id for r in found]
    return found


def test_germany_is_known_and_located(results: Any) -> None:
    germany = results[0]
    assert (germany.fact_id, germany.status, germany.answer) == ("capital-germany", "ok", "Berlin")
    assert germany.probability == pytest.approx(0.80, abs=0.01)
    assert germany.rank == 1
    assert germany.path == "sweep"
    assert germany.converged
    assert germany.convergence_delta.shape == (30,)
    assert 1 < len(germany.neurons) < 500
    assert germany.neurons[:, 0].max() < 30
    assert germany.neurons[:, 1].max() < 1536


def test_what_is_found_is_consistent_with_itself(results: Any) -> None:
    for r in results:
        q = len(r.components)
        assert r.status == "ok"
        assert r.subset_probabilities.shape == (1 << q,)
        assert r.subset_probabilities[0] == pytest.approx(r.probability, rel=1e-4)
        assert ((r.subset_probabilities >= 0) & (r.subset_probabilities <= 1)).all()
        assert set(r.dkn) <= set(range(q))
        located = {(int(l), int(i)) for l, i in r.neurons}
        for i, c in enumerate(r.components):
            members = {(int(l), int(n)) for l, n in c.neurons}
            assert members <= located
            assert c.probability_alone == r.subset_probabilities[(1 << q) - 1 ^ (1 << i)]
        if q:
            # Matched random neurons hardly move a fact.
            assert r.controls["random"].full_drop < 0.2
            assert r.controls["random"].n == 5
        assert math.isnan(r.full_drop) == (q == 0)


def test_suppressing_the_neurons_of_germany_loses_berlin(demo: tuple[Any, Any]) -> None:
    """The design's trial: 11 neurons of the zero baseline leave 0.001, 11 random ones 0.79.

    The run measures no controls, which are not looked at.
    """
    fact = dkn.load_facts("demo", limit=1)
    config = Config(
        attribution=AttributionConfig(baseline="zero"),
        selection=SelectionConfig(threshold=0.2),
        filter=FilterConfig(n_random=0, n_regrouped=0, n_unrelated=0, fill_reference=False),
    )
    (found,) = dkn.find_dkns(*demo, fact, config)
    assert 9 <= len(found.neurons) <= 13
    (left,) = dkn.answer_probability(*demo, fact, suppress=found.neurons)
    assert left < 0.01
    random = found.neurons.copy()
    random[:, 1] = (random[:, 1] + np.random.default_rng(0).integers(1, 1536, len(random))) % 1536
    (control,) = dkn.answer_probability(*demo, fact, suppress=random)
    assert control == pytest.approx(0.80, abs=0.05)
