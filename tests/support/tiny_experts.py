"""Tiny mixtures of experts with random weights, and brute force for them.

The brute force knows nothing of the engine: it stands in for the experts' own forward, token by
token, with the families' formulas written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from dkn_engine.forward.contexts import AnswerSequence
from tests.support.tiny import MASK_ID, N_LAYERS, redraw, rotary

_MLA: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
}
# Class, where the layer keeps its experts and its shared one, and options beside the usual.
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "intermediate_size": 10}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 5, "moe_intermediate_size": 8, "norm_topk_prob": True},
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "intermediate_size": 10}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "intermediate_size": 10, "sliding_window": 64}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_MLA,
            "moe_intermediate_size": 6,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
        },
    ),
    # Its lowest layer is a dense MLP of another size, as in the published one.
    "behind_dense": (
        "DeepseekV3",
        {
            **_MLA,
            "moe_intermediate_size": 6,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12},
    ),
}


def tiny_experts(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A tiny mixture of experts, two of a layer's to a token, in eval mode."""
    family, options = EXPERTS[name]
    options = rotary(num_experts_per_tok=2, **{**options, **changes})
    if family == "DeepseekV3":
        del options["head_dim"]
    config = getattr(transformers, f"{family}Config")(**options)
    model: Any = getattr(transformers, f"{family}ForCausalLM")(config)
    redraw(model)
    model.set_experts_implementation("eager")  # the default has no float64
    return model.to(dtype).eval()


Routing = dict[int, tuple[Tensor, Tensor]]
Forced = dict[int, Routing]


@dataclass
class Pass:
    """What a pass notes at one position, and what is changed there.

    Attributes:
        x: by layer the activations ``[F]``: each expert's times its weight, then the shared one's.
        routing: by layer the experts ``[K]`` and their weights ``[K]``.
        patch: layer and activations to put there.
        forced: a routing by layer that positions take.
    """

    position: int
    patch: tuple[int, Tensor] | None = None
    forced: Forced | None = None
    x: dict[int, Tensor] = field(default_factory=dict)
    routing: Routing = field(default_factory=dict)


