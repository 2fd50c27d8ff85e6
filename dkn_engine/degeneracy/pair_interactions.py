"""How neurons cover for one another: what pairs of them do to an answer beyond each by itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import FactsConfig, Positions
from dkn_engine.degeneracy.asked_together import Measurement, together
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.interventions import (
    Neurons,
    means_table,
    neurons_of_fact,
    require_ids,
    require_word,
)
from dkn_engine.degeneracy.questions import Asked, AskedSlopes, Slopes
from dkn_engine.errors import FactError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.models.masked_answers import facts_config_of
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Method = Literal["exact", "gradient"]
_CHUNK = 8


@dataclass(frozen=True, eq=False)
class Interactions:
    """Effects of suppressing neurons one by one and two by two on one answer.

    With d(S) = ln p(clean) - ln p(S suppressed), in nats, the interaction of a and b is
    I(a, b) = d({a, b}) - d({a}) - d({b}). Above 0 the two cover for one another: together they
    are missed more than each by itself. Below 0 they are in series: without one the other does
    less. An answer that a suppression makes impossible (p = 0) has infinite effects, and
    interactions that are not finite.

    Attributes:
        fact_id: whose answer.
        neurons: int32 ``[n, 2]`` (layer, index), as given.
        probability: of the answer, nothing suppressed.
        effects: float64 ``[n]``, d of each neuron alone; exact with either method.
        matrix: float64 ``[n, n]``, I of each pair; symmetric, 0 on the diagonal.
        method: ``exact``, or ``gradient``: an estimate.
    """

    fact_id: str
    neurons: NDArray[np.int32]
    probability: float
    effects: NDArray[np.float64]
    matrix: NDArray[np.float64]
    method: Method


def interactions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    neurons: Neurons,
    *,
    method: Method = "exact",
    means: ArrayLike | None = None,
    positions: Positions = "answer",
    facts_config: FactsConfig | None = None,
) -> list[Interactions]:
    """Whether MLP neurons cover for one another (or need one another) in giving facts' answers.

    ``exact`` suppresses every pair: n (n + 1) / 2 suppressions a fact. ``gradient`` suppresses
    every neuron and reads off a backward pass, to first order, what each other one would then do:
    n + 1 suppressions with a backward pass. Its interactions are the mean of both directions.
    Suppressions of several facts run together.

    Args:
        model: a language model of transformers that the engine takes; it is left as it was found.
        tokenizer: the model's.
        facts: whose answers; the probability is the product over the answer's tokens.
        neurons: int ``[n, 2]`` (layer, index), distinct; the same for all facts, or by fact id.
        method: ``exact`` or ``gradient``.
        means, positions, facts_config: see :func:`dkn_engine.answer_probability`.

    Returns:
        One :class:`Interactions` a fact, in their order.

    Raises:
        FactError: a fact cannot be encoded; names it. With ``gradient`` also where edited models go
            on with their own tokens (``facts_config.continuation``), which no gradient passes.
        UnsupportedModelError: the model is none that the engine knows, or a module
            passes no gradients on (``gradient``).
        UserError: an option has a value that is not allowed, or neurons are given under a key that
            is no fact's id.
        TypeError, ValueError: neurons that are not integers ``[n, 2]``, not distinct or not the
            model's.
    """
    require_word("method", method, get_args(Method))
    require_word("positions", positions, get_args(Positions))
    config = facts_config_of(model, facts_config or FactsConfig())
    every = fact_list(facts, config)
    require_ids("neurons", neurons, every)
    layout = find_layout(model)
    table = means_table(means, layout)
    results: list[Interactions] = []
    said = False
    for start in range(0, len(every), _CHUNK):
        chunk = every[start : start + _CHUNK]
        sequences = [
            encode_sequence(model, tokenizer, f.prompt, f.answer, config=config, fact_id=f.id)
            for f in chunk
        ]
        prompts = Prompts(model, layout, sequences, positions=positions, warn=not said)
        said |= prompts.stands_in
        results += _of_chunk(prompts, chunk, neurons, method, table)
    return results


def _of_chunk(
    prompts: Prompts,
    facts: Sequence[Fact],
    neurons: Neurons,
    method: Method,
    means: NDArray[np.float64] | None,
) -> list[Interactions]:
    given = [suppress(neurons_of_fact(neurons, fact.id), means).neurons for fact in facts]
    measurement = estimated if method == "gradient" else exact
    pairs: list[Effects] = []
    for measured in together([measurement(prompts, i, one, means) for i, one in enumerate(given)]):
        if isinstance(measured, FactError):
            raise measured
        pairs.append(measured)
    return [
        Interactions(fact.id, one, float(prompts.probability[i]), effects, matrix, method)
        for i, (fact, one, (effects, matrix)) in enumerate(zip(facts, given, pairs, strict=True))
    ]


Effects = tuple[NDArray[np.float64], NDArray[np.float64]]


def exact(
    prompts: Prompts,
    sequence: int,
    neurons: NDArray[np.int32],
    means: NDArray[np.float64] | None = None,
) -> Measurement[Effects]:
    """Effects ``[n]`` and interactions ``[n, n]`` on one answer, by suppressing every pair."""
    n = len(neurons)
    first, second = np.triu_indices(n, 1)
    sets = itertools.chain(([i] for i in range(n)), np.stack([first, second], axis=1))
    edits = [suppress(neurons[np.asarray(some)], means) for some in sets]
    p = yield prompts, Asked(edits, [sequence])
    with np.errstate(divide="ignore", invalid="ignore"):
        drop = np.log(prompts.probability[sequence]) - np.log(p[:, 0])
        matrix = np.zeros((n, n))
        matrix[first, second] = drop[n:] - drop[first] - drop[second]
    return drop[:n], matrix + matrix.T


def estimated(
    prompts: Prompts,
    sequence: int,
    neurons: NDArray[np.int32],
    means: NDArray[np.float64] | None = None,
) -> Measurement[Effects]:
    """As :func:`exact`, the interactions estimated by gradients.

    d({a, b}) - d({a}) is to first order the derivative of ln p by b's gate with a's closed, and
    d({b}) that with none closed. Both first orders miss the same of b's own curvature, so that
    their difference is closer than either.
    """
    n = len(neurons)
    gates = np.concatenate([np.ones((1, n)), 1 - np.eye(n)])
    answer: Slopes = yield prompts, AskedSlopes(sequence, suppress(neurons, means), gates)
    log_p, slope = answer
    beyond = slope[1:] - slope[0]
    np.fill_diagonal(beyond, 0)
    return log_p[0] - log_p[1:], (beyond + beyond.T) / 2
