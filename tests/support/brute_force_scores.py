"""Integrated gradients the slow way: a full forward and backward a token, layer and path point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.forward.contexts import AnswerSequence
from tests.support.tiny import MASK_ID, N_LAYERS, WIDTH, act_of, down_of


class BruteForce:
    """One model and one site; every method runs the model's own forward on one sequence."""

    def __init__(self, name: str, model: nn.Module, site: str) -> None:
        part = {"post": down_of, "pre": act_of, "gate_act": act_of, "up": _up_of}[site]
        self.model, self.modules = model, [part(name, model, i) for i in range(N_LAYERS)]
        self.of_output = site in {"gate_act", "up"}

    def activations(self, ids: Sequence[int], position: int) -> Tensor:
        """``[L, F]`` at one position."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen = output if self.of_output else args[0]
            # Phi-3's gate and up are one projection, up behind.
            found.append(seen.reshape(len(ids), -1)[position, -WIDTH:].detach())

        handles = [m.register_forward_hook(keep) for m in self.modules]
        self.model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return torch.stack(found)

    def masked_baseline(self, sequence: AnswerSequence, position: int) -> Tensor:
        """Mean activations ``[L, F]`` over the copies with one prompt token masked."""
        total = torch.zeros(())
        for j in range(sequence.n_prompt):
            masked = (*sequence.ids[:j], MASK_ID, *sequence.ids[j + 1 :])
            total = total + self.activations(masked, position)
        return total / sequence.n_prompt

    def objective(
        self, ids: Sequence[int], position: int, target: int, layer: int, x: Tensor, kind: str
    ) -> Tensor:
        """Of ``target`` behind ``position``, with the activation there replaced by x."""
        replacement = replaced_output if self.of_output else replaced
        with replacement(self.modules[layer], position, x):
            logits: Tensor = self.model(input_ids=torch.tensor([ids])).logits[0, position]
        if kind == "logit":
            return logits[target]
        p = torch.softmax(logits, dim=-1)[target]
        return p if kind == "probability" else torch.log(p)

    def scores(
        self,
        sequence: AnswerSequence,
        rule: tuple[Any, Any],
        baseline: str | Tensor = "masked",
        kind: str = "probability",
        multiply_by: str = "delta",
    ) -> Tensor:
        """``[tokens, L, F]`` by a rule of (alphas, weights)."""
        every = []
        for i, target in enumerate(sequence.targets):
            position = sequence.n_prompt - 1 + i
            value = self.activations(sequence.ids, position)
            start = self.start(sequence, position, baseline)
            total = torch.zeros_like(value)
            for layer in range(N_LAYERS):
                for alpha, weight in zip(*rule, strict=True):
                    x = start[layer] + float(alpha) * (value[layer] - start[layer])
                    x.requires_grad_(True)
                    p = self.objective(sequence.ids, position, target, layer, x, kind)
                    total[layer] += float(weight) * torch.autograd.grad(p, x)[0]
            every.append(total * (value if multiply_by == "activation" else value - start))
        return torch.stack(every)

    def start(self, sequence: AnswerSequence, position: int, baseline: str | Tensor) -> Tensor:
        """The path's start ``[L, F]``."""
        if isinstance(baseline, Tensor):
            return baseline
        masked = self.masked_baseline(sequence, position)
        return masked if baseline == "masked" else torch.zeros_like(masked)

    def change(self, sequence: AnswerSequence, baseline: str | Tensor, kind: str) -> Tensor:
        """``[tokens, L]``: the objective at the clean activation minus at the baseline."""
        rows = []
        for i, target in enumerate(sequence.targets):
            position = sequence.n_prompt - 1 + i
            ends = (
                self.activations(sequence.ids, position),
                self.start(sequence, position, baseline),
            )
            row = [
                self.objective(sequence.ids, position, target, layer, ends[0][layer], kind)
                - self.objective(sequence.ids, position, target, layer, ends[1][layer], kind)
                for layer in range(N_LAYERS)
            ]
            rows.append(torch.stack(row).detach())
        return torch.stack(rows)


@contextmanager
def replaced(module: nn.Module, position: int, x: Tensor) -> Iterator[None]:
    """The module's input at one position of the only sequence is ``x``."""

    def replace(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = args[0].reshape(-1, args[0].shape[-1])  # [T, F]; OPT has no batch axis here
        rows = torch.cat([rows[:position], x.unsqueeze(0), rows[position + 1 :]])
        return (rows.view_as(args[0]),)

    handle = module.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced_output(module: nn.Module, position: int, x: Tensor) -> Iterator[None]:
    """The last of the module's outputs at one position of the only sequence are ``x``."""

    def replace(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        row = torch.cat([output[0, position, : -len(x)], x])
        rows = [output[0, :position], row.unsqueeze(0), output[0, position + 1 :]]
        return torch.cat(rows).unsqueeze(0)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _up_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    mlp = f"model.layers.{layer}.mlp"
    return model.get_submodule(f"{mlp}.gate_up_proj" if name == "phi3" else f"{mlp}.up_proj")
