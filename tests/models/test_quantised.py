"""Quantised models, by the libraries themselves: their results are those of the plain numbers.

The oracle is a model of plain projections whose weights the library's own functions unpack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.affine import require_linear
from dkn_engine.models.connections import layer_weights
from dkn_engine.models.dequantized import dequantized
from dkn_engine.models.fingerprint import identity_of, model_fingerprint
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import attributed, fixed
from tests.support.saved import many_facts, save_tiny
from tests.support.tiny import relative_error
from tests.support.words import words_tokenizer

# The same numbers in float32, multiplied by other functions: some tens of rounding steps.
FLOAT32 = 100 * float(torch.finfo(torch.float32).eps)
Weight = Callable[[Any], torch.Tensor]
TORCHAO = (
    "torchao is not installed: beside torch for CPUs it prints to stderr of every program that "
    "imports transformers; make test-all installs it"
)


def nf4() -> tuple[Any, Weight]:
    bnb = pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    unpack = bnb.functional.dequantize_4bit
    return config, lambda m: unpack(m.weight.data, m.weight.quant_state)


def llm_int8() -> tuple[Any, Weight]:
    pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return config, lambda m: m.weight.data * m.weight.SCB[:, None] / 127


def torchao_int8() -> tuple[Any, Weight]:
    quantization = pytest.importorskip("torchao.quantization", reason=TORCHAO)
    config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return config, lambda m: m.weight.dequantize()


def torchao_int8_inputs() -> tuple[Any, Weight]:
    quantization = pytest.importorskip("torchao.quantization", reason=TORCHAO)
    config = transformers.TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
    return config, lambda m: m.weight.dequantize()


def quanto_int8() -> tuple[Any, Weight]:
    pytest.importorskip("optimum.quanto")
    return transformers.QuantoConfig(weights="int8"), lambda m: m.weight.dequantize()


LINEAR = {"bitsandbytes nf4": nf4, "torchao int8": torchao_int8, "quanto int8": quanto_int8}
ROUNDING = {"bitsandbytes int8": llm_int8, "torchao int8 inputs": torchao_int8_inputs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def quantised(folder: Path, config: Any) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    return model.eval()


def dequantised(folder: Path, model: Any, weight: Weight) -> Any:
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    packed = dict(model.named_modules())
    n = 0
    for path, module in plain.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            with torch.no_grad():
                new = weight(packed[path]).float()
                n += int(not torch.equal(new, module.weight))
                module.weight.copy_(new)
    assert n == 3 * 7  # all of them were quantised
    return plain.eval()


@pytest.mark.parametrize("kind", LINEAR)
def test_a_quantised_model_gives_what_its_plain_numbers_give(folder: Path, kind: str) -> None:
    config, weight = LINEAR[kind]()
    model = quantised(folder, config)
    plain = dequantised(folder, model, weight)
    for site in ("post", "pre"):
        found, expected = (attributed("llama", m, fixed(site=site)) for m in (model, plain))
        assert found.path == expected.path == "sweep"
        assert relative_error(found.scores, expected.scores) < FLOAT32
    for config_ in (dkn.TopologyConfig(), dkn.TopologyConfig(input_weights="up", fold_norm=True)):
        for rows, own in zip(
            layer_weights(model, config_), layer_weights(plain, config_), strict=True
        ):
            for a, b in zip(rows, own, strict=True):
                assert relative_error(a, b) < FLOAT32


@pytest.mark.parametrize("kind", LINEAR)
def test_find_on_a_quantised_model_and_its_identity(folder: Path, kind: str) -> None:
    config, weight = LINEAR[kind]()
    model, tokenizer = quantised(folder, config), words_tokenizer()
    before = (model_fingerprint(model), identity_of(model, tokenizer))
    plain = dequantised(folder, model, weight)
    facts = many_facts(plain, 6)
    found, expected = (dkn.find_dkns(m, tokenizer, facts) for m in (model, plain))
    assert [r.status for r in found] == [r.status for r in expected]
    known = [(a, b) for a, b in zip(found, expected, strict=True) if b.status == "ok"]
    assert len(known) >= 2
    for one, other in known:
        np.testing.assert_array_equal(one.neurons, other.neurons)
        assert relative_error(one.scores, other.scores) < FLOAT32
        if len(other.subset_probabilities):
            assert relative_error(one.subset_probabilities, other.subset_probabilities) < FLOAT32
    assert (model_fingerprint(model), identity_of(model, tokenizer)) == before
    assert identity_of(plain, tokenizer).fingerprint != before[0]


@pytest.mark.parametrize("kind", ROUNDING)
def test_a_model_that_rounds_its_inputs_too_is_refused_by_name(folder: Path, kind: str) -> None:
    config, _ = ROUNDING[kind]()
    with pytest.raises(UnsupportedModelError, match=r"linear in its input.*mlp\.down_proj \("):
        find_layout(quantised(folder, config))


def test_a_4_bit_model_that_was_used_before_keeps_its_numbers(folder: Path) -> None:
    """bitsandbytes repacks for some CPUs at a first pass without gradients; not in a call."""
    config, _ = nf4()
    model = quantised(folder, config)
    expected = attributed("llama", model, fixed()).scores
    assert np.array_equal(attributed("llama", copy.deepcopy(model), fixed()).scores, expected)
    state = model.model.layers[1].mlp.down_proj.weight.quant_state
    assert not getattr(state, "packing_format_for_cpu", False)


def test_weights_that_cannot_be_saved_are_unpacked_in_place(folder: Path) -> None:
    config, weight = quanto_int8()
    model = quantised(folder, config)
    plain = dequantised(folder, model, weight)
    found = dequantized(model, torch.float32)
    assert not hasattr(found.config, "quantization_config")
    for path, own in plain.state_dict().items():
        assert torch.equal(found.state_dict()[path], own)


@pytest.mark.parametrize("kind", sorted(LINEAR.keys() - {"quanto int8"} | ROUNDING.keys()))
def test_load_model_unpacks_what_was_saved_quantised(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    config, weight = (LINEAR | ROUNDING)[kind]()
    model = quantised(folder, config)
    plain = dequantised(folder, model, weight)
    model.save_pretrained(tmp_path)
    words_tokenizer().save_pretrained(tmp_path)
    loaded, _ = dkn.load_model(tmp_path, "cpu", dequantize=True)
    for path, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            own = loaded.get_submodule(path)
            assert type(own) is nn.Linear
            assert relative_error(own.weight.detach(), module.weight.detach()) < FLOAT32
    found, expected = (attributed("llama", m, fixed()) for m in (loaded, plain))
    assert relative_error(found.scores, expected.scores) < FLOAT32
    if kind in LINEAR:
        packed, _ = dkn.load_model(tmp_path, "cpu")
        assert relative_error(attributed("llama", packed, fixed()).scores, found.scores) < FLOAT32


def test_a_plain_model_is_loaded_as_it_is(folder: Path) -> None:
    plain, _ = dkn.load_model(folder, "cpu", dequantize=True)
    expected, _ = dkn.load_model(folder, "cpu")
    assert model_fingerprint(plain) == model_fingerprint(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_inputs_are_told_from_short_dtypes(dtype: torch.dtype) -> None:
    """At the sizes of real models: LLM.int8 is refused, a plain sum of two products is not."""
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    base = nn.Linear(256, 576)
    int8 = bnb.nn.Linear8bitLt(256, 576, has_fp16_weights=False, threshold=6.0)
    int8.load_state_dict(base.state_dict())
    int8 = int8.to("cpu")
    int8.bias.data = int8.bias.data.to(dtype)
    with pytest.raises(UnsupportedModelError, match=r"found here \(Linear8bitLt\), which gives"):
        require_linear(int8, "here")

    class Sum(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 2 * super().forward(x)

    require_linear(Sum(256, 576).to(dtype), "here")
