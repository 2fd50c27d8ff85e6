"""Neurons scaled in the weights: by hand, one number after another; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize, prune

import dkn_engine as dkn
from dkn_engine.analysis.experiments.evolvability.trainable import trainable_blocks
from dkn_engine.degeneracy.edits import enhance, suppress
from dkn_engine.degeneracy.interventions import On
from dkn_engine.degeneracy.weight_edits import scaled_weights
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from tests.models.test_threads import facts
from tests.support.brute_force_edits import edited
from tests.support.guests import Boom, mixed_model, state
from tests.support.tiny import FAMILIES, N_LAYERS, WIDTH, down_of, sequences, tiny
from tests.support.words import words_tokenizer

NEURONS = np.array([[0, 3], [0, 39], [1, 0], [2, 7], [2, 8]], dtype=np.int32)
IDS = torch.tensor([[5, 9, 30, 12, 41, 7]])
# Where the gate (or the only incoming projection) of layouts that differ in it is.
INCOMING = {
    "llama": "gate_proj",
    "phi3": "gate_up_proj",  # fused
    "nemotron": "up_proj",  # no gate
    "gpt2": "c_fc",
    "gpt_neox": "dense_h_to_4h",
    "opt": "fc1",
}
CONV1D = {"gpt2"}  # keeps weights [in, out]


BOTH: Any = "input_and_output_weights"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def by_hand(name: str, model: Any, factor: float) -> Any:
    """A copy with one number of one weight multiplied after another."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for layer, i in NEURONS.tolist():
            down: Any = down_of(name, changed, layer)
            path = FAMILIES[name].down.format(layer).rsplit(".", 1)[0]
            into: Any = changed.get_submodule(f"{path}.{INCOMING[name]}")
            for k in range(24):
                if name in CONV1D:
                    into.weight[k, i] *= factor
                    down.weight[i, k] *= factor
                else:
                    into.weight[i, k] *= factor
                    down.weight[k, i] *= factor
            if into.bias is not None:
                into.bias[i] *= factor
    return changed


@pytest.mark.parametrize("factor", [0.0, 2.0, -0.5])
@pytest.mark.parametrize("name", INCOMING)
def test_rows_in_and_out_are_scaled(name: str, factor: float) -> None:
    model = tiny(name)
    before = state(model)
    expected = by_hand(name, model, factor)
    with scaled_weights(find_layout(model), NEURONS, factor, BOTH):
        assert state(model)["weights"] == state(expected)["weights"]
        torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=0)
    assert state(model) == before


@pytest.mark.parametrize("name", INCOMING)
def test_zero_is_suppression_everywhere_and_two_is_not_enhancement(name: str) -> None:
    model = tiny(name)
    layout, everywhere = find_layout(model), range(IDS.shape[1])
    for factor, edit in ((0.0, suppress(NEURONS)), (2.0, enhance(NEURONS, 2.0))):
        with edited(name, model, edit, everywhere):
            on_values = logits(model)
        with scaled_weights(layout, NEURONS, factor, BOTH):
            on_weights = logits(model)
        assert torch.allclose(on_values, on_weights, rtol=1e-10, atol=1e-10) == (factor == 0)


def test_many_random_draws_leave_the_weights_bit_equal() -> None:
    # 1/3 is not a power of two: dividing again would not give the same bits.
    model = mixed_model("llama").float()
    before, layout, random = state(model), find_layout(model), np.random.default_rng(0)
    for _ in range(50):
        flat = random.choice(N_LAYERS * WIDTH, 11, replace=False)
        drawn = np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)
        with scaled_weights(layout, drawn, 1 / 3, BOTH):
            pass
    assert state(model) == before


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_weights_come_back_when_the_block_raises(mode: Any) -> None:
    model = mixed_model("gpt2")
    before = state(model)
    with mode(), contextlib.suppress(Boom), scaled_weights(find_layout(model), NEURONS, 0.0, BOTH):
        raise Boom
    assert state(model) == before


def test_neurons_outside_the_model_are_refused_before_anything_changes() -> None:
    model = tiny("llama")
    before = state(model)
    outside = np.array([[0, 1], [N_LAYERS, 0]], dtype=np.int32)
    with (
        pytest.raises(ValueError, match=rf"got \({N_LAYERS}, 0\)"),
        scaled_weights(find_layout(model), outside, 0.0, BOTH),
    ):
        pass
    assert state(model) == before


# --- the two definitions, by name, and what changes nothing ---


@pytest.mark.parametrize("factor", [0.0, 2.0, -0.5])
@pytest.mark.parametrize("name", INCOMING)
def test_the_public_verb_scales_the_weights_that_its_option_names(name: str, factor: float) -> None:
    model = tiny(name)
    before = state(model)
    both = logits(by_hand(name, model, factor))
    with edited(name, model, enhance(NEURONS, factor), range(IDS.shape[1])):
        output = logits(model)
    expected_of: dict[On, Any] = {"weights": output, "output_weights": output, BOTH: both}
    for on, expected in expected_of.items():
        with dkn.intervene(model, NEURONS, factor=factor, on=on):
            torch.testing.assert_close(logits(model), expected, rtol=1e-10, atol=1e-10)
    assert torch.allclose(output, both) == (factor == 0)
    assert state(model) == before


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_robustness_on_weights_is_reproduced_by_the_public_verb(name: str) -> None:
    """The table's probabilities of the enhanced N, by the user's own forwards in the block."""
    model, tokenizer = tiny(name), words_tokenizer()
    some = facts()
    lenient = dkn.Config(
        attribution=dkn.AttributionConfig(quadrature="gauss_legendre", n_steps=2),
        filter=dkn.FilterConfig(require_rank_1=False, min_probability=0.0, n_random=2),
    )
    results = dkn.find_dkns(model, tokenizer, some, lenient)
    table = dkn.analysis.robustness(
        model,
        tokenizer,
        some,
        results,
        n_random=1,
        kinds=("delete",),
        values=("zero",),
        on=("weights",),
        n_unrelated=0,
        config=lenient,
    )
    expected = []
    for one, result in zip(sequences(), results, strict=True):
        with dkn.intervene(model, result.neurons, factor=2.0, on=BOTH):
            p = model(input_ids=torch.tensor([one.ids])).logits.softmax(-1)[0].detach()
        at = [one.n_prompt - 1 + i for i in range(len(one.targets))]
        expected.append(float(p[at, list(one.targets)].prod()))
    (row,) = [
        row
        for row in table.rows
        if (row.figure, row.group) == ("probability", "N")
        and dict(row.conditions)
        == {"action": "enhance", "value": "x2", "on": "weights", "query": "clean"}
    ]
    assert row.mean == pytest.approx(np.mean(expected), rel=1e-10)


