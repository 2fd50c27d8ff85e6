"""Names of TransformerLens and nnsight, checked by what stands under them in the models."""

from __future__ import annotations

import functools
import re
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.forward.contexts import build_contexts
from dkn_engine.forward.prefill import prefill
from dkn_engine.interchange import nnsight_names, transformer_lens_names
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import attributed, fixed
from tests.support.tiny import FAMILIES, sequence, tiny
from tests.support.tiny_experts import tiny_experts
from tests.support.words import text, words_tokenizer

NEURONS = np.array([[2, 5], [0, 39], [2, 1], [1, 0]])
GATED = ("llama", "qwen3", "gemma3", "phi3", "mistral", "olmo2", "smollm3", "granite", "gemma2")


def under(model: Any, name: str, ids: Tensor) -> Tensor:
    """The last position of what ``name`` names: a module's first input or its output."""
    path, _, side = name.rpartition(".")
    seen: list[Tensor] = []

    def keep(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(args[0] if side == "input" else output)

    handle = model.get_submodule(path).register_forward_hook(keep)
    model(input_ids=ids)
    handle.remove()
    return seen[0].reshape(ids.shape[1], -1)[-1].detach()


@pytest.mark.parametrize("site", ["post", "pre", "up", "gate_act"])
@pytest.mark.parametrize("name", FAMILIES)
def test_nnsight_names_lead_to_the_engines_activations(name: str, site: str) -> None:
    if site in {"up", "gate_act"} and name not in GATED:
        with pytest.raises(UnsupportedModelError, match=f"site='{site}' needs a gated MLP"):
            nnsight_names(tiny(name), NEURONS, site)
        return
    model, one = tiny(name), sequence(5, 1)
    layout = find_layout(model)
    with torch.no_grad():
        clean = prefill(model, layout, build_contexts([one], torch.device("cpu")))
        assert clean.pre is not None
        gate = [m.act(x) for m, x in zip(layout.mlps, clean.pre[0], strict=True)]  # type: ignore[misc]
    engine = {
        "post": clean.post,
        "pre": clean.pre,
        "up": clean.up,
        "gate_act": torch.stack(gate)[None],
    }
    named = nnsight_names(model, NEURONS, site)
    assert len(named) == 3
    for place, indices in named.items():
        (layer,) = {int(n) for n in re.findall(r"\d+", place) if f".{n}." in place}
        wanted = NEURONS[NEURONS[:, 0] == layer, 1]
        table = engine[site]
        assert table is not None
        found = under(model, place, torch.tensor([one.ids]))[indices]
        assert torch.allclose(found, table[0, layer, wanted], rtol=1e-12, atol=0)


def test_nnsight_names_of_llama_are_spelt_as_its_users_do() -> None:
    model = tiny("llama")
    assert nnsight_names(model, NEURONS) == {
        "model.layers.0.mlp.down_proj.input": [39],
        "model.layers.1.mlp.down_proj.input": [0],
        "model.layers.2.mlp.down_proj.input": [5, 1],
    }
    assert nnsight_names(model, [[1, 3]], "up") == {"model.layers.1.mlp.up_proj.output": [3]}


def test_transformer_lens_names() -> None:
    assert transformer_lens_names(NEURONS) == {
        "blocks.0.mlp.hook_post": [39],
        "blocks.1.mlp.hook_post": [0],
        "blocks.2.mlp.hook_post": [5, 1],
    }
    assert transformer_lens_names([[1, 3]], "pre") == {"blocks.1.mlp.hook_pre": [3]}
    assert transformer_lens_names([[1, 3]], "up") == {"blocks.1.mlp.hook_pre_linear": [3]}
    assert transformer_lens_names(np.empty((0, 2), dtype=np.int32)) == {}


def clean_activations(model: Any, one: Any) -> dict[str, Tensor | None]:
    """The engine's ``[L, F]`` at the last position, by site."""
    layout = find_layout(model)
    with torch.no_grad():
        clean = prefill(model, layout, build_contexts([one], torch.device("cpu")))
    return {"post": clean.post[0], "pre": _of_one(clean.pre), "up": _of_one(clean.up)}


def _of_one(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma3", "phi3"])
def test_transformer_lens_has_the_engines_activations_under_the_names(name: str) -> None:
    """Of the real package's bridge around the same model, in which it exchanges modules."""
    sources = pytest.importorskip(
        "transformer_lens.model_bridge.sources._bridge_builder",
        reason="transformer-lens is installed by make test-all",
    )
    model, one = tiny(name, torch.float32), sequence(5, 1)
    expected = clean_activations(model, one)
    kind = type(model).__name__
    bridge = sources.build_bridge_from_module(model, kind, hf_config=model.config)
    _, cache = bridge.run_with_cache(torch.tensor([one.ids]))
    for site in ("post", "pre", *(["up"] if name in GATED else [])):
        for place, indices in transformer_lens_names(NEURONS, site).items():
            layer, table = int(place.split(".")[1]), expected[site]
            assert table is not None
            wanted = table[layer, NEURONS[NEURONS[:, 0] == layer, 1]]
            # Both in float32; the bridge asks for eager attention.
            torch.testing.assert_close(cache[place][0, -1, indices], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["post", "pre", "up", "gate_act"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_nnsight_has_the_engines_activations_under_the_names(name: str, site: str) -> None:
    if site in {"up", "gate_act"} and name not in GATED:
        return
    model, one = tiny(name, torch.float32), sequence(5, 1)
    names, found = nnsight_names(model, NEURONS, site), {}
    plain = {place: under(model, place, torch.tensor([one.ids])) for place in names}
    wrapped = real(model)
    for place in names:
        with wrapped.trace(text(one.ids)):
            part = wrapped
            for step in place.split("."):
                part = part[int(step)] if step.isdigit() else getattr(part, step)
            found[place] = part.save()
        x = found[place]
        torch.testing.assert_close(x.reshape(len(one.ids), -1)[-1], plain[place])


class Controller:
    """As nnsight 0.8 leaves one on every module that it wraps, in the place of ``forward``.

    There it stands in ``nnsight.intervention.source`` and is made by ``functools.update_wrapper``
    of the class's forward, which it calls with the module outside of a trace.
    """

    def __init__(self, module: nn.Module) -> None:
        functools.update_wrapper(self, type(module).forward)
        self.module_ref = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self.module_ref()
        return type(module).forward(module, *args, **kwargs)


Controller.__module__ = "nnsight.intervention.source"


class LanguageModel:
    """nnsight's wrapper: no module, with the model inside and its attributes."""

    def __init__(self, model: nn.Module) -> None:
        self._module = model
        for module in model.modules():
            module.forward = Controller(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


LanguageModel.__module__ = "nnsight.modeling.language"


def imitated(model: nn.Module) -> Any:
    return LanguageModel(model)


def real(model: nn.Module) -> Any:
    nnsight = pytest.importorskip("nnsight", reason="nnsight is installed by make test-all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases have another name for it
        return nnsight.LanguageModel(model, tokenizer=words_tokenizer())


@pytest.mark.parametrize("wrap", [imitated, real])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gptj"])
def test_a_model_that_nnsight_has_wrapped_is_as_it_was(name: str, wrap: Any) -> None:
    model = tiny(name)
    names = nnsight_names(model, NEURONS)
    rows = find_layout(model).mlps[1].w_out([3])
    scores = attributed(name, model, fixed()).scores
    wrapped = wrap(model)
    assert "forward" in vars(model)
    assert nnsight_names(model, NEURONS) == names
    assert nnsight_names(wrapped, NEURONS) == names
    assert torch.equal(find_layout(model).mlps[1].w_out([3]), rows)
    assert np.array_equal(attributed(name, model, fixed()).scores, scores)
    with pytest.raises(UnsupportedModelError, match=r"LanguageModel of nnsight: .*_module"):
        find_layout(wrapped)


def test_another_forward_of_an_instance_is_not_taken_for_nnsights() -> None:
    """By its name alone it might be nnsight's; it says of no class that it is passed on to."""
    model = tiny("llama")
    down = model.model.layers[1].mlp.down_proj
    own = find_layout(model).mlps[1].w_out([3])
    down.forward = functools.wraps(type(down).forward)(lambda x: type(down).forward(down, x) * 2)
    assert torch.equal(find_layout(model).mlps[1].w_out([3]), 2 * own)


def test_a_mixture_of_experts_has_no_module_to_name() -> None:
    with pytest.raises(UnsupportedModelError, match="lie in no module of a mixture of experts"):
        nnsight_names(tiny_experts("mixtral"), NEURONS)


def test_what_has_no_name_is_refused() -> None:
    with pytest.raises(UserError, match="site must be one of post, pre, up, which have a hook"):
        transformer_lens_names(NEURONS, "gate_act")
    with pytest.raises(UserError, match=r"integers \[n, 2\].* got float64 \[1, 2\]"):
        transformer_lens_names([[1.0, 2.0]])
    with pytest.raises(UserError, match=r"integers \[n, 2\].* from 0; got int64 \[1, 2\]"):
        transformer_lens_names([[1, -2]])
    with pytest.raises(UserError, match=r"below layer 3 and index 40; got \(0, 40\)"):
        nnsight_names(tiny("llama"), [[0, 40]])
    with pytest.raises(UserError, match=r"below layer 3 and index 40; got \(3, 0\)"):
        nnsight_names(tiny("llama"), [[3, 0]])
    with pytest.raises(UserError, match="site must be one of post, pre, up, gate_act"):
        nnsight_names(tiny("llama"), NEURONS, "mid")
