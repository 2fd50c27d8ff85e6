"""Layouts: what is found in the decoders that are known, and refusals in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from tests.support import tiny as tiny_names
from tests.support import tiny_encoders
from tests.support.attribution_runs import attributed, fixed
from tests.support.tiny import FAMILIES, N_LAYERS, WIDTH, rotary, tiny
from tests.support.tiny_encoders import ENCODERS, tiny_encoder

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
}
SMALL |= {"num_attention_heads": 4}


def one_of(name: str) -> Any:
    """A tiny decoder or encoder."""
    return tiny_encoder(name) if name in ENCODERS else tiny(name)


@pytest.mark.parametrize("name", [*FAMILIES, *ENCODERS])
def test_parts_of_known_models_are_found(name: str) -> None:
    model = one_of(name)
    layout = find_layout(model)
    names = tiny_encoders if name in ENCODERS else tiny_names
    assert layout.causal is (name in FAMILIES)
    assert (layout.n_layers, layout.width, layout.d_model) == (N_LAYERS, WIDTH, 24)
    for layer, mlp in enumerate(layout.mlps):
        assert mlp.down is names.down_of(name, model, layer)
        assert mlp.act is names.act_of(name, model, layer)


@pytest.mark.parametrize("name", [*FAMILIES, *ENCODERS])
def test_a_neurons_rows_are_its_output_and_its_input(name: str) -> None:
    """w_out is the change of the MLP's output by the neuron, w_in the gradient of its input."""
    layout, neuron = find_layout(one_of(name)), 7
    mlp = layout.mlps[1]
    one = torch.zeros(2, WIDTH, dtype=torch.float64)
    one[1, neuron] = 1
    off, on = mlp.down(one).detach()
    assert torch.allclose(on - off, mlp.w_out([neuron])[0], atol=1e-15, rtol=0)
    x = torch.zeros(1, 24, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mlp.gate(x)[0, neuron], x)
    assert torch.equal(gradient[0], mlp.w_in([neuron])[0])
    if mlp.up is not None:
        (gradient,) = torch.autograd.grad(mlp.up_of(mlp.up(x))[0, neuron], x)
        assert torch.equal(gradient[0], mlp.w_in([neuron], "up")[0])


@pytest.mark.parametrize("name", [*FAMILIES, *ENCODERS])
def test_the_gate_feeds_the_non_linearity_and_up_its_factor(name: str) -> None:
    """By the model's own forward: which projection is which, and which half of a fused one."""
    model = one_of(name)
    seen: dict[str, Tensor] = {}
    mlp = find_layout(model).mlps[1]
    assert mlp.act is not None
    mlp.gate.register_forward_hook(lambda _m, _a, y: seen.update(gate=y))
    mlp.act.register_forward_hook(lambda _m, a, y: seen.update(pre=a[0], acted=y))
    mlp.down.register_forward_pre_hook(lambda _m, a: seen.update(post=a[0]))
    if mlp.up is not None:
        mlp.up.register_forward_hook(lambda _m, _a, y: seen.update(up=mlp.up_of(y)))
    model(input_ids=torch.arange(3, 9)[None])
    assert torch.equal(seen["gate"][..., :WIDTH], seen["pre"])
    assert torch.equal(seen["acted"] * seen.get("up", 1.0), seen["post"])


def test_a_linear_that_is_called_conv1d_is_read_as_a_linear() -> None:
    """A matrix ``[out, in]``, square here, so that no shape shows how it lies."""

    class Conv1D(nn.Linear):
        pass

    model = tiny("llama", intermediate_size=24)
    mlp = model.model.layers[1].mlp
    renamed_down = Conv1D(24, 24, bias=False).double()
    renamed_down.weight = mlp.down_proj.weight
    plain = find_layout(model).mlps[1].w_out(slice(None))
    mlp.down_proj = renamed_down
    assert torch.equal(find_layout(model).mlps[1].w_out(slice(None)), plain)


def test_a_plain_mlp_has_no_up_rows() -> None:
    mlp = find_layout(tiny("gpt2")).mlps[0]
    assert mlp.up is None
    with pytest.raises(UnsupportedModelError, match="no up projection"):
        mlp.w_in([0], "up")


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=61,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        pad_token_id=0,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config)


def llama4() -> Any:
    """Its experts are given what the router has scaled."""
    config = transformers.Llama4TextConfig(
        **rotary(intermediate_size_mlp=40, num_local_experts=4, interleave_moe_layer_step=1)
    )
    return transformers.Llama4ForCausalLM(config)


def mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, state_size=4
    )
    return transformers.MambaForCausalLM(config)


