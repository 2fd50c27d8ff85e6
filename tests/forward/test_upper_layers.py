"""Passes that begin where the first change is, beside passes through all layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, enhance, nothing, suppress
from dkn_engine.degeneracy.edits_by_forwards import forward_log_probabilities
from dkn_engine.degeneracy.weight_edits import scaled_weights
from dkn_engine.forward import upper_layers
from dkn_engine.forward.contexts import build_contexts
from dkn_engine.forward.prefill import prefill
from dkn_engine.forward.upper_layers import UpperLayers
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from tests.support.tiny import FAMILIES, N_LAYERS, WIDTH, sequences, tiny

TOP = N_LAYERS - 1


def some_edits() -> list[Edit]:
    """Of every layer from each one on, of one alone, and of none."""
    random = np.random.default_rng(3)
    edits = [nothing()]
    for lowest in range(N_LAYERS):
        layers = [lowest, *range(lowest, N_LAYERS)]
        index = random.choice(WIDTH, len(layers), replace=False)
        edits.append(suppress(np.stack([layers, index], axis=1)))
        edits.append(enhance([[lowest, int(index[0])]], 3.0))
    return edits


class _Begun:
    """Notes at which layers passes begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: list[int] = []
        original = upper_layers.from_layer

        def noting(layout: Any, first: int, hidden: torch.Tensor, **more: Any) -> Any:
            self.at.append(first)
            return original(layout, first, hidden, **more)

        monkeypatch.setattr(upper_layers, "from_layer", noting)


def both(model: nn.Module, positions: str) -> tuple[Any, Any]:
    """What edits make of the tokens, from the first edited layer on and through all layers."""
    layout, contexts = find_layout(model), build_contexts(sequences(), torch.device("cpu"))
    edits, n = some_edits(), len(contexts)
    edit, context = np.repeat(np.arange(len(edits)), n), np.tile(np.arange(n), len(edits))
    shuffled = np.random.default_rng(0).permutation(len(edit))
    pairs = edit[shuffled], context[shuffled]
    asked = (layout, contexts, edits, pairs, positions, 30)
    with guest(model, grad=False):
        upper = UpperLayers(layout, contexts, prefill(model, layout, contexts))
        return forward_log_probabilities(*asked, upper), forward_log_probabilities(*asked)


# Their modules cast queries and keys (transformers' modeling_gptj.py and modeling_gpt_neo.py).
IN_FLOAT32 = {"gptj", "gpt_neo"}


@pytest.mark.parametrize("positions", ["answer", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_upper_layers_give_what_all_layers_give(name: str, positions: str) -> None:
    (log_p, first, _), (expected, hit, _) = both(tiny(name), positions)
    # Some scores of attention are of float32 whatever the model's dtype; those round by the batch.
    atol = 1e-6 if name in IN_FLOAT32 else 1e-10
    torch.testing.assert_close(log_p, expected, rtol=0, atol=atol)
    assert torch.equal(first, hit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_short_numbers_they_agree_to_rounding(dtype: torch.dtype) -> None:
    (log_p, *_), (expected, *_) = both(tiny("llama", dtype), "all")
    apart = (log_p - expected).abs().max()
    assert apart <= 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["llama", "gptj"])  # whose layers return tuples
def test_passes_begin_at_the_first_edited_layer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    begun = _Begun(monkeypatch)
    both(tiny(name), "all")
    # Each layer but the lowest is tried once, and then used.
    assert set(begun.at) == set(range(1, N_LAYERS))


def test_where_a_layer_is_not_plain_all_layers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, model = _Begun(monkeypatch), tiny("llama")
    layer = find_layout(model).layers[TOP]
    with layer.register_forward_hook(lambda _m, _a, out: out * 1.5):
        (log_p, *_), (expected, *_) = both(model, "all")
    assert not begun.at
    torch.testing.assert_close(log_p, expected, rtol=0, atol=1e-12)


def test_a_stack_that_needs_its_lower_layers_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what enters a layer is not all that it reads, the trial says so."""
    model = tiny("llama")
    monkeypatch.setattr(upper_layers, "is_plain", lambda _layout: True)
    lower, upper = find_layout(model).layers[0], find_layout(model).layers[TOP]
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: torch.Tensor) -> None:
        kept[:] = [out]

    def add(_module: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor:
        below = kept.pop() if kept else torch.zeros_like(out)
        return out + below

    with lower.register_forward_hook(keep), upper.register_forward_hook(add):
        (log_p, *_), (expected, *_) = both(model, "all")
    torch.testing.assert_close(log_p, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lowest", range(N_LAYERS))
def test_scaled_weights_are_read_from_their_layer_on(lowest: int) -> None:
    model = tiny("llama")
    layout = find_layout(model)
    prompts = Prompts(model, layout, sequences())
    with scaled_weights(layout, [[lowest, 3], [TOP, 5]], 2.0, "input_and_output_weights"):
        found, whole = prompts.as_model_is(lowest), prompts.as_model_is()
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-12)
    np.testing.assert_array_equal(found[1], whole[1])
    assert not np.allclose(whole[0], prompts.probability, rtol=1e-6)
