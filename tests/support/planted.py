"""A small LLaMA whose weights are set by hand, so that its degenerate neurons are known.

Two facts, each a subject and a relation that together bring up an answer:

- layer 0: attention carries the subject to the last position;
- layer 1: neurons that are active where subject and relation meet. They form disjoint sets, and
  each set writes a direction of its own;
- layer 2: as many neurons, which read the direction of their set and write one that is common to
  the fact's sets. So w(a, b) is large within a set and small across sets;
- layer 3: many weak neurons that are active where enough sets have written there, and bring up
  the answer. Its work is spread so thinly that no single neuron of it counts.

``EITHER`` needs one of its sets, ``BOTH`` needs all of them: they differ in layer 3's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from dkn_engine.types import Fact
from tests.support.tiny import VOCABULARY
from tests.support.words import text, word

D, WIDTH, N_LAYERS = 32, 256, 4
# What each direction of the residual stream stands for.
ONE, RELATION = 0, 1
SUBJECT, CARRIED, COMMON, ANSWER = (2, 3), (4, 5), (6, 7), (8, 9)
OWN = ((10, 11, 12), (13, 14))  # of the sets of each fact
BIAS = 8.0  # the length of ONE in every token; it dominates the norm, so that is almost constant
RELATION_WORD, SUBJECT_WORDS, ANSWER_WORDS, OTHER_ANSWER = 10, (5, 6), (15, 16), 20
SPREAD = 120  # neurons of layer 3 for each fact


@dataclass(frozen=True)
class Planted:
    """A fact with its sets of neurons (layer, index)."""

    fact: Fact
    sets: tuple[frozenset[tuple[int, int]], ...]

    @property
    def neurons(self) -> frozenset[tuple[int, int]]:
        return frozenset().union(*self.sets)


def _planted(f: int, name: str) -> Planted:
    prompt = text([SUBJECT_WORDS[f], RELATION_WORD])
    fact = Fact(name, prompt, word(ANSWER_WORDS[f]), subject=word(SUBJECT_WORDS[f]))
    sets = [
        frozenset((layer, i) for layer in (1, 2) for i in _of_set(f, s)) for s in range(len(OWN[f]))
    ]
    return Planted(fact, tuple(sets))


def _of_set(f: int, s: int) -> tuple[int, int]:
    """Indices of a set's two neurons, the same in layers 1 and 2."""
    first = 20 * f + 2 * s + 3
    return first, first + 1


EITHER, BOTH = _planted(0, "either"), _planted(1, "both")


@torch.no_grad()
def planted_model(noise: float = 0.01) -> Any:
    """The model; ``noise`` of every weight joins the sets by long edges, as in a trained model."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        intermediate_size=WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.copy_(noise * torch.randn(parameter.shape, generator=random))
    _words(model)
    _carry_subjects(model.model.layers[0].self_attn)
    for layer in (1, 2, 3):
        # Every neuron's linear factor is about 1.
        model.model.layers[layer].mlp.up_proj.weight[:, ONE] += 0.2
    for f in (0, 1):
        for s, own in enumerate(OWN[f]):
            for i in _of_set(f, s):
                _meet(model.model.layers[1].mlp, i, f, own)
                _pass_on(model.model.layers[2].mlp, i, f, own)
    # Where the answer begins, in sets that have written: half a set, or half a set less than all.
    _bring_up(model.model.layers[3].mlp, 0, 0.5, slope=5)
    _bring_up(model.model.layers[3].mlp, 1, len(OWN[1]) - 0.5, slope=8)
    return model


def _words(model: Any) -> None:
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    embedding[:, ONE] = BIAS
    embedding[RELATION_WORD, RELATION] += 3
    head[OTHER_ANSWER, ONE] += 0.9
    for f in (0, 1):
        embedding[SUBJECT_WORDS[f], SUBJECT[f]] += 4
        head[ANSWER_WORDS[f], ANSWER[f]] += 6


def _carry_subjects(attention: Any) -> None:
    """Equal attention to all tokens, so half of a subject arrives at the second one."""
    attention.q_proj.weight.zero_()
    for f in (0, 1):
        attention.v_proj.weight[f, SUBJECT[f]] += 1
        attention.o_proj.weight[CARRIED[f], f] += 1.6


def _meet(mlp: Any, i: int, f: int, own: int) -> None:
    """Active where subject (2) and relation (3) pass 4 together."""
    mlp.gate_proj.weight[i, CARRIED[f]] += 6
    mlp.gate_proj.weight[i, RELATION] += 6
    mlp.gate_proj.weight[i, ONE] -= 6 * 4 / BIAS
    mlp.down_proj.weight[own, i] += 0.3


def _pass_on(mlp: Any, i: int, f: int, own: int) -> None:
    mlp.gate_proj.weight[i, own] += 5
    mlp.down_proj.weight[COMMON[f], i] += 0.1


def _bring_up(mlp: Any, f: int, enough: float, slope: float) -> None:
    """One set writes about 1.24 into the common direction."""
    for i in range(SPREAD * f, SPREAD * (f + 1)):
        mlp.gate_proj.weight[i, COMMON[f]] += slope
        mlp.gate_proj.weight[i, ONE] -= slope * 1.24 * enough / BIAS
        mlp.down_proj.weight[ANSWER[f], i] = 1 / SPREAD