class ExpertsOracle:
    """Integrated gradients of one sequence of a tiny mixture of experts, by plain loops."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self.blocks = [layer.mlp for layer in model.model.layers]

    def shared(self, layer: int) -> Any:
        block = self.blocks[layer]
        return getattr(block, "shared_experts", getattr(block, "shared_expert", None))

    def is_dense(self, layer: int) -> bool:
        return not hasattr(self.blocks[layer], "experts")

    def rows(self, layer: int) -> Tensor:
        """``[F, d]``, what each neuron adds."""
        if self.is_dense(layer):
            return self.blocks[layer].down_proj.weight.T.detach()  # type: ignore[no-any-return]
        experts, found = self.blocks[layer].experts, []
        for e in range(experts.num_experts):
            down = experts.down_proj[e]
            found.append(down if self.name == "gpt_oss" else down.T)
        if self.shared(layer) is not None:
            found.append(self.shared(layer).down_proj.weight.T)
        return torch.cat(found).detach()

    def reads(self, layer: int, which: str) -> Tensor:
        """``[F, d]``, the directions that neurons read by their gate or up rows."""
        if self.is_dense(layer):
            return getattr(self.blocks[layer], f"{which}_proj").weight.detach()  # type: ignore[no-any-return]
        experts, found = self.blocks[layer].experts, []
        for e in range(experts.num_experts):
            both = experts.gate_up_proj[e]
            if self.name == "gpt_oss":
                found.append(both.T[0 if which == "gate" else 1 :: 2])
            else:
                found.append(both.chunk(2)[0 if which == "gate" else 1])
        if self.shared(layer) is not None:
            found.append(getattr(self.shared(layer), f"{which}_proj").weight)
        return torch.cat(found).detach()

    def _inner(self, experts: Any, h: Tensor, e: int) -> Tensor:
        gate: Tensor
        if self.name != "gpt_oss":
            gate, up = (experts.gate_up_proj[e] @ h).chunk(2)
            gated: Tensor = torch.nn.functional.silu(gate) * up
            return gated
        both = h @ experts.gate_up_proj[e] + experts.gate_up_proj_bias[e]
        gate, up = both[::2].clamp(max=experts.limit), both[1::2]
        up = up.clamp(-experts.limit, experts.limit)
        inner: Tensor = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
        return inner

    def _experts(self, layer: int, run: Pass) -> Any:
        experts = self.blocks[layer].experts
        width = experts.down_proj.shape[1 if self.name == "gpt_oss" else 2]
        rows = self.rows(layer)

        def forward(hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            out = []
            for t, h in enumerate(hidden):
                chosen, factor = index[t], weights[t]
                if run.forced is not None and t in run.forced:
                    chosen, factor = run.forced[t][layer]
                x = h.new_zeros(experts.num_experts * width)
                bias: Any = 0
                for e, w in zip(chosen.tolist(), factor, strict=True):
                    own = torch.zeros_like(x)
                    own[e * width : (e + 1) * width] = 1
                    x = x + own * (w * self._inner(experts, h, e)).repeat(experts.num_experts)
                    if self.name == "gpt_oss":
                        bias = bias + w * experts.down_proj_bias[e]
                if t == run.position:
                    run.routing[layer] = (chosen.detach(), factor.detach())
                    run.x[layer] = x
                    if run.patch is not None and run.patch[0] == layer:
                        x = run.patch[1][: len(x)]
                out.append(x @ rows[: len(x)] + bias)
            return torch.stack(out)

        return forward

    def _watch_dense(self, layer: int, run: Pass) -> Any:
        def change(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            flat = args[0].reshape(-1, args[0].shape[-1])
            run.x[layer] = flat[run.position]
            if run.patch is None or run.patch[0] != layer:
                return args
            before, after = flat[: run.position], flat[run.position + 1 :]
            own = run.patch[1][: flat.shape[1]]
            return (torch.cat([before, own[None], after]).view_as(args[0]),)

        return self.blocks[layer].down_proj.register_forward_pre_hook(change)

    def _watch_shared(self, layer: int, run: Pass) -> Any:
        block, seen = self.blocks[layer], {}

        def enter(_module: Any, args: tuple[Tensor, ...]) -> None:
            seen["h"] = args[0].reshape(-1, args[0].shape[-1])[run.position]

        def change(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            flat = args[0].reshape(-1, args[0].shape[-1])
            scale: Any = 1
            if hasattr(block, "shared_expert_gate"):
                scale = torch.sigmoid(block.shared_expert_gate.weight[0] @ seen["h"])
            run.x[layer + 100] = scale * flat[run.position]
            if run.patch is None or run.patch[0] != layer:
                return args
            end = len(self.rows(layer))  # of the layer's own neurons
            own = run.patch[1][end - flat.shape[1] : end] / scale
            before, after = flat[: run.position], flat[run.position + 1 :]
            return (torch.cat([before, own[None], after]).view_as(args[0]),)

        return [
            block.register_forward_pre_hook(enter),
            self.shared(layer).down_proj.register_forward_pre_hook(change),
        ]

    @contextmanager
    def _standing_in(self, run: Pass) -> Iterator[None]:
        handles = []
        try:
            for layer, block in enumerate(self.blocks):
                if self.is_dense(layer):
                    handles.append(self._watch_dense(layer, run))
                    continue
                block.experts.forward = self._experts(layer, run)
                if self.shared(layer) is not None:
                    handles += self._watch_shared(layer, run)
            yield
        finally:
            for block in [b for b in self.blocks if hasattr(b, "experts")]:
                vars(block.experts).pop("forward", None)
            for handle in handles:
                handle.remove()

    def probability(self, ids: Sequence[int], target: int, run: Pass) -> Tensor:
        """Of ``target`` behind ``ids``; ``run`` notes what it says at its position."""
        with self._standing_in(run):
            logits = self.model(input_ids=torch.tensor([list(ids)])).logits[0, run.position]
        p: Tensor = torch.log_softmax(logits, -1)[target].exp()
        return p

    def value(self, ids: Sequence[int], target: int, run: Pass) -> float:
        """:meth:`probability` as a number."""
        return float(self.probability(ids, target, run).detach())

    def activations(self, run: Pass) -> Tensor:
        """``[L, F]`` that a pass noted, 0 where a layer has no neuron."""
        tables = []
        for layer in range(N_LAYERS):
            parts = [run.x[layer]] + ([run.x[layer + 100]] if layer + 100 in run.x else [])
            tables.append(torch.cat(parts))
        width = max(map(len, tables))
        return torch.stack([torch.cat([t, t.new_zeros(width - len(t))]) for t in tables]).detach()

    def ends(
        self, one: AnswerSequence, i: int, baseline: str, *, frozen: bool
    ) -> tuple[Tensor, Tensor, Forced | None]:
        """x and x' ``[L, F]`` of answer token i, and the routing to keep to.

        With ``frozen`` it is that of the clean pass at all positions that predict answer tokens.
        """
        position, ids = one.n_prompt - 1 + i, list(one.ids)
        passes = [Pass(one.n_prompt - 1 + k) for k in range(len(one.targets))]
        for run in passes:
            self.probability(ids, 0, run)
        forced = {run.position: run.routing for run in passes} if frozen else None
        x = self.activations(passes[i])
        if baseline == "zero":
            return x, torch.zeros_like(x), forced
        masked = []
        for j in range(one.n_prompt):
            run = Pass(position, forced=forced)
            self.probability([*ids[:j], MASK_ID, *ids[j + 1 :]], 0, run)
            masked.append(self.activations(run))
        return x, torch.stack(masked).mean(0), forced

    def scores(
        self, one: AnswerSequence, rule: Any, baseline: str, *, frozen: bool
    ) -> np.ndarray[Any, Any]:
        """``[L, F]``, the mean over the answer's tokens."""
        alphas, weights = rule
        total: Any = 0
        for i, target in enumerate(one.targets):
            x, start, forced = self.ends(one, i, baseline, frozen=frozen)
            table = torch.zeros_like(x)
            for layer in range(N_LAYERS):
                for alpha, weight in zip(alphas, weights, strict=True):
                    leaf = start[layer] + float(alpha) * (x[layer] - start[layer])
                    leaf.requires_grad_(True)
                    run = Pass(one.n_prompt - 1 + i, (layer, leaf), forced)
                    p = self.probability(one.ids, target, run)
                    (gradient,) = torch.autograd.grad(p, leaf)
                    table[layer] += float(weight) * gradient * (x[layer] - start[layer])
            total = total + table
        return (total / len(one.targets)).numpy()  # type: ignore[no-any-return]  # a tensor by now
