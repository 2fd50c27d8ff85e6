"""A degenerate family among all nodes of a merge tree, chosen by what suppressing them does.

The filter's rule (see :func:`dkn_engine.degeneracy.lattice.degenerate_family`) is asked of families
of disjoint nodes anywhere in the tree, not only of one family that the tree alone singles out. Each
node is suppressed by itself; then, one more member at a time, families all of whose parts of one
member less leave the answer tau_2 of its probability (level-wise search:
https://www.vldb.org/conf/1994/P487.PDF). Of two members that finds every family that passes, as
long as there are no more than are measured; of more members those that grow so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config
from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.neurons import encode
from dkn_engine.types import Component

Family = tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """A family of nodes.

    Attributes:
        members: indices of the nodes, ascending; fewer than two if no two can be a family.
        passes: whether the filter's rule holds. If it does for none, the members are those of the
            family that comes closest in what all suppressed leave.
        n_rows: suppressions measured.
        excess: log-drop of all suppressed minus the sum of those of each alone; see
            :class:`dkn_engine.types.Drops`. NaN where there is no family, or a probability is 0.
    """

    members: Family
    passes: bool
    n_rows: int
    excess: float = float("nan")


@dataclass(frozen=True, eq=False)
class _Measured:
    """Answer probabilities with families suppressed, as shares of the clean one."""

    min_alone: float
    max_none: float
    share: dict[Family, float] = field(default_factory=dict)

    def is_kept(self, family: Family) -> bool:
        """Whether the answer keeps tau_2 without the family."""
        return self.share[family] >= self.min_alone

    def left(self, family: Family) -> float:
        """What all suppressed leave of the weakest that one member alone leaves."""
        weakest = min(self.share[part] for part in _parts(family))
        return self.share[family] / weakest if weakest > 0 else math.inf

    def passes(self, family: Family) -> bool:
        return all(map(self.is_kept, _parts(family))) and self.left(family) <= self.max_none

    def chosen(self, family: Family, *, passes: bool) -> Chosen:
        shares = [self.share[f] for f in (family, *((i,) for i in family))] if family else []
        excess = float("nan")
        if shares and min(shares) > 0:
            together, *alone = (-math.log(share) for share in shares)
            excess = together - math.fsum(alone)
        return Chosen(family, passes, len(self.share), excess)


def tree_family(
    prompts: Prompts,
    sequence: int,
    nodes: Sequence[Component],
    config: Config,
    means: NDArray[np.float64] | None = None,
) -> Measurement[Chosen]:
    """Choose the family of disjoint nodes that the filter prefers.

    The largest that passes; then the greatest total persistence, then the first nodes. At most
    ``len(nodes) + (q - 1) * max_families`` suppressions with ``q = max_candidates``: of too many
    families those whose parts cost most, which are the ones with most to cover for.

    Args:
        prompts: holds the answer as ``sequence``.
        sequence: index of the fact.
        nodes: of the merge tree, in the order of the components.
        config: its ``topology`` and ``filter``.
        means: what suppressed activations become, ``[L, F]``; None for zero.
    """
    measured = _Measured(config.filter.min_alone, config.filter.max_none)
    clean = float(prompts.probability[sequence])
    apart = _disjoint(nodes)
    families: list[Family] = [(i,) for i in range(len(nodes))] if clean > 0 else []
    while families:
        edits = [suppress(np.concatenate([nodes[i].neurons for i in f]), means) for f in families]
        p = yield prompts, Asked(edits, [sequence])
        measured.share.update(zip(families, (p[:, 0] / clean).tolist(), strict=True))
        if len(families[0]) == config.topology.max_candidates:
            break
        grown = _grown([f for f in families if measured.is_kept(f)], apart)
        families = _costliest(grown, measured.share, config.topology.max_families)
    return _best(measured, nodes)


def _disjoint(nodes: Sequence[Component]) -> NDArray[np.bool_]:
    """Which nodes have no neuron in common, ``[N, N]``."""
    codes = [encode(node.neurons) for node in nodes]
    every, column = np.unique(np.concatenate([np.empty(0, np.int64), *codes]), return_inverse=True)
    holds = np.zeros((len(nodes), len(every)), dtype=np.int64)
    holds[np.repeat(np.arange(len(nodes)), [len(c) for c in codes]), column] = 1
    return np.asarray(holds @ holds.T == 0)


def _grown(kept: Sequence[Family], apart: NDArray[np.bool_]) -> Iterator[Family]:
    """Families of disjoint nodes with one member more, all of whose parts are among the given."""
    every = set(kept)
    for start, group in itertools.groupby(sorted(kept), lambda family: family[:-1]):
        for a, b in itertools.combinations([family[-1] for family in group], 2):
            family = (*start, a, b)
            if apart[a, b] and (len(family) == 2 or every.issuperset(_parts(family))):
                yield family


def _parts(family: Family) -> Iterator[Family]:
    """The family without each member in turn."""
    return (family[:i] + family[i + 1 :] for i in range(len(family)))


def _costliest(
    families: Iterator[Family], share: Mapping[Family, float], most: int
) -> list[Family]:
    """At most so many families, those whose parts leave the least, ties by number; in order."""
    ranked = sorted((math.fsum(share[part] for part in _parts(f)), f) for f in families)
    return sorted(family for _, family in ranked[:most])


def _best(measured: _Measured, nodes: Sequence[Component]) -> Chosen:
    """The family that the filter prefers; else the closest."""
    families = [family for family in measured.share if len(family) >= 2]
    passing = [family for family in families if measured.passes(family)]

    def preference(family: Family) -> tuple[float, ...]:
        # fsum, as in degenerate_family: equal totals must not differ by the order of their terms.
        total = math.fsum(nodes[i].persistence for i in family)
        return (len(family), total, *(-i for i in family))

    if passing:
        return measured.chosen(max(passing, key=preference), passes=True)
    closest = min(families, key=lambda family: (measured.left(family), family), default=())
    return measured.chosen(closest, passes=False)
