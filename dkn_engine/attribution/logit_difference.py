"""The objective ``logit_difference``: an answer's logit minus the mean of its wrong answers'.

Integrated gradients are linear in the objective. So an answer's scores are those of its own logit
minus the mean of its wrong answers', each with the tokens that it has itself; behind the prompt,
where all have their first token, that is the difference's own path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError
from dkn_engine.forward.contexts import AnswerSequence

if TYPE_CHECKING:
    from torch import Tensor

    from dkn_engine.attribution.chunk import ChunkScores


class Score(Protocol):
    """Scores of sequences by their logits, with baselines ``[B, L, F]`` where they are given."""

    def __call__(
        self, sequences: Sequence[AnswerSequence], *, baselines: Tensor | None
    ) -> ChunkScores: ...


def contrasted(
    score: Score,
    sequences: Sequence[AnswerSequence],
    baselines: Tensor | None,
    tolerance: float,
) -> ChunkScores:
    """Scores of each sequence minus the mean of those that it is set ``against``.

    As many sequences are scored at a time as there are answers. ``error`` bounds that of the
    difference, whose length may be much less than that of its parts; where it is more than
    ``tolerance``, ``converged`` is false.

    Raises:
        UserError: a sequence is set against none.
    """
    if not all(s.against for s in sequences):
        raise UserError("objective='logit_difference' needs wrong answers of every answer")
    found = score(sequences, baselines=baselines)
    total, error = found.scores.copy(), _length_of_error(found)
    delta, n_points = found.convergence_delta.copy(), found.n_points.copy()
    converged, row_layers, paths = found.converged.copy(), found.row_layers, {found.path}
    for k in range(max(len(s.against) for s in sequences)):
        index = [b for b, s in enumerate(sequences) if k < len(s.against)]
        wrong = [sequences[b].against[k] for b in index]
        part = score(wrong, baselines=None if baselines is None else baselines[index])
        share = np.array([1 / len(sequences[b].against) for b in index])
        total[index] -= share[:, None, None] * part.scores
        delta[index] -= share[:, None] * part.convergence_delta
        error[index] += share * _length_of_error(part)
        n_points[index] += part.n_points
        converged[index] &= part.converged
        row_layers += part.row_layers
        paths.add(part.path)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(error > 0, error / _length(total), error).astype(np.float32)
    return replace(
        found,
        scores=total,
        convergence_delta=delta,
        n_points=n_points,
        converged=converged & ~(relative > tolerance)[:, None],
        error=relative,
        path="general" if "general" in paths else found.path,
        row_layers=row_layers,
    )


def _length(scores: NDArray[Any]) -> NDArray[np.float64]:
    """``[B]`` of ``[B, L, F]``."""
    found: NDArray[np.float64] = np.sqrt(np.square(scores, dtype=np.float64).sum((1, 2)))
    return found


def _length_of_error(found: ChunkScores) -> NDArray[np.float64]:
    """``[B]``; NaN where a fixed rule estimates none."""
    return found.error.astype(np.float64) * _length(found.scores)
