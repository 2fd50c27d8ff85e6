"""What prompts that were read are asked, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.degeneracy.edits import Edit


@dataclass(frozen=True, eq=False)
class Asked:
    """Edits of some of the sequences of :class:`Prompts`, each edit of every one.

    Attributes:
        edits: applied one at a time.
        sequences: of the prompts, ascending.
        objective: whether the objective is wanted too, where the prompts have one.
    """

    edits: Sequence[Edit]
    sequences: Sequence[int]
    objective: bool = False


@dataclass(frozen=True, eq=False)
class AskedSlopes:
    """Gates in front of a sequence's neurons.

    Attributes:
        sequence: of the prompts.
        closed: what closed gates do: suppress n neurons. Open ones do nothing.
        gates: float64 ``[R, n]``, each from 0, closed, to 1, open; one setting of all a row.
    """

    sequence: int
    closed: Edit
    gates: NDArray[np.float64]

    @property
    def sequences(self) -> Sequence[int]:
        return [self.sequence]


# Log-probabilities ``[R]`` of an answer behind gates, and their derivatives ``[R, n]``.
Slopes = tuple[NDArray[np.float64], NDArray[np.float64]]
# Answer probabilities ``[P, n]``, whether greedy decoding gives the answers, and their objective.
Answers = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]


def pairs_of(asked: Sequence[Asked]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 ``[N]`` each: edits, numbered through, and sequences, question by question."""
    edit, sequence, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for one in asked:
        n, wanted = len(one.edits), np.asarray(one.sequences, dtype=np.int64)
        edit.append(np.repeat(np.arange(first, first + n), len(wanted)))
        sequence.append(np.tile(wanted, n))
        first += n
    return np.concatenate(edit), np.concatenate(sequence)
