"""Mean attribution of sets of neurons, for one statement after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.experiments.fact_check.statements import topic
from dkn_engine.analysis.neuron_groups import NeuronGroups
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.continuation import Tokens
from dkn_engine.models.layout import Layout
from dkn_engine.neurons import random_sets, union
from dkn_engine.seeds import generator
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn

# Sets of neurons by group (``D``, ``N``, ``Rnd``); several of a random group.
Sets = Mapping[str, Sequence[NDArray[np.int32]]]
_CHUNK = 8


def mean_attributions(
    model: nn.Module,
    layout: Layout,
    sequences: Sequence[AnswerSequence],
    sets: Sequence[Sequence[NDArray[np.int32]]],
    config: AttributionConfig,
    mask_id: int | None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """The mean score over each set's neurons, statement by statement, and the answers' probability.

    Args:
        model, layout, config, mask_id: see :func:`attribute_chunk`.
        sequences: n statements.
        sets: for each statement its sets int32 ``[k, 2]``; only their scores are kept.
        progress: called with the number of statements done.

    Returns:
        For each statement float64 ``[number of its sets]``, NaN for an empty set; and float64
        ``[n]``.
    """
    means: list[NDArray[np.float64]] = [np.empty(0)] * len(sequences)
    probability = np.empty(len(sequences))
    order = _chunk_order(sequences)
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        found = attribute_chunk(
            model, layout, [sequences[i] for i in chunk], config, mask_id=mask_id
        )
        probability[chunk] = found.probability
        for i, scores in zip(chunk, found.scores, strict=True):
            of_sets = (scores[s[:, 0], s[:, 1]] for s in sets[i])
            means[i] = np.array([x.mean(dtype=np.float64) if len(x) else math.nan for x in of_sets])
        if progress is not None:
            progress(start + len(chunk))
    return means, probability


def _chunk_order(sequences: Sequence[AnswerSequence]) -> list[int]:
    """Statements in chunks of like lengths, those of one prompt beside each other.

    So little is padded, and what is read of a prompt serves all that is stated of it; the longest
    come first, so that memory is seen early.
    """
    length: dict[Tokens, int] = {}
    for one in sequences:
        prompt = one.ids[: one.n_prompt]
        length[prompt] = max(length.get(prompt, 0), len(one.ids))
    place = {prompt: i for i, prompt in enumerate(length)}

    def key(i: int) -> tuple[int, int, int]:
        prompt = sequences[i].ids[: sequences[i].n_prompt]
        return -length[prompt], place[prompt], i

    return sorted(range(len(sequences)), key=key)


def golden_sets(one: NeuronGroups) -> Sets:
    """The fact's own neurons; no D and Rnd without a DKN."""
    return {"D": [one.d][: one.has_dkn], "N": [one.n], "Rnd": one.rnd}


def practical_sets(
    facts: Sequence[Fact],
    folds: Mapping[str, int],
    groups: Mapping[str, NeuronGroups],
    share: float | None,
    widths: int | Sequence[int],
    n_random: int,
    seed: int,
) -> dict[str, Sets]:
    """By fact id, what the facts of its relation in all other folds teach about its neurons.

    D are the neurons of their DKNs, N their knowledge neurons: all of them, or those found in more
    than a share of the facts that have any; Rnd are others, as many as D in each layer.

    Args:
        facts: of which sets are wanted; a fact without a relation has none.
        folds: of each fact, by its id.
        groups: of the known ones among them, by id.
        share: None for all.
        widths: neurons of each layer, or of all.
        n_random, seed: of the draws, which depend on the seed, the relation and the fold alone.
    """
    found: dict[tuple[str, int], Sets] = {}
    for fact in facts:
        if fact.relation is None:
            continue
        key = (fact.relation, folds[fact.id])
        if key in found:
            continue
        training = [
            groups[f.id]
            for f in facts
            if f.relation == fact.relation and folds[f.id] != key[1] and f.id in groups
        ]
        d = _common([g.d for g in training if g.has_dkn], share)
        n = _common([g.n for g in training], share)
        rng = generator(seed, "relation", fact.relation, str(key[1]))
        rnd = [random_sets([d], union([d, n]), widths, rng)[0] for _ in range(n_random)]
        found[key] = {"D": [d] if len(d) else [], "N": [n], "Rnd": rnd if len(d) else []}
    return {f.id: found[f.relation, folds[f.id]] for f in facts if f.relation is not None}


def _common(sets: Sequence[NDArray[np.int32]], share: float | None) -> NDArray[np.int32]:
    """Neurons of more than a share of the sets; of any if None."""
    if share is None or not sets:
        return union(sets)
    neurons, counts = np.unique(np.concatenate(sets), axis=0, return_counts=True)
    found: NDArray[np.int32] = neurons[counts > share * len(sets)].astype(np.int32)
    return found


def deal(facts: Sequence[Fact], n_folds: int, seed: int) -> dict[str, int]:
    """A fold for each fact id; each relation's topics are dealt as evenly as can be.

    Facts that differ in their date alone are one topic: else a fold would know what it is tested
    on from another year.
    """
    topics: dict[str | None, dict[object, list[str]]] = {}
    for fact in facts:
        topics.setdefault(fact.relation, {}).setdefault(topic(fact), []).append(fact.id)
    folds: dict[str, int] = {}
    for relation, by_topic in topics.items():
        some = list(by_topic.values())
        rng = generator(seed, "folds", relation or "")
        first = int(rng.integers(n_folds))  # or small relations would all lie in the first folds
        for place, i in enumerate(rng.permutation(len(some)).tolist()):
            folds.update(dict.fromkeys(some[i], (first + place) % n_folds))
    return folds
