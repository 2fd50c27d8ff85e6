"""Scores of one gradient, each against the same gradient by other code."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dkn_engine as dkn
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores
from dkn_engine.config import AttributionConfig, Config
from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import (
    BLOCKS,
    EAGER,
    FLOAT64,
    attributed,
    require_brute_force,
    tolerance,
)
from tests.support.brute_force_scores import BruteForce
from tests.support.guests import Boom, broken, mixed_model, state
from tests.support.tiny import FAMILIES, MASK_ID, N_LAYERS, down_of, relative_error, sequences, tiny
from tests.support.tiny_encoders import sentences, tiny_encoder
from tests.support.words import text, words_tokenizer

END = ([1.0], [1.0])
METHODS: Any = ["attribution_patching", "grad_drop", "relp"]


def by(method: str, **options: Any) -> AttributionConfig:
    return AttributionConfig(**{"method": method, **options})


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", FAMILIES)
def test_attribution_patching_is_the_gradient_at_the_clean_end(name: str, site: str) -> None:
    model = tiny(name)
    found = attributed(name, model, by("attribution_patching", site=site))
    assert found.path == ("general" if name in BLOCKS else "sweep")
    require_brute_force(found, name, model, site, rule=END, allowed=tolerance(name))


@pytest.mark.parametrize("options", [{"objective": "logit"}, {"site": "up"}, {"baseline": "zero"}])
def test_attribution_patching_is_the_path_s_last_point(options: dict[str, Any]) -> None:
    """By the quadrature: one point of the right Riemann rule."""
    model = tiny("llama")
    found = attributed("llama", model, by("attribution_patching", **options))
    point = AttributionConfig(quadrature="riemann_right", n_steps=1, **options)
    assert relative_error(found.scores, attributed("llama", model, point).scores) < FLOAT64


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_attribution_patching_of_encoders_is_the_paths_last_point(name: str) -> None:
    model = tiny_encoder(name)
    point = AttributionConfig(quadrature="riemann_right", n_steps=1)
    found, expected = (
        attribute_chunk(model, find_layout(model), sentences(), config, mask_id=MASK_ID)
        for config in (by("attribution_patching"), point)
    )
    assert relative_error(found.scores, expected.scores) < EAGER


@contextlib.contextmanager
def without_layer(name: str, model: nn.Module, layer: int) -> Iterator[None]:
    """No gradient passes through one layer but by the residual stream."""
    path = FAMILIES[name].down.format(layer)
    module = model.get_submodule(path[: path.index(f".{layer}.") + len(f".{layer}")])

    def stop(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        whole = out[0] if isinstance(out, tuple) else out
        # What the layer adds, as a number; the last term only so that there is a gradient, of 0.
        mine = stream + torch.from_numpy((whole - stream).detach().numpy()) + 0 * whole
        return (mine, *out[1:]) if isinstance(out, tuple) else mine

    handle = module.register_forward_hook(stop, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "gptj", "opt"])
def test_grad_drop_is_the_mean_size_without_each_layer(name: str) -> None:
    model, oracle = tiny(name), BruteForce(name, tiny(name), "post")
    found = attributed(name, model, by("grad_drop"))
    for scores, one in zip(found.scores, sequences(), strict=True):
        total = torch.zeros(())
        for layer in range(N_LAYERS):
            with without_layer(name, oracle.model, layer):
                total = total + oracle.scores(one, END).abs() / (N_LAYERS - 1)
        assert relative_error(scores, total.mean(0)) < tolerance(name)


def frozen_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    centred = x if bias is None else x - x.mean(-1, keepdim=True)
    divisor = (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
    return centred / divisor * weight + (0 if bias is None else bias)


def frozen_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads ``[H, T, D]``."""
    t = q.shape[1]
    dots = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    seen = torch.ones(t, t, dtype=torch.bool).tril()
    weights = dots.masked_fill(~seen, -math.inf).softmax(-1).detach()
    return (weights @ v).transpose(0, 1).flatten(1)


def heads(x: Tensor, n: int) -> Tensor:
    found: Tensor = x.unflatten(-1, (n, -1)).transpose(0, 1)
    return found


