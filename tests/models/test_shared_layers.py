"""ALBERT's runs of one layer as layers of their own, with the weights that they share."""

from __future__ import annotations

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.degeneracy.weight_edits import scaled_weights
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from dkn_engine.models.shared_layers import separate_layers
from tests.support.tiny import N_LAYERS
from tests.support.tiny_encoders import sentences, tiny_encoder

IDS = torch.tensor([sentences()[0].ids])


@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_the_model_computes_the_same_with_the_same_weights(n_groups: int) -> None:
    model = tiny_encoder("albert", num_hidden_groups=n_groups)
    before, tensors = model(input_ids=IDS).logits, {id(p) for p in model.parameters()}
    separate_layers(model)
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert {id(p) for p in model.parameters()} == tensors
    layout = find_layout(model)
    assert layout.n_layers == len({id(mlp.down) for mlp in layout.mlps}) == N_LAYERS


def test_a_neuron_of_one_run_is_not_that_of_another() -> None:
    """Suppressed in its second run alone, as a loop over the runs of the shared layer does it."""
    shared, model = (tiny_encoder("albert", num_hidden_groups=1) for _ in range(2))
    separate_layers(model)
    runs = []

    def off(_module: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        runs.append(args[0].clone())
        if len(runs) == 2:
            runs[-1][..., 7] = 0
        return (runs[-1],)

    down = shared.albert.encoder.albert_layer_groups[0].albert_layers[0].ffn_output
    handle = down.register_forward_pre_hook(off)
    expected = shared(input_ids=IDS).logits
    handle.remove()
    assert len(runs) == N_LAYERS
    with dkn.intervene(model, [(1, 7)]):
        found = model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, model(input_ids=IDS).logits)


def test_weights_that_runs_share_are_not_scaled_for_one_of_them() -> None:
    model = tiny_encoder("albert", num_hidden_groups=1)
    separate_layers(model)
    with (
        pytest.raises(UnsupportedModelError, match="weights of its own"),
        scaled_weights(find_layout(model), [(1, 7)], 0.0, "output_weights"),
    ):
        pass


def test_other_models_are_left_alone() -> None:
    model = tiny_encoder("bert")
    before = [id(m) for m in model.modules()]
    separate_layers(model)
    assert [id(m) for m in model.modules()] == before
