"""Integrated gradients the slow way: full passes over copies of one sequence, a copy a path point.

The copies are one batch. They have one length, so nothing is padded; what happens in one copy does
not reach another (``tests/attribution/test_brute_force.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dkn_engine.forward.contexts import AnswerSequence
from tests.support.tiny import MASK_ID, N_LAYERS, WIDTH, act_of, down_of

Copy = Any  # what the model reads once: a sequence's tokens
Ends = tuple[Tensor, Tensor]
Rule = tuple[Any, Any]


class Read(NamedTuple):
    """The position where an activation is put, the one that predicts, and what it predicts."""

    at: int
    position: int
    target: int


class Point(NamedTuple):
    """Of one copy: the layer in which an activation is put, and the rest as in :class:`Read`."""

    layer: int
    at: int
    position: int
    target: int


class BruteForce:
    """One model and one site; every method runs the model's own forward."""

    def __init__(self, name: str, model: nn.Module, site: str) -> None:
        part = {"post": down_of, "pre": act_of, "gate_act": act_of, "up": _up_of}[site]
        self.model, self.modules = model, [part(name, model, i) for i in range(N_LAYERS)]
        self.of_output = site in {"gate_act", "up"}

    def read_by(self, sequence: AnswerSequence) -> Copy:
        """What the model reads of it."""
        return sequence.ids

    def reads(self, sequence: AnswerSequence) -> list[Read]:
        """Each answer token is predicted where the activation moves."""
        first = sequence.n_prompt - 1
        return [Read(first + i, first + i, target) for i, target in enumerate(sequence.targets)]

    def masked_copies(self, sequence: AnswerSequence) -> list[Copy]:
        """One for each token of the prompt, with that token masked."""
        return [with_mask(sequence.ids, j) for j in range(sequence.n_prompt)]

    def logits(self, copies: Sequence[Copy]) -> Tensor:
        """``[N, T, V]``."""
        found: Tensor = self.model(input_ids=torch.tensor(copies)).logits
        return found

    def activations(self, ids: Copy, position: int) -> Tensor:
        """``[L, F]`` at one position."""
        return self.seen([ids])[:, position]

    def masked_baseline(self, sequence: AnswerSequence, position: int) -> Tensor:
        """Mean activations ``[L, F]`` over the copies with one prompt token masked."""
        return self.seen(self.masked_copies(sequence))[:, position]

    def seen(self, copies: Sequence[Copy]) -> Tensor:
        """Mean activations ``[L, T, F]`` over copies."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            whole = output if self.of_output else args[0]
            # OPT has no batch axis here. Phi-3's gate and up are one projection, up behind.
            rows = whole.detach().reshape(len(copies), -1, whole.shape[-1])
            found.append(rows[..., -WIDTH:].mean(0))

        handles = [m.register_forward_hook(keep) for m in self.modules]
        self.logits(copies)
        for handle in handles:
            handle.remove()
        return torch.stack(found)

    def objectives(self, ids: Copy, points: Sequence[Point], x: Tensor, kind: str) -> Tensor:
        """``[N]``: of each point's target, with ``x [N, F]`` put where the point says."""
        with put(self.modules, points, x, of_output=self.of_output):
            logits = self.logits([ids] * len(points))
        rows = torch.stack([logits[n, p.position] for n, p in enumerate(points)])
        if kind != "logit":
            rows = torch.softmax(rows, dim=-1)
        found = torch.stack([row[p.target] for row, p in zip(rows, points, strict=True)])
        return torch.log(found) if kind == "log_probability" else found

    def objective(
        self, ids: Copy, position: int, target: int, layer: int, x: Tensor, kind: str
    ) -> Tensor:
        """Of ``target`` behind ``position``, with the activation there replaced by x."""
        return self.objectives(ids, [Point(layer, position, position, target)], x[None], kind)[0]

    def gradients(self, ids: Copy, points: Sequence[Point], x: Tensor, kind: str) -> Tensor:
        """``[N, F]``: each copy's objective by what is put into it, which moves no other copy's."""
        x = x.detach().requires_grad_(True)
        (found,) = torch.autograd.grad(self.objectives(ids, points, x, kind).sum(), x)
        return found

    def mean_gradients(
        self, ids: Copy, reads: Sequence[Read], ends: Ends, rule: Rule, kind: str = "probability"
    ) -> Tensor:
        """``[reads, L, F]``: by a rule of (alphas, weights), between ends ``[reads, L, F]``."""
        start, value = ends
        points = [Point(layer, *read) for read in reads for layer in range(N_LAYERS)]
        nodes = [start + float(alpha) * (value - start) for alpha in rule[0]]
        x = torch.stack(nodes).view(-1, WIDTH)
        gradients = self.gradients(ids, points * len(nodes), x, kind).view(-1, *value.shape)
        weighted = [float(w) * g for w, g in zip(rule[1], gradients, strict=True)]
        return torch.stack(weighted).sum(0)

    def scores(
        self,
        sequence: AnswerSequence,
        rule: Rule,
        baseline: str | Tensor = "masked",
        kind: str = "probability",
        multiply_by: str = "delta",
    ) -> Tensor:
        """``[tokens, L, F]`` by a rule of (alphas, weights)."""
        start, value = self.ends(sequence, baseline)
        ids, reads = self.read_by(sequence), self.reads(sequence)
        mean = self.mean_gradients(ids, reads, (start, value), rule, kind)
        return mean * (value if multiply_by == "activation" else value - start)

    def ends(self, sequence: AnswerSequence, baseline: str | Tensor) -> Ends:
        """The start and the end of each token's path, ``[tokens, L, F]``."""
        places = [read.at for read in self.reads(sequence)]
        value = self.seen([self.read_by(sequence)])[:, places].transpose(0, 1)
        if isinstance(baseline, Tensor):
            return baseline.expand_as(value), value
        if baseline == "zero":
            return torch.zeros_like(value), value
        return self.seen(self.masked_copies(sequence))[:, places].transpose(0, 1), value

    def change(self, sequence: AnswerSequence, baseline: str | Tensor, kind: str) -> Tensor:
        """``[tokens, L]``: the objective at the clean activation minus at the baseline."""
        points = [Point(layer, *r) for r in self.reads(sequence) for layer in range(N_LAYERS)]
        with torch.no_grad():
            start, value = (
                self.objectives(self.read_by(sequence), points, end.reshape(-1, WIDTH), kind)
                for end in self.ends(sequence, baseline)
            )
        return (value - start).view(-1, N_LAYERS)


def with_mask(ids: Sequence[int], place: int) -> tuple[int, ...]:
    return (*ids[:place], MASK_ID, *ids[place + 1 :])


@contextmanager
def put(
    modules: Sequence[nn.Module], points: Sequence[Point], x: Tensor, *, of_output: bool = False
) -> Iterator[None]:
    """The modules' inputs, or the last of their outputs, are ``x [N, F]`` where the points say."""

    def changed(layer: int, whole: Tensor) -> Tensor:
        rows = whole.reshape(len(points), -1, whole.shape[-1]).clone()
        here = [n for n, point in enumerate(points) if point.layer == layer]
        rows[here, [points[n].at for n in here], -x.shape[1] :] = x[here]
        return rows.view_as(whole)

    handles = [
        module.register_forward_hook(lambda _module, _args, out, i=i: changed(i, out))
        if of_output
        else module.register_forward_pre_hook(
            lambda _module, args, i=i: (changed(i, args[0]), *args[1:])
        )
        for i, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _up_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    mlp = f"model.layers.{layer}.mlp"
    return model.get_submodule(f"{mlp}.gate_up_proj" if name == "phi3" else f"{mlp}.up_proj")
