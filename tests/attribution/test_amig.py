"""AMIG's attribution in BERT's mode, restated in plain loops.

AMIG: architecture-adapted multilingual integrated gradients, of Chen et al. (arXiv 2308.13198).
What is restated is the code that its authors published, not an equation of the paper:
github.com/heng840/AMIG at 417b101, ``scaled_input`` and ``get_scores_for_layer`` in
``knowledge_neurons/garns.py`` with their defaults, for an answer of one token.

- The activation x is the output of a layer's ``intermediate`` part at the mask.
- Every token of the sentence, one after the other, is replaced by the mask token: special ones, and
  the mask itself, which is no change. Each copy has its activation x'_j at the mask.
- From each x'_j a path of left points leads to x. Points are averaged over j, which is the path
  from the mean of the x'_j.
- Gradients of the answer's probability at the averaged points are summed, and multiplied by x
  divided by the number of points, not by x - x'.

Their loop over ``tokenizer.encode(answer)``, which in BERT's mode scores ``[CLS]`` and ``[SEP]``
too and writes the model's own token behind the sentence each time, is left out.

The engine's ``masked`` baseline is the same mean without the copy that changes nothing; with the
mean of theirs as given baseline, and ``multiply_by="activation"``, the scores are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dkn_engine as dkn
from tests.support.tiny import N_LAYERS, WIDTH, relative_error
from tests.support.tiny_encoders import tiny_encoder
from tests.support.words import words_tokenizer

N_STEPS = 20
FACTS = [
    dkn.Fact("middle", "w5 w9 [MASK] w7", "w11"),
    dkn.Fact("begin", "[MASK] w8 w20", "w31"),
    dkn.Fact("end", "w8 w20 w3 w45 [MASK]", "w6"),
]
# Probabilities and gradients in float64; scores are kept in float32.
FLOAT32 = 2 * float(torch.finfo(torch.float32).eps)


class Amig:
    """The published procedure for one model and fact."""

    def __init__(self, model: Any, tokenizer: Any, fact: dkn.Fact) -> None:
        self.model, self.mask = model, tokenizer.mask_token_id
        text = fact.prompt.replace("[MASK]", tokenizer.mask_token)
        self.ids = tokenizer(text, return_tensors="pt")["input_ids"]
        self.at = int((self.ids[0] == self.mask).nonzero())
        self.target = tokenizer.convert_tokens_to_ids(fact.answer)
        self.parts = [layer.intermediate for layer in model.bert.encoder.layer]

    def activation(self, ids: Tensor, layer: int) -> Tensor:
        """``[F]`` at the mask."""
        seen: list[Tensor] = []
        handle = self.parts[layer].register_forward_hook(
            lambda _m, _a, output: seen.append(output[0, self.at].detach())
        )
        self.model(input_ids=ids)
        handle.remove()
        return seen[0]

    def masked(self, layer: int) -> list[Tensor]:
        """Activations ``[F]`` with each token masked in turn."""
        found = []
        for j in range(self.ids.shape[1]):
            ids = self.ids.clone()
            ids[0, j] = self.mask
            found.append(self.activation(ids, layer))
        return found

    def points(self, layer: int) -> Tensor:
        """``[S, F]``: the mean over paths, each from a masked copy's activation."""
        x = self.activation(self.ids, layer)
        paths = [
            torch.stack([start + (x - start) / N_STEPS * k for k in range(N_STEPS)])
            for start in self.masked(layer)
        ]
        return torch.stack(paths).mean(0)

    def scores(self, layer: int) -> Tensor:
        """``[F]``."""
        x, total = self.activation(self.ids, layer), torch.zeros(WIDTH, dtype=torch.float64)
        for point in self.points(layer):
            leaf = point.clone().requires_grad_(True)
            total += torch.autograd.grad(self.probability(layer, leaf), leaf)[0]
        return total * x / N_STEPS

    def probability(self, layer: int, x: Tensor) -> Tensor:
        """Of the answer, with ``x`` ``[F]`` in the place of the activation."""

        def put(_module: Any, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, self.at] = x
            return output

        handle = self.parts[layer].register_forward_hook(put)
        logits: Tensor = self.model(input_ids=self.ids).logits[0, self.at]
        handle.remove()
        found: Tensor = logits.softmax(-1)[self.target]
        return found


@pytest.fixture(scope="module")
def asked() -> tuple[Any, Any, list[Amig]]:
    model, tokenizer = tiny_encoder("bert"), words_tokenizer(ends=True)
    return model, tokenizer, [Amig(model, tokenizer, fact) for fact in FACTS]


def given(amig: Amig) -> np.ndarray:
    """The mean of all masked copies' activations, ``[L, F]``."""
    return np.stack([torch.stack(amig.masked(i)).mean(0).numpy() for i in range(N_LAYERS)])


CONFIG = dkn.AttributionConfig(
    baseline="given", quadrature="riemann_left", n_steps=N_STEPS, multiply_by="activation"
)


def test_scores_are_the_published_ones(asked: Any) -> None:
    model, tokenizer, amigs = asked
    starts = np.stack([given(amig) for amig in amigs])
    found = dkn.attribute(model, tokenizer, FACTS, CONFIG, baselines=starts)
    for scores, amig in zip(found.scores, amigs, strict=True):
        expected = np.stack([amig.scores(layer).numpy() for layer in range(N_LAYERS)])
        assert relative_error(scores, expected) < FLOAT32


def test_the_engines_baseline_leaves_out_the_copy_that_changes_nothing(asked: Any) -> None:
    """And is, with it, theirs: ((T - 1) of the engine + x) / T."""
    model, tokenizer, amigs = asked
    masked = dkn.AttributionConfig(quadrature="riemann_left", n_steps=N_STEPS)
    found = dkn.attribute(model, tokenizer, FACTS, masked)
    starts = []
    for amig in amigs:
        length, x = amig.ids.shape[1], [amig.activation(amig.ids, i) for i in range(N_LAYERS)]
        starts.append((given(amig) * length - torch.stack(x).numpy()) / (length - 1))
    expected = dkn.attribute(
        model,
        tokenizer,
        FACTS,
        dkn.AttributionConfig(baseline="given", quadrature="riemann_left", n_steps=N_STEPS),
        baselines=np.stack(starts),
    )
    assert relative_error(found.scores, expected.scores) < FLOAT32


def test_the_two_baselines_differ(asked: Any) -> None:
    model, tokenizer, amigs = asked
    config = dkn.AttributionConfig(
        quadrature="riemann_left", n_steps=N_STEPS, multiply_by="activation"
    )
    own = dkn.attribute(model, tokenizer, FACTS, config)
    starts = np.stack([given(amig) for amig in amigs])
    theirs = dkn.attribute(model, tokenizer, FACTS, CONFIG, baselines=starts)
    assert relative_error(own.scores, theirs.scores) > 1e-3
