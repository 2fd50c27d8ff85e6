"""Distances and clusters against the published procedure, from scores of all kinds.

Scores and a model's own weight matrices go in; ``tests.support.published`` orders, connects and
clusters neurons by plain loops. The package must give the same distances (100 and more counted as
unreachable) and the same clusters. From texts to scores:
``tests/degeneracy/test_released_chain.py``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import dkn_engine as dkn
from dkn_engine import topology
from dkn_engine.config import Config
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.selection import select_neurons
from dkn_engine.topology import released
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.published import UNREACHABLE, Cluster, clusters, distances, located
from tests.support.words import words_tokenizer

N_LAYERS, WIDTH, D = 7, 30, 12


# --- the package ---


def package(
    model: Any, neurons: np.ndarray, **changes: Any
) -> tuple[np.ndarray, tuple[dkn.Component, ...]]:
    """Distances and clusters of located neurons by ``Config.released()``."""
    config = Config.from_dict(
        {"topology": {**Config.released().to_dict()["topology"], **changes}}
    ).topology
    rows = connection_rows(find_layout(model), neurons, config)
    matrix = released.cluster_distances(neurons, *rows, config)
    return matrix, topology.find_candidates(neurons, *rows, config)


def as_clusters(components: Any) -> set[Cluster]:
    return {
        Cluster(frozenset(map(tuple, c.neurons.tolist())), c.birth, c.death) for c in components
    }


def assert_same(found: set[Cluster], expected: list[Cluster]) -> None:
    """The same sets, each with the same birth and death up to the rounding of a sum of 12."""
    by_set = {c.neurons: c for c in expected}
    assert {c.neurons for c in found} == set(by_set)
    for c in found:
        assert (c.birth, c.death) == pytest.approx(
            (by_set[c.neurons].birth, by_set[c.neurons].death), rel=1e-12
        )


def make(name: str, values: str, seed: int) -> Any:
    """A model of seven layers whose MLP weights connect neurons over distances of about 1."""
    if name == "gpt2":
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=20, n_embd=D, n_layer=N_LAYERS, n_head=2, n_inner=WIDTH, n_positions=16,
            bos_token_id=1, eos_token_id=2,
        ))  # fmt: skip
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=20, hidden_size=D, intermediate_size=WIDTH, num_hidden_layers=N_LAYERS,
            num_attention_heads=2, max_position_embeddings=16,
        ))  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if ".mlp." in parameter_name and p.ndim == 2:
                if values == "normal":
                    p.copy_(0.6 * torch.randn(p.shape, generator=random))
                else:  # few values: ties, and weights of 0
                    p.copy_(torch.randint(-1, 2, p.shape, generator=random))
    return model.eval()


def scores_of(seed: int) -> np.ndarray:
    """Scores of which about one in eight is above a fifth of the largest; one layer has few."""
    random = np.random.default_rng(seed)
    scores = random.random((N_LAYERS, WIDTH)).astype(np.float32) * 0.2
    high = random.random((N_LAYERS, WIDTH)) < 0.13
    high[3, 2:] = False
    high[3, :2] = True, seed % 2  # one or two neurons: spans of 2 across it are there or not
    scores[high] = 0.25 + 0.75 * random.random(high.sum())
    scores[0, 0] = 1.0
    return scores


CASES = [(name, values, seed) for name in ("gpt2", "llama") for values in ("normal", "whole")
         for seed in range(4)]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A model, scores, and what the published procedure makes of them by its loops."""

    model: Any
    scores: np.ndarray
    neurons: list[tuple[int, int]]
    distances: list[list[float]]
    clusters: list[Cluster]


@functools.cache
def case_of(name: str, values: str, seed: int) -> Case:
    model, scores = make(name, values, seed), scores_of(seed)
    neurons = located(scores)
    matrix = distances(name, model, neurons)
    return Case(model, scores, neurons, matrix, clusters(neurons, matrix))


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(*request.param)


def test_neurons_come_in_the_order_of_their_scores(case: Case) -> None:
    found = select_neurons(case.scores[None], Config.released().selection).neurons
    assert [tuple(n) for n in found.tolist()] == case.neurons
    assert len(found) > 15


