"""Tiny mixtures of experts with random weights, and brute force for them.

The brute force knows nothing of the engine: it stands in for the experts' own forward, expert by
expert, with the families' formulas written out.
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
from torch.nn import functional

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
    """What a pass over copies of a sequence notes at one position, and what is changed there.

    Attributes:
        position: in each copy.
        patches: of each copy a layer and the activations ``[F]`` to put there, if any.
        forced: a routing by layer that positions take.
        x: by layer and first neuron activations ``[N, F]``: each expert's times its weight; behind
            them the shared one's.
        routing: by layer the experts ``[K]`` of the first copy and their weights ``[K]``.
        n: how many copies there are.
    """

    position: int
    patches: Sequence[tuple[int, Tensor]] = ()
    forced: Forced | None = None
    x: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    routing: Routing = field(default_factory=dict)
    n: int = 1

    def by_copy(self, flat: Tensor) -> Tensor:
        """``[N, T, ...]`` of all positions."""
        return flat.reshape(self.n, -1, flat.shape[-1])

    def patched(self, layer: int, flat: Tensor, first: int = 0, scale: Any = 1) -> Tensor:
        """Neurons from ``first`` on, which count ``scale`` times: noted, then as they shall be."""
        x = self.by_copy(flat).clone()
        self.x[layer, first] = (scale * x[:, self.position]).detach()
        scales = scale if isinstance(scale, Tensor) else torch.ones(self.n, 1)
        for n, (changed, value) in enumerate(self.patches):
            if changed == layer:
                x[n, self.position] = value[first : first + x.shape[-1]] / scales[n]
        return x.view_as(flat)

    def routed(self, layer: int, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and weights ``[N * T, K]``: the router's, but where another one is forced."""
        index, weights = self.by_copy(index).clone(), self.by_copy(weights).clone()
        for position, routing in (self.forced or {}).items():
            index[:, position], weights[:, position] = routing[layer]
        here = index[0, self.position].detach(), weights[0, self.position].detach()
        self.routing[layer] = here
        return index.flatten(0, 1), weights.flatten(0, 1)


class ExpertsOracle:
    """Integrated gradients of one sequence of a tiny mixture of experts, a copy a path point."""

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
        """What expert ``e``'s neurons make of each row ``[rows, d]``."""
        gate: Tensor
        if self.name != "gpt_oss":
            gate, up = (h @ experts.gate_up_proj[e].T).chunk(2, -1)
            gated: Tensor = functional.silu(gate) * up
            return gated
        both = h @ experts.gate_up_proj[e] + experts.gate_up_proj_bias[e]
        gate, up = both[:, ::2].clamp(max=experts.limit), both[:, 1::2]
        up = up.clamp(-experts.limit, experts.limit)
        inner: Tensor = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
        return inner

    def _experts(self, layer: int, run: Pass) -> Any:
        experts, rows = self.blocks[layer].experts, self.rows(layer)

        def forward(hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            index, weights = run.routed(layer, index, weights)
            parts, bias = [], torch.zeros(())
            for e in range(experts.num_experts):
                w = (weights * (index == e)).sum(-1, keepdim=True)  # 0 of tokens of other experts
                parts.append(w * self._inner(experts, hidden, e))
                if self.name == "gpt_oss":
                    bias = bias + w * experts.down_proj_bias[e]
            x = run.patched(layer, torch.cat(parts, -1))
            return x @ rows[: x.shape[-1]] + bias

        return forward

    def _watch_dense(self, layer: int, run: Pass) -> Any:
        return self.blocks[layer].down_proj.register_forward_pre_hook(
            lambda _module, args: (run.patched(layer, args[0]),)
        )

    def _watch_shared(self, layer: int, run: Pass) -> Any:
        block, seen = self.blocks[layer], {}

        def enter(_module: Any, args: tuple[Tensor, ...]) -> None:
            seen["h"] = run.by_copy(args[0])[:, run.position]

        def change(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            scale: Any = 1
            if hasattr(block, "shared_expert_gate"):
                scale = torch.sigmoid(seen["h"] @ block.shared_expert_gate.weight.T)
            first = len(self.rows(layer)) - args[0].shape[-1]
            return (run.patched(layer, args[0], first, scale),)

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

    def probabilities(self, copies: Sequence[Sequence[int]], target: int, run: Pass) -> Tensor:
        """``[N]`` of ``target``; ``run`` notes what each copy says at its position."""
        run.n = len(copies)
        with self._standing_in(run):
            logits = self.model(input_ids=torch.tensor(copies)).logits[:, run.position]
        p: Tensor = torch.log_softmax(logits, -1)[:, target].exp()
        return p

    def values(self, ids: Sequence[int], target: int, run: Pass) -> list[float]:
        """:meth:`probabilities` as numbers, of as many copies as the run has patches."""
        found: list[float] = self.probabilities([ids] * len(run.patches), target, run).tolist()
        return found

    def activations(self, run: Pass) -> Tensor:
        """``[L, N, F]`` that a pass noted, 0 where a layer has no neuron."""
        tables = [
            torch.cat([run.x[key] for key in sorted(run.x) if key[0] == layer], -1)
            for layer in range(N_LAYERS)
        ]
        width = max(t.shape[-1] for t in tables)
        return torch.stack([functional.pad(t, (0, width - t.shape[-1])) for t in tables])

    def ends(
        self, one: AnswerSequence, i: int, baseline: str, *, frozen: bool
    ) -> tuple[Tensor, Tensor, Forced | None]:
        """x and x' ``[L, F]`` of answer token i, and the routing to keep to.

        With ``frozen`` it is that of the clean pass at all positions that predict answer tokens.
        """
        ids = one.ids
        passes = [Pass(one.n_prompt - 1 + k) for k in range(len(one.targets))]
        for run in passes:
            self.probabilities([ids], 0, run)
        forced = {run.position: run.routing for run in passes} if frozen else None
        x = self.activations(passes[i])[:, 0]
        if baseline == "zero":
            return x, torch.zeros_like(x), forced
        run = Pass(passes[i].position, forced=forced)
        copies = [(*ids[:j], MASK_ID, *ids[j + 1 :]) for j in range(one.n_prompt)]
        self.probabilities(copies, 0, run)
        return x, self.activations(run).mean(1), forced

    def scores(
        self, one: AnswerSequence, rule: Any, baseline: str, *, frozen: bool
    ) -> np.ndarray[Any, Any]:
        """``[L, F]``, the mean over the answer's tokens."""
        alphas, weights = rule
        total: Any = 0
        for i, target in enumerate(one.targets):
            x, start, forced = self.ends(one, i, baseline, frozen=frozen)
            nodes = torch.stack([start + float(alpha) * (x - start) for alpha in alphas])
            nodes.requires_grad_(True)  # [S, L, F]
            patches = [(layer, own) for node in nodes for layer, own in enumerate(node)]
            run = Pass(one.n_prompt - 1 + i, patches, forced)
            p = self.probabilities([one.ids] * len(patches), target, run)
            (gradients,) = torch.autograd.grad(p.sum(), nodes)  # a copy's is of its own node
            for gradient, weight in zip(gradients, weights, strict=True):
                total = total + float(weight) * gradient * (x - start)
        return (total / len(one.targets)).numpy()  # type: ignore[no-any-return]  # a tensor by now