class Halved(torch.nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def pruned(module: Any) -> None:
    prune.l1_unstructured(module, "weight", amount=0.3)


def parametrised(module: Any) -> None:
    parametrize.register_parametrization(module, "weight", Halved())


def weight_normed(module: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(module)


@pytest.mark.parametrize("which", ["weights", "output_weights", BOTH])
@pytest.mark.parametrize("change", [pruned, parametrised, weight_normed])
def test_weights_that_are_computed_anew_are_refused(change: Any, which: Any) -> None:
    """A change of what is computed out of others would be gone at the next forward."""
    model = tiny("llama")
    change(down_of("llama", model, 1))
    clean = logits(model)
    with (
        pytest.raises(UnsupportedModelError, match=r"layers\[1\].mlp.down_proj.*remove"),
        dkn.intervene(model, NEURONS, on=which),
    ):
        pass
    with dkn.intervene(model, [[0, 3]], on=which):  # of a layer that is plain
        assert not torch.equal(logits(model), clean)
    with dkn.intervene(model, [[1, 0]], on="activations"):
        assert not torch.equal(logits(model), clean)
    assert torch.equal(logits(model), clean)


def test_pruned_input_weights_and_biases_are_refused_where_they_would_be_scaled() -> None:
    model = tiny("gpt_neox")
    into = model.gpt_neox.layers[1].mlp.dense_h_to_4h
    prune.l1_unstructured(into, "bias", amount=0.3)
    with dkn.intervene(model, NEURONS, on="output_weights"):
        pass
    with (
        pytest.raises(UnsupportedModelError, match=r"dense_h_to_4h: expected a bias"),
        dkn.intervene(model, NEURONS, on=BOTH),
    ):
        pass


def test_pruning_made_permanent_is_served() -> None:
    model = tiny("llama")
    down = down_of("llama", model, 1)
    pruned(down)
    prune.remove(down, "weight")
    with edited("llama", model, enhance(NEURONS, 2.0), range(IDS.shape[1])):
        expected = logits(model)
    with dkn.intervene(model, NEURONS, factor=2.0, on="weights"):
        torch.testing.assert_close(logits(model), expected, rtol=1e-10, atol=1e-10)


def test_training_pruned_rows_is_refused() -> None:
    model = tiny("llama")
    pruned(down_of("llama", model, 1))
    with pytest.raises(UnsupportedModelError, match=r"layers\[1\].mlp.down_proj.*remove"):
        trainable_blocks(model, find_layout(model), NEURONS)


# --- interventions that overlap in one thread ---


def scaled_copy(model: Any, changes: list[tuple[Any, float]], on: str) -> Any:
    """A copy with one change of rows after another; of a llama."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for neurons, factor in changes:
            for layer, i in neurons:
                mlp = changed.model.layers[layer].mlp
                mlp.down_proj.weight[:, i] *= factor
                if on == BOTH:
                    mlp.gate_proj.weight[i] *= factor
    return changed


@pytest.mark.parametrize("exits", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("on", ["weights", BOTH])
def test_weights_are_right_whatever_the_order_in_which_interventions_end(
    exits: Any, on: Any
) -> None:
    """Equal neurons and others of one layer; 1/3 and 0.7 do not commute bit for bit."""
    model = tiny("llama").float()
    before = state(model)
    changes: list[Any] = [([(0, 1), (1, 2)], 1 / 3), ([(0, 1), (0, 4)], 0.0), ([(0, 1)], 0.7)]
    blocks = [dkn.intervene(model, list(n), factor=f, on=on) for n, f in changes]
    for block in blocks:
        block.__enter__()
    left = [0, 1, 2]
    for i in exits:
        weights = state(scaled_copy(model_of(before, model), [changes[k] for k in left], on))
        assert state(model)["weights"] == weights["weights"]
        blocks[i].__exit__(None, None, None)
        left.remove(i)
    assert state(model) == before


def model_of(before: Any, like: Any) -> Any:
    """A model with the weights of a kept state."""
    found = copy.deepcopy(like)
    with torch.no_grad():
        for name, p in found.named_parameters():
            old = torch.frombuffer(bytearray(before["weights"][name]), dtype=p.dtype)
            p.copy_(old.view(p.shape))
    return found


@pytest.mark.parametrize("on", ["weights", BOTH])
def test_tasks_of_one_thread_that_overlap_leave_the_weights_as_they_were(on: Any) -> None:
    model = tiny("llama")
    before = state(model)

    async def task(start: float, length: float) -> None:
        await asyncio.sleep(start)
        with dkn.intervene(model, [(0, 1)], on=on):
            await asyncio.sleep(length)

    async def both() -> None:
        await asyncio.gather(task(0, 0.1), task(0.05, 0.1))

    asyncio.run(both())
    assert state(model) == before