def test_distances_are_those_of_the_published_procedure(case: Case) -> None:
    neurons, expected = case.neurons, np.array(case.distances)
    found, _ = package(case.model, np.array(neurons, dtype=np.int32))
    reached = expected < 100
    np.testing.assert_array_equal(found < 100, reached)
    np.testing.assert_allclose(found[reached], expected[reached], rtol=1e-12)
    spans = np.array([[abs(a[0] - b[0]) for a in neurons] for b in neurons])
    for span in (1, 2, 3):
        assert reached[spans == span].any()
    assert not reached[spans > 3].any()
    if sum(l == 3 for l, _ in neurons) == 1:  # no two neurons between layers 2 and 4
        assert (~reached[spans == 2]).any()


def test_clusters_are_those_of_the_published_procedure(case: Case) -> None:
    neurons = select_neurons(case.scores[None], Config.released().selection).neurons
    _, found = package(case.model, neurons)
    assert_same(as_clusters(found), case.clusters)


def test_the_cases_have_clusters_to_compare() -> None:
    """And not always one, nor only pairs."""
    sizes = [[len(c.neurons) for c in case_of(*case).clusters] for case in CASES]
    assert sum(len(s) >= 2 for s in sizes) >= 3
    assert max(map(max, filter(None, sizes))) > 2


def test_the_order_of_the_neurons_is_part_of_it() -> None:
    model, neurons = make("gpt2", "normal", 1), located(scores_of(1))
    forth, back = (np.array(n, dtype=np.int32) for n in (neurons, neurons[::-1]))
    one, _ = package(model, forth)
    other, _ = package(model, back)
    assert not np.allclose(one, other[::-1, ::-1])
    np.testing.assert_allclose(other, np.array(distances("gpt2", model, neurons[::-1])), rtol=1e-12)


def test_only_gated_models_are_the_wrong_way_round() -> None:
    for name, turns in (("gpt2", False), ("llama", True)):
        model, neurons = make(name, "normal", 0), np.array(located(scores_of(0)), dtype=np.int32)
        one, _ = package(model, neurons)
        other, _ = package(model, neurons, direction="forward")
        assert np.array_equal(one, other) is not turns


@pytest.mark.parametrize("planted", [EITHER, BOTH], ids=["either", "both"])
def test_a_whole_run_gives_the_published_clusters(planted: Any) -> None:
    model = planted_model()
    (result,) = dkn.find_dkns(model, words_tokenizer(), [planted.fact], Config.released())
    assert result.status == "ok"
    neurons = [tuple(n) for n in result.neurons.tolist()]
    assert list(result.scores) == sorted(result.scores, reverse=True)
    expected = clusters(neurons, distances("llama", model, neurons))
    assert expected
    assert_same(as_clusters(result.components), expected)


def test_every_departure_is_a_named_option() -> None:
    """What ``Config.released()`` changes, and nothing else."""
    before, after = Config().to_dict(), Config.released().to_dict()
    changed = {
        f"{section}.{key}": value
        for section, values in after.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != before[section][key]
    }
    assert changed == {
        "facts.blank": "literal",
        "facts.answer_space": False,
        "facts.answer_special_tokens": True,
        "facts.teacher_forced": False,
        "facts.continuation": "edited_text",
        "facts.repeat_first_token": True,
        "attribution.site": "pre",
        "attribution.masked_tokens": "all",
        "attribution.mask_token": "end_of_text",
        "attribution.quadrature": "riemann_left",
        "attribution.n_steps": 20,
        "attribution.multiply_by": "first_activation",
        "attribution.answer_tokens": "sum",
        "selection.threshold": 0.2,
        "topology.direction": "reversed",
        "topology.clustering": "released",
        "topology.spans": "released",
        "topology.max_span": 3,
        "topology.end_value": 0.2,
        "filter.method": "released",
    }
    assert (before["topology"]["end"], after["topology"]["end"]) == ("quantile", "quantile")
    assert after["filter"]["released_max_drop"] == 0.05
    assert (released.UNREACHABLE, released.FINITE_BELOW) == (UNREACHABLE, 100)
