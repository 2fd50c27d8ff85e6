"""The objective ``logit_difference``: an answer's logit minus the mean of its wrong answers'.

Integrated gradients are linear in the objective. So an answer's scores are those of its own logit
minus the mean of its wrong answers', each with the tokens that it has itself; behind the prompt,
where all have their first token, that is the difference's own path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.attribution.chunk_scores import ChunkScores, joined, slowest, summed
from dkn_engine.errors import UserError
from dkn_engine.forward.contexts import AnswerSequence

if TYPE_CHECKING:
    from torch import Tensor


_AT_ONCE = 4  # sequences, if there are fewer answers
_PARTS = 4  # times the difference's length, that of its parts together, is what is expected
_CANCELLED = 100  # A difference so many times shorter than its parts is left as it is.
_MARGIN = 0.9

# Scores by logits, with baselines ``[B, L, F]`` where they are given, to a tolerance.
Score = Callable[[Sequence[AnswerSequence], "Tensor | None", float], ChunkScores]


def contrasted(
    score: Score,
    sequences: Sequence[AnswerSequence],
    baselines: Tensor | None,
    tolerance: float,
) -> ChunkScores:
    """Scores of each sequence minus the mean of those that it is set ``against``.

    ``error`` bounds that of the difference by the sum of its parts', which are scored to a share
    of the tolerance; where the difference turns out too short for that, once more to as much less
    as its length asks for. Where that does not help, ``converged`` is false.

    Raises:
        UserError: a sequence is set against none.
    """
    if not all(s.against for s in sequences):
        raise UserError("objective='logit_difference' needs wrong answers of every answer")
    found, parts = _difference(score, sequences, baselines, tolerance / _PARTS)
    again = (found.error > tolerance) & (parts < _CANCELLED)
    # By powers of two, so that several go together and none by what another one asks for.
    powers = np.exp2(np.ceil(np.log2(np.where(again, parts, 1))))
    for power in np.unique(powers[again]).tolist():
        index = np.flatnonzero(again & (powers == power))
        some = [sequences[b] for b in index.tolist()]
        given = None if baselines is None else baselines[index]
        finer = tolerance * _MARGIN / power
        found = _replaced(found, index, _difference(score, some, given, finer)[0])
    return replace(found, converged=found.converged & ~(found.error > tolerance)[:, None])


def _difference(
    score: Score,
    sequences: Sequence[AnswerSequence],
    baselines: Tensor | None,
    tolerance: float,
) -> tuple[ChunkScores, NDArray[np.float64]]:
    """The difference of parts that are scored to a tolerance.

    And how many times its length theirs are together, ``[B]``. As many are scored at once as there
    are answers, or a few: an answer beside its wrong ones, which share what is read of its prompt.
    """
    every = [s for one in sequences for s in (one, *one.against)]
    sizes = np.array([1 + len(one.against) for one in sequences])
    answer = np.repeat(np.arange(len(sizes)), sizes)
    gold = np.cumsum(sizes) - sizes
    share = -1 / (sizes - 1)[answer]
    share[gold] = 1
    scored, at_once = [], max(len(sequences), _AT_ONCE)
    for start in range(0, len(every), at_once):
        index = answer[start : start + at_once]
        given = None if baselines is None else baselines[index]
        scored.append(score(every[start : start + at_once], given, tolerance))
    parts = joined(scored)
    length = _length(parts.scores)
    total, delta = (
        summed(table, answer, share) for table in (parts.scores, parts.convergence_delta)
    )
    # NaN where a fixed rule estimates none.
    error, lengths = (
        summed(table, answer, np.abs(share)) for table in (parts.error * length, length)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(error > 0, error / _length(total), error)
        longer = lengths / _length(total)
    difference = replace(
        parts,
        scores=total,
        convergence_delta=delta,
        probability=parts.probability[gold],
        n_points=np.add.reduceat(parts.n_points, gold),
        converged=np.logical_and.reduceat(parts.converged, gold),
        error=relative.astype(np.float32),
        paths=np.array([slowest(parts.paths[answer == b]) for b in range(len(sizes))]),
    )
    return difference, longer


def _replaced(found: ChunkScores, index: NDArray[np.int64], by: ChunkScores) -> ChunkScores:
    """Some sequences' scores exchanged for others; points and rows that were paid for add up."""
    names = ("scores", "convergence_delta", "error", "converged")
    fields: dict[str, Any] = {name: getattr(found, name).copy() for name in names}
    for name, table in fields.items():
        table[index] = getattr(by, name)
    fields["n_points"] = found.n_points.copy()
    fields["n_points"][index] += by.n_points
    return replace(found, **fields, row_layers=found.row_layers + by.row_layers)


def _length(scores: NDArray[Any]) -> NDArray[np.float64]:
    """``[B]`` of ``[B, L, F]``."""
    found: NDArray[np.float64] = np.sqrt(np.square(scores, dtype=np.float64).sum((1, 2)))
    return found
