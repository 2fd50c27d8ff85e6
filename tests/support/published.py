"""The published procedure restated from its description, from a prompt's text to its clusters.

Plain loops over the model's own forward passes and weight matrices; nothing of the package.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Neuron = tuple[int, int]
UNREACHABLE = 1000.0


@dataclass(frozen=True)
class Cluster:
    neurons: frozenset[Neuron]
    birth: float
    death: float


class Asked:
    """A model that is asked by text, with the answer's tokens one by one.

    Args:
        name: ``gpt2`` or ``llama``: where the non-linearity's inputs come from.
        model, tokenizer: of transformers.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        layers = model.transformer.h if name == "gpt2" else model.model.layers
        self.modules = [l.mlp.c_fc if name == "gpt2" else l.mlp.gate_proj for l in layers]

    def ids(self, text: str) -> list[int]:
        """Of a prompt, special tokens and all; a blank in it costs it the spaces at its ends."""
        text = text.strip() if "_X_" in text else text
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found

    def scores(self, prompt: str, answer: str, n_steps: int) -> np.ndarray:
        """Scores ``[L, F]``, summed over the answer's tokens, special ones among them.

        The activation x that multiplies the gradients and the model's most probable token are
        taken once, behind the prompt; that same token is written behind the prompt again for each
        of the answer's, and every token is masked in turn, those that were written too.
        """
        first, logits = self.activations(self.ids(prompt))
        more = self.tokenizer.decode([int(logits.argmax())])
        text, total = prompt, torch.zeros_like(first)
        for target in self.tokenizer(answer)["input_ids"]:
            ids = self.ids(text)
            total += self.gradients(ids, target, n_steps) * first / n_steps
            text += more
        return total.numpy()

    def gradients(self, ids: list[int], target: int, n_steps: int) -> Tensor:
        """Of the target's probability, summed over left points from masked to clean, ``[L, F]``."""
        x, _ = self.activations(ids)
        start = torch.zeros_like(x)
        for j in range(len(ids)):
            masked = [*ids[:j], self.tokenizer.eos_token_id, *ids[j + 1 :]]
            start += self.activations(masked)[0] / len(ids)
        total = torch.zeros_like(x)
        share = torch.arange(n_steps, dtype=x.dtype)[:, None] / n_steps
        for layer, module in enumerate(self.modules):
            # A row of the forward is a point of the path.
            points = start[layer] + (x[layer] - start[layer]) * share
            points.requires_grad_(True)
            with written(module, points):
                logits = self.model(input_ids=torch.tensor([ids] * n_steps)).logits[:, -1]
            p = torch.softmax(logits, dim=-1)[:, target]
            total[layer] = torch.autograd.grad(p.sum(), points)[0].sum(0)
        return total

    def activation(self, ids: list[int], layer: int) -> tuple[Tensor, Tensor]:
        """Input of a layer's non-linearity at the last position ``[F]``, and the logits there."""
        every, logits = self.activations(ids)
        return every[layer], logits

    def activations(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Inputs of the non-linearities at the last position ``[L, F]``, and the logits there."""
        seen: list[Tensor] = []

        def keep(_module: Any, _args: Any, output: Tensor) -> None:
            seen.append(output[0, -1])

        handles = [module.register_forward_hook(keep) for module in self.modules]
        with torch.no_grad():
            logits = self.logits(ids)
        for handle in handles:
            handle.remove()
        return torch.stack(seen), logits

    def logits(self, ids: list[int]) -> Tensor:
        found: Tensor = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
        return found

    def probability(self, prompt: str, answer: str, suppressed: Sequence[Neuron]) -> float:
        """Product of the answer tokens' probabilities; the suppressed model's own ones follow."""
        text, total = prompt, 1.0
        for target in self.tokenizer(answer)["input_ids"]:
            with zeroed(self.modules, suppressed), torch.no_grad():
                logits = self.logits(self.ids(text))
            total *= float(torch.softmax(logits, dim=-1)[target])
            text += self.tokenizer.decode([int(logits.argmax())])
        return total

    def family(
        self, prompt: str, answer: str, found: list[Cluster], max_drop: float
    ) -> list[Cluster]:
        """Clusters, of two at least, whose suppression alone costs less than a share."""
        if len(found) < 2:
            return []
        clean = self.probability(prompt, answer, [])
        left = [self.probability(prompt, answer, sorted(c.neurons)) for c in found]
        return [c for c, p in zip(found, left, strict=True) if (clean - p) / clean < max_drop]


@contextmanager
def written(module: torch.nn.Module, x: Tensor) -> Iterator[None]:
    """The module's output at the last position is ``x``: ``[F]``, or ``[B, F]``, one a row."""

    def write(_module: Any, _args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :-1], x.expand_as(output[:, -1])[:, None]], dim=1)

    handle = module.register_forward_hook(write)
    yield
    handle.remove()