class Adapter(nn.Module):
    """As in LoRA: shows the weight of the layer it wraps, and adds to its output."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + x[..., :24]
        return out


def adapted() -> Any:
    model = tiny("llama")
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.down_proj = Adapter(mlp.down_proj)
    return model


def quantised() -> Any:
    model = tiny("llama")
    packed = nn.Parameter(torch.zeros(480, 1, dtype=torch.uint8), requires_grad=False)
    model.get_submodule("model.layers.1.mlp.down_proj").weight = packed
    return model


def cut() -> Any:
    model = tiny("llama")
    model.get_submodule("model.layers.2.mlp").down_proj = nn.Linear(8, 24)
    return model


def renamed() -> Any:
    model = tiny("llama")
    for layer in model.get_submodule("model.layers"):
        layer.perceptron = layer.mlp
        del layer.mlp
    return model


class Own(nn.Module):
    """A model that is none of transformers, with what its language models have."""

    config = transformers.LlamaConfig(**rotary())

    def get_output_embeddings(self) -> None:
        return None


BERT = transformers.BertConfig(**SMALL)
REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "encoder-of-sounds": (
        whisper,
        ("encoder-decoder of texts", "AutoModelForSeq2SeqLM", "WhisperForConditionalGeneration"),
    ),
    "encoder-without-a-head": (
        lambda: transformers.BertModel(BERT),
        ("causal or masked language model", "…ForMaskedLM", "found BertModel"),
    ),
    "encoder-that-does-not-look-ahead": (
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, is_decoder=True)),
        ("attends in both directions", "found BertForMaskedLM", "is_decoder=False"),
    ),
    "shared-layers": (
        lambda: tiny_encoder("albert", num_hidden_groups=1),
        ("AlbertForMaskedLM: expected each layer", "found 1 for 3 layers", "dkn_engine.load_model"),
    ),
    "two-mlps-in-a-layer": (
        lambda: tiny_encoder("albert", inner_group_num=2),
        ("one MLP in a layer", "found 2", "inner_group_num"),
    ),
    "no-head": (
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**rotary())),
        ("causal or masked language model", "found LlamaModel"),
    ),
    "experts-of-another-kind": (
        llama4,
        ("one dense MLP, or experts", "of another kind at 'feed_forward.experts'"),
    ),
    "no-mlp": (mamba, ("MambaForCausalLM.layers[0]: expected an MLP", "mixer.in_proj")),
    "renamed": (renamed, ("expected an MLP", "mlp.down_proj", "perceptron.down_proj")),
    "adapter": (
        adapted,
        ("dense floating-point projection", "found Adapter, whose", "of tests.models.test_layout"),
    ),
    "quantised": (
        quantised,
        ("dense floating-point projection", "layers[1].mlp.down_proj (Linear), which cannot be"),
    ),
    "cut": (cut, ("from 24 numbers to 8 and back", "layers[2].mlp.gate_proj from 24 to 40")),
    "of-its-own": (Own, ("causal or masked language model", "generates text", "found Own")),
    "no-transformers": (lambda: nn.Linear(2, 2), ("causal or masked language", "found Linear")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_what_was_expected_and_found(case: str) -> None:
    build, words = REFUSED[case]
    with pytest.raises(UnsupportedModelError) as raised:
        find_layout(build())
    for word in words:
        assert word in str(raised.value)


def test_the_pre_site_needs_the_non_linearity_as_a_module() -> None:
    model = tiny("llama")
    for layer in range(N_LAYERS):
        mlp = model.get_submodule(f"model.layers.{layer}.mlp")
        del mlp.act_fn
        mlp.act_fn = nn.functional.silu
    with pytest.raises(UnsupportedModelError, match=r"non-linearity to be a module .* found none"):
        attributed("llama", model, fixed(site="pre"))
    assert attributed("llama", model, fixed()).path == "sweep"


class Mine(transformers.LlamaForCausalLM):
    """A user's subclass, by a name of its own."""


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_subclass_of_a_causal_language_model_is_one(attention: str) -> None:
    model = tiny("llama")
    mine: Any = Mine(model.config)
    mine.double().eval()
    mine.load_state_dict(model.state_dict())
    for one in (model, mine):
        one.set_attn_implementation(attention)
    found, expected = (attributed("llama", m, fixed()) for m in (mine, model))
    assert (found.scores == expected.scores).all()
    assert found.path == expected.path == "sweep"


def compiled() -> Any:
    return torch.compile(tiny("llama"), backend="eager")


def compiled_in_place() -> Any:
    model = tiny("llama")
    model.compile(backend="eager")
    return model


def compiled_layer() -> Any:
    model = tiny("llama")
    model.model.layers[1].compile(backend="eager")
    return model


def compiled_mlp() -> Any:
    model = tiny("llama")
    model.model.layers[1].mlp = torch.compile(model.model.layers[1].mlp, backend="eager")
    return model


def compiled_forward() -> Any:
    model = tiny("llama")
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (compiled, r"found OptimizedModule to be compiled by torch.compile: .*_orig_mod"),
        (compiled_in_place, r"found LlamaForCausalLM to be compiled .*: give one that was not"),
        (compiled_layer, r"'model.layers.1', to be compiled"),
        (compiled_mlp, r"'model.layers.1.mlp', to be compiled .*_orig_mod"),
        (compiled_forward, r"found LlamaForCausalLM to be compiled"),
    ],
)
def test_compiled_models_are_refused_with_what_to_give_instead(build: Any, words: str) -> None:
    model = build()
    with pytest.raises(UnsupportedModelError, match=words):
        find_layout(model)
    with pytest.raises(UnsupportedModelError, match=words), dkn.intervene(model, [[0, 1]]):
        pass


def test_the_model_inside_of_a_compiled_one_is_served() -> None:
    model = tiny("llama")
    expected = attributed("llama", model, fixed())
    compiled: Any = torch.compile(model, backend="eager")
    inside = compiled._orig_mod
    assert (attributed("llama", inside, fixed()).scores == expected.scores).all()


def test_what_is_no_module_is_refused() -> None:
    for one in ("demo", None, tiny):
        with pytest.raises(UnsupportedModelError, match="model must be a causal or masked"):
            find_layout(one)  # type: ignore[arg-type]
