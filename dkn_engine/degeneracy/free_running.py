"""Edited models that go on with their own tokens: each its own text, by full forward passes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import Edit
from dkn_engine.degeneracy.edits_by_forwards import edited
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.continuation import Tokens
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import Layout

# Most token positions in one forward.
_TOKENS = 1024


def free_running(
    model: nn.Module,
    layout: Layout,
    sequence: AnswerSequence,
    edits: Sequence[Edit],
    positions: str = "answer",
    terms: Sequence[Mapping[int, float]] = (),
    *,
    of_logits: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """What P edited models say of one answer, each behind its own greedy tokens, gold or not.

    Args:
        model, layout: the decoder; it is left as it was found.
        sequence: prompt and answer; its ``free`` says how tokens follow (None: by id).
        edits: one a model.
        positions: where an edit acts in each step: ``answer``, the last position; ``answer_all``,
            also those that predicted the tokens before; ``all``, every one.
        terms: for each token, or more than the answer has, weights of tokens by their ids.
        of_logits: they are of logits; of log-probabilities else.

    Returns:
        Product float64 ``[P]`` of the gold tokens' probabilities; bool ``[P]``, none of them is
        less probable than another token; and the sum ``[P]`` of all terms.
    """
    tokens: list[Tokens] = [()] * len(edits)
    log_p, hit, value = np.zeros(len(edits)), np.ones(len(edits), dtype=bool), np.zeros(len(edits))
    first = {"answer": None, "answer_all": sequence.n_prompt - 1, "all": 0}[positions]
    for target, some in itertools.zip_longest(sequence.targets, terms):
        texts = [sequence.behind(own) for own in tokens]

        def step(
            start: int,
            stop: int,
            texts: list[Tokens] = texts,
            target: int | None = target,
            some: Mapping[int, float] | None = some,
        ) -> None:
            batch = slice(start, stop)
            logits = _last_logits(model, layout, texts[batch], edits[batch], first)
            every, likeliest = logits.log_softmax(-1), logits.argmax(-1).tolist()
            if target is not None:
                is_first = logits[:, target] >= logits.amax(-1)
                log_p[batch] += every[:, target].cpu().numpy()
                hit[batch] &= is_first.cpu().numpy()
            scores = logits if of_logits else every
            for token, weight in (some or {}).items():
                value[batch] += weight * scores[:, token].cpu().numpy()
            for i, token in enumerate(likeliest, start):
                tokens[i] += (token,)

        with guest(model, grad=False):
            in_batches(len(edits), max(1, _TOKENS // max(map(len, texts), default=1)), step)
    return np.exp(log_p), hit, value


def _last_logits(
    model: nn.Module,
    layout: Layout,
    texts: Sequence[Tokens],
    edits: Sequence[Edit],
    first: int | None,
) -> Tensor:
    """Logits float64 ``[n, V]`` at the last position of n texts, an edit each, from ``first`` on.

    Texts are padded on the right, which nothing before sees.
    """
    device = layout.device
    longest = max(map(len, texts))
    ids = torch.tensor([t + t[-1:] * (longest - len(t)) for t in texts], device=device)
    last = torch.tensor([len(t) - 1 for t in texts], device=device)
    at = torch.arange(longest, device=device)
    start = last if first is None else last.clamp(max=first)
    mask = (at >= start.unsqueeze(1)) & (at <= last.unsqueeze(1))
    with edited(layout, edits, mask):
        return position_logits(
            model, {"input_ids": ids}, torch.arange(len(ids), device=device), last
        ).double()
