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

from dkn_engine.attribution.chunk_scores import ChunkScores, slowest
from dkn_engine.errors import UserError
from dkn_engine.forward.contexts import AnswerSequence

if TYPE_CHECKING:
    from torch import Tensor


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
    again = np.flatnonzero((found.error > tolerance) & (parts < _CANCELLED))
    if len(again):
        some = [sequences[b] for b in again.tolist()]
        given = None if baselines is None else baselines[again]
        finer = tolerance * _MARGIN / float(parts[again].max())
        found = _replaced(found, again, _difference(score, some, given, finer)[0])
    return replace(found, converged=found.converged & ~(found.error > tolerance)[:, None])


def _difference(
    score: Score,
    sequences: Sequence[AnswerSequence],
    baselines: Tensor | None,
    tolerance: float,
) -> tuple[ChunkScores, NDArray[np.float64]]:
    """The difference of parts that are scored to a tolerance, one wrong answer each at a time.

    And how many times its length theirs are together, ``[B]``.
    """
    found = score(sequences, baselines, tolerance)
    total, length = found.scores.copy(), _length(found.scores)
    error = found.error * length  # NaN where a fixed rule estimates none
    delta, n_points = found.convergence_delta.copy(), found.n_points.copy()
    converged, row_layers, paths = found.converged.copy(), found.row_layers, {found.path}
    for k in range(max(len(s.against) for s in sequences)):
        index = [b for b, s in enumerate(sequences) if k < len(s.against)]
        wrong = [sequences[b].against[k] for b in index]
        part = score(wrong, None if baselines is None else baselines[index], tolerance)
        share = np.array([1 / len(sequences[b].against) for b in index])
        total[index] -= share[:, None, None] * part.scores
        delta[index] -= share[:, None] * part.convergence_delta
        error[index] += share * part.error * _length(part.scores)
        length[index] += share * _length(part.scores)
        n_points[index] += part.n_points
        converged[index] &= part.converged
        row_layers += part.row_layers
        paths.add(part.path)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(error > 0, error / _length(total), error)
        parts = length / _length(total)
    difference = replace(
        found,
        scores=total,
        convergence_delta=delta,
        n_points=n_points,
        converged=converged,
        error=relative.astype(np.float32),
        path=slowest(*paths),
        row_layers=row_layers,
    )
    return difference, parts


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