@contextmanager
def zeroed(modules: Sequence[torch.nn.Module], neurons: Sequence[Neuron]) -> Iterator[None]:
    """The modules' outputs at the last position are 0 for some neurons."""

    def zero(layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, -1, [index for l, index in neurons if l == layer]] = 0
            return output

        return hook

    handles = [m.register_forward_hook(zero(i)) for i, m in enumerate(modules)]
    yield
    for handle in handles:
        handle.remove()


def located(scores: np.ndarray, share: float = 0.2) -> list[Neuron]:
    """Neurons above a share of the largest score, by descending score."""
    found = [
        (float(scores[l, i]), l, i)
        for l in range(scores.shape[0])
        for i in range(scores.shape[1])
        if scores[l, i] > share * scores.max()
    ]
    return [(l, i) for _, l, i in sorted(found, reverse=True)]


def hop(name: str, model: Any, a: Neuron, b: Neuron) -> float:
    """|1 / weight| of two neurons as if b's layer followed a's."""
    if name == "gpt2":
        # Conv1D stores [in, out]: what a writes, and what b reads.
        left = model.transformer.h[a[0]].mlp.c_proj.weight[a[1]]
        right = model.transformer.h[b[0]].mlp.c_fc.weight[:, b[1]]
    else:
        # The wrong way round: what a reads, and what b writes.
        left = model.model.layers[a[0]].mlp.gate_proj.weight[a[1]]
        right = model.model.layers[b[0]].mlp.down_proj.weight[:, b[1]]
    weight = sum(x * y for x, y in zip(left.tolist(), right.tolist(), strict=True))
    return abs(1 / weight) if weight else UNREACHABLE


def distance(
    neurons: list[Neuron], hops: dict[tuple[Neuron, Neuron], float], a: Neuron, b: Neuron
) -> float:
    """From a to a neuron b of a later layer."""
    span = b[0] - a[0]
    between = [[n for n in neurons if n[0] == l] for l in range(a[0] + 1, b[0])]
    if span == 1:
        return hops[a, b]
    if span == 2:  # two neurons of the one layer between, the one with the higher score first
        ways = list(itertools.combinations(between[0], 2))
    elif span == 3:  # one in each
        ways = [(p, q) for p in between[0] for q in between[1]]
    else:
        return UNREACHABLE
    lengths = [hops[a, p] + hops[p, q] + hops[q, b] for p, q in ways]
    return min([UNREACHABLE, *lengths])


def distances(name: str, model: Any, neurons: list[Neuron]) -> list[list[float]]:
    # Each pair once: a neuron is on thousands of ways.
    hops = {(a, b): hop(name, model, a, b) for a in neurons for b in neurons if a[0] <= b[0]}
    matrix = [[UNREACHABLE] * len(neurons) for _ in neurons]
    for i, j in itertools.product(range(len(neurons)), repeat=2):
        if i == j:
            matrix[i][i] = 0.0
        elif neurons[j][0] > neurons[i][0]:
            matrix[i][j] = matrix[j][i] = distance(neurons, hops, neurons[i], neurons[j])
    return matrix


def linear_quantile(values: list[float], q: float) -> float:
    values = sorted(values)
    place = q * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def clusters(
    neurons: list[Neuron], matrix: list[list[float]], quantile: float = 0.2
) -> list[Cluster]:
    n = len(neurons)
    pairs = list(itertools.combinations(range(n), 2))
    finite = [matrix[i][j] for i, j in pairs if matrix[i][j] < 100]
    if not finite:
        return []
    threshold = linear_quantile(finite, quantile)
    edges = [(matrix[i][j], i, j) for i, j in pairs if matrix[i][j] < threshold]
    edges.sort(key=lambda edge: edge[0])  # stable: ties stay in the order of (i, j)
    if not edges:
        return []
    birth, root, rank = [0.0] * n, list(range(n)), [0] * n
    for value, i, j in edges[: int(0.5 * len(edges))]:
        for vertex in (i, j):
            if root.count(root[vertex]) == 1:
                birth[vertex] = value
        first, second = root[i], root[j]
        if first == second:
            continue
        # The deeper tree's root stays; on ties the second one does and grows by one.
        stays, goes = (first, second) if rank[first] > rank[second] else (second, first)
        if rank[first] == rank[second]:
            rank[stays] += 1
        root = [stays if r == goes else r for r in root]
    last, least = edges[-1][0], statistics.median(birth)
    found = []
    for r in set(root):
        members = frozenset(neurons[v] for v in range(n) if root[v] == r)
        if len(members) > 1 and last - birth[r] > least:
            found.append(Cluster(members, birth[r], last))
    return found
