"""Activations behind gates, and the influence of neurons on one another, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkn_engine.config import TopologyConfig
from dkn_engine.degeneracy.choices import Located
from dkn_engine.degeneracy.component_choice import (
    activation_sizes,
    graph_components,
    influence,
)
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import nothing, suppress
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from dkn_engine.topology import candidates_by_distance, weight_distances
from dkn_engine.types import Fact, Selection
from tests.models.test_guest import assert_unchanged, state
from tests.support.brute_force_edits import edited
from tests.support.tiny import N_LAYERS, WIDTH, down_of, sequences, tiny

FAMILIES = ("gpt2", "llama", "gemma3", "opt", "gptj")
POSITIONS = ("answer", "answer_all", "all")
NEURONS = np.array([[0, 3], [2, 39], [1, 17], [1, 2]], dtype=np.int32)
MEANS = np.random.default_rng(3).standard_normal((N_LAYERS, WIDTH))
# GPT-J multiplies queries with keys in float32.
CLOSE = {"gptj": 1e-5}


def prompts_of(name: str, positions: str = "answer") -> Prompts:
    model = tiny(name)
    return Prompts(model, find_layout(model), sequences(), positions=positions, warn=False)


def activations(
    name: str, model: Any, one: AnswerSequence, off: list[int], means: Any, positions: str
) -> np.ndarray:
    """``[tokens, n]``, of the neurons with some of them suppressed, one forward a token."""
    edit = suppress(NEURONS[off], means) if off else nothing()
    answers = [one.n_prompt - 1 + i for i in range(len(one.targets))]
    rows = []
    for position in answers:
        where = {"answer": [position], "answer_all": answers, "all": list(range(len(one.ids)))}
        seen: dict[int, Tensor] = {}

        def keep(layer: int, seen: dict[int, Tensor] = seen) -> Any:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen[layer] = args[0].reshape(-1, args[0].shape[-1])  # [T, F]

            return hook

        # In front of the edit, so that it sees what the neuron itself would be.
        watch = [
            down_of(name, model, i).register_forward_pre_hook(keep(i)) for i in range(N_LAYERS)
        ]
        with edited(name, model, edit, where[positions]), torch.no_grad():
            model(input_ids=torch.tensor([one.ids]))
        for handle in watch:
            handle.remove()
        rows.append([float(seen[int(l)][position, int(i)]) for l, i in NEURONS])
    return np.array(rows)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_influence_is_the_share_of_an_activation_that_one_suppression_takes(
    name: str, positions: str
) -> None:
    prompts = prompts_of(name, positions)
    before = state(prompts.model)
    means = MEANS if positions == "answer_all" else None
    closed = np.zeros(len(NEURONS)) if means is None else means[NEURONS[:, 0], NEURONS[:, 1]]
    for b, one in enumerate(sequences()):
        arguments = (name, prompts.model, one)
        clean = activations(*arguments, [], means, positions)
        expected = np.zeros((4, 4))
        for a in range(4):
            off = activations(*arguments, [a], means, positions)
            # OPT's neurons may be off as they are: then nothing of them can go.
            shares = [
                [abs(x - y) / abs(y - m) if y != m else 0.0 for x, y, m in zip(*row, strict=True)]
                for row in zip(off, clean, [closed] * len(off), strict=True)
            ]
            expected[a] = np.mean(shares, axis=0)
            expected[a, a] = 0
        found = influence(prompts, b, NEURONS, means)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=CLOSE.get(name, 1e-10))
        assert (found[NEURONS[:, 0] == 2] == 0).all()  # The highest acts on none of the others.
        assert found[0, 1] > 1e-6 or name == "opt"
        np.testing.assert_allclose(
            activation_sizes(prompts, b, NEURONS),
            np.abs(clean).mean(axis=0),
            rtol=CLOSE.get(name, 1e-9),
        )
    assert_unchanged(before, state(prompts.model))


def test_partly_open_gates_let_through_their_share() -> None:
    """Half open is half the activation, so that layers above change by what they read."""
    prompts = prompts_of("llama")
    closed = suppress(NEURONS[:1])
    (half,) = prompts.gated_activations(0, closed, np.array([[0.5]]))[0]
    (clean,) = prompts.gated_activations(0, closed, np.array([[1.0]]))[0]
    assert half == pytest.approx(clean)  # before its own gate
    several = suppress(NEURONS)
    gates = np.array([[0.5, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    half, clean, off = prompts.gated_activations(0, several, gates)[0]
    assert np.all(np.abs(half - clean)[1:3] < np.abs(off - clean)[1:3])
    assert np.all(np.abs(half - clean)[1:3] > 0)


def test_no_neurons_have_no_influence() -> None:
    assert influence(prompts_of("gpt2"), 0, NEURONS[:0]).shape == (0, 0)


def test_a_neuron_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="neurons must be below layer"):
        influence(prompts_of("gpt2"), 0, np.array([[99, 0]]))


def weights_by_hand(model: Any, neurons: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """|activation of a * W_out[a] . (gain * gate row of b)| for a below b, in a llama."""
    layers = model.model.layers
    table = np.zeros((len(neurons), len(neurons)))
    for a, (low, i) in enumerate(neurons.tolist()):
        for b, (high, j) in enumerate(neurons.tolist()):
            if low < high:
                reads = layers[high].mlp.gate_proj.weight[j]
                reads = reads * layers[high].post_attention_layernorm.weight
                written = sizes[a] * layers[low].mlp.down_proj.weight[:, i]
                table[a, b] = abs(float((written * reads).sum().detach()))
    return table


def drawn(n: int) -> np.ndarray:
    random = np.random.default_rng(7)
    flat = random.choice(N_LAYERS * WIDTH, n, replace=False)
    return np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)


@pytest.mark.parametrize("connections", ["residual", "influence"])
def test_components_are_those_of_the_graph_that_is_named(connections: Any) -> None:
    prompts, neurons = prompts_of("llama"), drawn(24)
    fact = Fact("f", "w5", "w6")
    selection = Selection(neurons, np.ones(len(neurons), np.float32))
    weighted = connections == "residual"
    config = TopologyConfig(
        connections=connections, fold_norm=weighted, by_activation=weighted, select="tree"
    )
    found = graph_components(prompts, Located(fact, 1, selection), config)
    if weighted:
        sizes = activation_sizes(prompts, 1, neurons)
        assert np.ptp(sizes) > 0
        table = weights_by_hand(prompts.model, neurons, sizes)
    else:
        table = influence(prompts, 1, neurons)
    expected = candidates_by_distance(neurons, weight_distances(neurons, table), config)
    assert len(found) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.neurons.tolist() == other.neurons.tolist()
        assert one.birth == pytest.approx(other.birth, rel=1e-6)
        assert one.death == pytest.approx(other.death, rel=1e-6)