def gpt2_by_rules(model: Any, ids: Tensor, probes: Tensor) -> Tensor:
    """Logits ``[T, V]`` of GPT-2 by RelP's rules, ``probes [L, T, d]`` added to MLP outputs."""
    core = model.transformer
    h = core.wte.weight[ids] + core.wpe.weight[: len(ids)]
    for block, probe in zip(core.h, probes, strict=True):
        n = frozen_norm(h, block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
        q, k, v = (n @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, -1)
        a = frozen_attention(heads(q, 4), heads(k, 4), heads(v, 4))
        h = h + a @ block.attn.c_proj.weight + block.attn.c_proj.bias
        n = frozen_norm(h, block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
        z = n @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        x = z * (functional.gelu(z, approximate="tanh") / z).detach()
        h = h + x @ block.mlp.c_proj.weight + block.mlp.c_proj.bias + probe
    h = frozen_norm(h, core.ln_f.weight, core.ln_f.bias, core.ln_f.eps)
    logits: Tensor = h @ model.lm_head.weight.T
    return logits


def llama_by_rules(model: Any, ids: Tensor, probes: Tensor) -> Tensor:
    """As :func:`gpt2_by_rules`, of LLaMA: both factors of the MLP's product get half."""
    core = model.model
    h = core.embed_tokens.weight[ids]
    cos, sin = (e[0] for e in core.rotary_emb(h[None], torch.arange(len(ids))[None]))

    def rotated(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        found: Tensor = x * cos + torch.cat([-b, a], -1) * sin
        return found

    for block, probe in zip(core.layers, probes, strict=True):
        norm, att, mlp = block.input_layernorm, block.self_attn, block.mlp
        n = frozen_norm(h, norm.weight, None, norm.variance_epsilon)
        q, k, v = (n @ p.weight.T for p in (att.q_proj, att.k_proj, att.v_proj))
        k, v = (heads(x, 2).repeat_interleave(2, 0) for x in (k, v))
        a = frozen_attention(rotated(heads(q, 4)), rotated(k), v)
        h = h + a @ att.o_proj.weight.T
        norm = block.post_attention_layernorm
        n = frozen_norm(h, norm.weight, None, norm.variance_epsilon)
        z, up = n @ mlp.gate_proj.weight.T, n @ mlp.up_proj.weight.T
        act = z * (functional.silu(z) / z).detach()
        x = (act * up.detach() + act.detach() * up) / 2
        h = h + x @ mlp.down_proj.weight.T + probe
    h = frozen_norm(h, core.norm.weight, None, core.norm.variance_epsilon)
    logits: Tensor = h @ model.lm_head.weight.T
    return logits


@pytest.mark.parametrize("objective", ["logit", "probability"])
@pytest.mark.parametrize(
    ("name", "forward", "allowed"),
    # Of LLaMA, transformers rounds what is in a norm to float32.
    [("gpt2", gpt2_by_rules, FLOAT64), ("llama", llama_by_rules, EAGER)],
)
def test_relp_is_the_gradient_of_a_forward_that_is_written_by_the_rules(
    name: str, forward: Callable[..., Tensor], allowed: float, objective: str
) -> None:
    model = tiny(name)
    found = attributed(name, model, by("relp", objective=objective))
    oracle = BruteForce(name, model, "post")
    for scores, one in zip(found.scores, sequences(), strict=True):
        ids, total = torch.tensor(one.ids), torch.zeros(())
        for i, target in enumerate(one.targets):
            at = one.n_prompt - 1 + i
            probes = torch.zeros(N_LAYERS, len(ids), 24, dtype=torch.float64, requires_grad=True)
            logits = forward(model, ids, probes)[at]
            own = model(input_ids=ids[None]).logits[0, at]
            assert relative_error(logits.detach(), own.detach()) < allowed  # the rules add nothing
            value = logits[target] if objective == "logit" else logits.softmax(-1)[target]
            (slope,) = torch.autograd.grad(value, probes)
            downs: list[Any] = [down_of(name, model, l).weight for l in range(N_LAYERS)]
            w_out: Any = torch.stack([w if name == "gpt2" else w.T for w in downs])
            to_x = torch.einsum("ld,lfd->lf", slope[:, at], w_out.detach())
            change = oracle.activations(one.ids, at) - oracle.masked_baseline(one, at)
            total = total + to_x * change / len(one.targets)
        assert relative_error(scores, total) < allowed


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt_neox", "phi3", "olmo2", "starcoder2"])
def test_relp_of_other_layouts_depends_on_no_batch(name: str) -> None:
    model = tiny(name)
    whole = attributed(name, model, by("relp"))
    assert np.isfinite(whole.scores).all()
    for scores, one in zip(whole.scores, sequences(), strict=True):
        alone = attributed(name, model, by("relp"), [one]).scores[0]
        assert relative_error(scores, alone) < EAGER


def test_relp_without_what_it_needs_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="method='relp' needs a model whose attention"):
        attributed("gptj", tiny("gptj"), by("relp"))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_said_of_what_was_not_measured(method: str) -> None:
    found: ChunkScores = attributed("llama", tiny("llama"), by(method))
    assert np.isnan(found.convergence_delta).all()
    assert np.isnan(found.error).all()
    assert not found.n_points.any()
    assert found.converged.all()


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_as_it_was(method: str) -> None:
    model = mixed_model("llama")
    before = state(model)
    attributed("llama", model, by(method))
    assert state(model) == before
    with broken(down_of("llama", model, 1)), pytest.raises(Boom):
        attributed("llama", model, by(method))
    assert state(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quadrature": "trapezoid", "n_steps": 5}, "quadrature must be left at 'adaptive'"),
        ({"method": "relp", "site": "pre"}, "site must be 'post' with method='relp'; got 'pre'"),
        (
            {"method": "grad_drop", "objective": "logit_difference"},
            "objective must be another than 'logit_difference' with method='grad_drop'",
        ),
        ({"method": "saliency"}, "method must be one of 'integrated_gradients', 'attribution_"),
    ],
)
def test_settings_that_do_not_go_together_are_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        by(**{"method": "attribution_patching", **options})
    assert message in str(caught.value)


def test_a_difference_of_logits_is_the_difference_of_scores() -> None:
    model, tokenizer = tiny("gpt2"), words_tokenizer()
    fact = dkn.Fact("a", text([5, 9, 11]), text([13]), wrong_answers=(text([17]),))
    wrong = dkn.Fact("b", text([5, 9, 11]), text([17]))
    config = by("attribution_patching", objective="logit_difference")
    found = dkn.attribute(model, tokenizer, [fact], config).scores[0]
    each = dkn.attribute(
        model, tokenizer, [fact, wrong], by("attribution_patching", objective="logit")
    ).scores
    assert relative_error(found, each[0] - each[1]) < EAGER


def test_a_run_of_the_default_is_written_as_before_the_setting_came() -> None:
    assert "method" not in Config().written()["attribution"]
    changed = Config().set("attribution.method", "relp")
    assert changed.written()["attribution"]["method"] == "relp"
    assert changed.hash != Config().hash
    assert Config.from_dict(Config().written()) == Config()
    assert Config.from_dict(changed.written()) == changed


class OtherNorm(nn.Module):
    """Called a norm, and none: it divides by the largest entry."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(-1, keepdim=True)


def test_relp_names_what_it_has_no_rule_for() -> None:
    model = tiny("llama")
    model.model.layers[1].post_attention_layernorm = OtherNorm()
    with pytest.raises(UnsupportedModelError, match="needs norms of a constant gain; found OtherN"):
        attributed("llama", model, by("relp"))
    plain = tiny("gpt2")
    for block in plain.transformer.h:  # a function, which no hook sees
        act = block.mlp.act
        del block.mlp.act
        block.mlp.act = act.forward
    with pytest.raises(UnsupportedModelError, match="needs the non-linearity to be a module"):
        attributed("gpt2", plain, by("relp"))


def test_a_page_says_that_there_was_no_path(tmp_path: Path) -> None:
    config = dkn.Config(
        attribution=by("attribution_patching"),
        filter=dkn.FilterConfig(require_rank_1=False, min_probability=0.0, n_random=1),
    )
    fact = dkn.Fact("a", text([5, 9, 11]), text([13]))
    results = dkn.find_dkns(tiny("gpt2", torch.float32), words_tokenizer(), [fact], config)
    assert np.isnan(results[0].convergence_delta).all()
    page = results.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no convergence delta: scores of one gradient have no path" in page
