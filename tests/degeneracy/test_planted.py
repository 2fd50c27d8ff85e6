"""Degenerate neurons that were planted are found end to end; their non-redundant twin is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.config import Config, FactsConfig, FilterConfig, SelectionConfig, TopologyConfig
from dkn_engine.degeneracy.edits import nothing, suppress
from dkn_engine.degeneracy.lattice import members_of
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.run import stages
from tests.support.brute_force_edits import answer_probability
from tests.support.planted import BOTH, EITHER, Planted, planted_model
from tests.support.words import words_tokenizer

# Thresholds by construction, not by trial. A fact's score, about 1 in each layer, is shared by the
# 6 (or 4) planted neurons of layers 1 and 2, and by 120 of layer 3: a planted neuron has about a
# sixth, a spread one a twentieth of that. Any threshold well between tells them apart.
# Hops within a set are 1 / (0.3 * 5) = 0.67 long, noise makes those across sets about ten times as
# long, and everything hangs together: so the sets are the leaves of the merge tree, and its root
# (all sets in one) is no candidate. A member alone keeps nearly all and none nearly nothing (or the
# other way round), so any tau_2 and tau_3 between will do.
EXPLICIT = Config(
    selection=SelectionConfig(threshold=0.4),
    topology=TopologyConfig(end="largest_merge", end_value=None, allow_root=False, select="leaf"),
    filter=FilterConfig(min_alone=0.5, max_none=0.5),
)
CONFIGS = {"explicit": EXPLICIT, "default": Config()}
FACTS = [EITHER.fact, BOTH.fact]

Sets = frozenset[frozenset[tuple[int, int]]]


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module", params=CONFIGS)
def results(request: pytest.FixtureRequest, model: Any) -> dkn.Results:
    # Mean activations are over eight facts at the least; the packaged ones are in English.
    fill = [dkn.Fact(f"fill-{i}", f"w{i + 20} w9", f"w{i + 30}") for i in range(8)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "load_facts", {"demo": fill}.__getitem__)
        return dkn.find_dkns(model, words_tokenizer(), FACTS, CONFIGS[request.param])


def by_force(model: Any, planted: Planted, suppressed: tuple[int, ...]) -> float:
    """The answer's probability with some sets suppressed, by a hooked forward."""
    fact = planted.fact
    one = encode_sequence(model, words_tokenizer(), fact.prompt, fact.answer, config=FactsConfig())
    neurons = sorted(n for s in suppressed for n in planted.sets[s])
    edit = suppress(np.array(neurons)) if neurons else nothing()
    return answer_probability("llama", model, one, edit)


def neurons_of(array: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset((int(l), int(i)) for l, i in array)


def components_of(result: dkn.FactResult) -> Sets:
    return frozenset(neurons_of(c.neurons) for c in result.components)


def test_the_model_is_what_it_is_said_to_be(model: Any) -> None:
    """No engine here: one set of EITHER is enough, one of BOTH is as good as none."""
    for mask in range(8):
        p = by_force(model, EITHER, members_of(mask))
        assert p > 0.8 if mask < 7 else p < 0.01
    for mask in range(4):
        p = by_force(model, BOTH, members_of(mask))
        assert p < 0.02 if mask else p > 0.98


def test_attribution_finds_the_planted_neurons(results: Any) -> None:
    for planted, result in zip((EITHER, BOTH), results, strict=True):
        assert result.status == "ok"
        assert result.path == "sweep"
        assert result.converged
        assert neurons_of(result.neurons) == planted.neurons


def test_topology_separates_the_planted_sets(results: Any) -> None:
    for planted, result in zip((EITHER, BOTH), results, strict=True):
        assert components_of(result) == frozenset(planted.sets)
        for component in result.components:
            # The first two neurons of a set meet over a hop of about 0.67.
            assert 0.5 < component.birth < 0.8
            assert component.persistence > 0.1


def test_redundant_sets_are_degenerate(model: Any, results: Any) -> None:
    found = results[0]
    assert found.is_degenerate
    assert found.dkn == (0, 1, 2)
    for i, component in enumerate(found.components):
        own = EITHER.sets.index(neurons_of(component.neurons))
        others = tuple(s for s in range(3) if s != own)
        expected = by_force(model, EITHER, others)
        assert component.probability_alone == pytest.approx(expected, rel=1e-5)
        assert component.probability_alone > 0.8 * found.probability
        assert component.drop_if_suppressed < 0.01
        # No other knowledge neuron is left, so suppressing them too changes nothing.
        assert found.rest_suppressed[i] == pytest.approx(expected, rel=1e-5)
    none = by_force(model, EITHER, (0, 1, 2))
    assert found.subset_probabilities[7] == pytest.approx(none, rel=1e-4)
    assert found.rest_suppressed[3] == pytest.approx(none, rel=1e-4)
    assert found.full_drop > 0.99
    assert found.partial_drop < 0.05
    assert found.redundancy > 10


def test_sets_that_are_both_needed_are_not(model: Any, results: Any) -> None:
    found = results[1]
    assert not found.is_degenerate
    assert found.dkn == ()
    assert found.rest_suppressed.shape == (0,)
    assert found.probability == pytest.approx(by_force(model, BOTH, ()), rel=1e-5)
    for component in found.components:
        own = BOTH.sets.index(neurons_of(component.neurons))
        expected = by_force(model, BOTH, (1 - own,))
        assert component.probability_alone == pytest.approx(expected, rel=1e-4)
        assert component.probability_alone < 0.02
        assert component.drop_if_suppressed > 0.98
    # Each alone takes nearly all, so the partial drop is no smaller than the full one.
    assert found.full_drop > 0.98
    assert found.partial_drop > 0.98
    assert found.redundancy < 0.6


def test_controls_show_that_it_is_these_neurons_and_this_fact(results: Any) -> None:
    for result in results:
        assert result.controls["random"].n == 5  # enough for the precision asked
        assert abs(result.controls["random"].full_drop) < 0.01
        # The other fact has neurons of its own.
        assert result.controls["unrelated"].n == 1
        assert abs(result.controls["unrelated"].full_drop) < 0.01
        assert result.controls["mean_ablation"].full_drop > 0.9


def test_a_directory_tells_the_same(model: Any, results: Any, tmp_path: Any) -> None:
    config = CONFIGS["explicit"]
    dkn.find_dkns(model, words_tokenizer(), FACTS, config, tmp_path)
    read = dkn.read_results(tmp_path)
    assert [r.is_degenerate for r in read] == [r.is_degenerate for r in results] == [True, False]
    assert components_of(read[0]) == frozenset(EITHER.sets)
