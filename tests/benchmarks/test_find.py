"""The benchmark of the whole of ``find``: what it is timed beside, other commits, the calculation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.find.published import Settings, after_scores, published
from benchmarks.speed import peers
from dkn_engine.models.layout import find_layout
from tests.support import published as plain
from tests.support.tiny import MASK_ID, sequence, tiny

# --- the published procedure ---


class Numbers:
    """A tokenizer whose texts are their tokens' numbers."""

    eos_token_id = MASK_ID

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids)


@pytest.fixture(params=["gpt2", "llama"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def case_of(name: str, model: Any) -> peers.Case:
    return peers.Case(model, find_layout(model), sequence(6, 1), MASK_ID, "pre")


def test_published_stages_are_those_of_the_plain_loops(name: str) -> None:
    model = tiny(name)
    case = case_of(name, model)
    asked = plain.Asked(name, model, Numbers())
    prompt, answer = (" ".join(map(str, ids)) for ids in (case.sequence.ids, [case.target]))
    scores = asked.scores(prompt, answer, 5)
    sizes = []
    for share, quantile in ((0.01, 0.05), (0.05, 0.05), (0.2, 0.2)):
        neurons = plain.located(scores, share)
        matrix = plain.distances(name, model, neurons)
        clusters = plain.clusters(neurons, matrix, quantile)
        family = asked.family(prompt, answer, clusters, 0.3)
        found = published(case, Settings(5, share, quantile, 0.3))
        assert [tuple(n) for n in found.neurons.tolist()] == neurons
        assert members(found.neurons, found.clusters) == {c.neurons for c in clusters}
        assert members(found.neurons, found.family) == {c.neurons for c in family}
        sizes.append((len(clusters), len(family)))
    assert max(n for n, _ in sizes) >= 2
    assert any(kept for _, kept in sizes)


def members(neurons: np.ndarray, clusters: Any) -> set[frozenset[tuple[int, int]]]:
    return {frozenset((int(l), int(i)) for l, i in neurons[at]) for at in clusters}


def test_published_procedure_without_neurons_in_adjacent_layers_has_no_clusters(name: str) -> None:
    case = case_of(name, tiny(name))
    scores = np.zeros((case.layout.n_layers, case.layout.width))
    scores[0, [3, 5]] = 1.0
    found = after_scores(case, scores)
    assert found.neurons.tolist() == [[0, 3], [0, 5]]
    assert (found.clusters, found.family) == ([], [])


@pytest.mark.parametrize("peer", [peers.released, peers.captum, peers.lean])
def test_peers_take_16_bits(name: str, peer: Any) -> None:
    """NumPy has no bfloat16; the scores are those of float32 but for rounding."""
    model = tiny(name, torch.float32)
    case = peers.Case(model, find_layout(model), sequence(6, 1), MASK_ID)
    exact = peer(case, 4)
    model.bfloat16()
    found = peer(case, 4)
    assert found.dtype == np.float32
    # Three layers of products of 40 terms, each rounded to 8 bits.
    assert np.linalg.norm(found - exact) < 0.2 * np.linalg.norm(exact)
