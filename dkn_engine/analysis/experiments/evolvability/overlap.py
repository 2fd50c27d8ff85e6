"""How many neurons of a set are among those that changed most, and how many chance would put there.

Chance is exact: a set drawn without replacement has a hypergeometric overlap, and a set with a
given number of neurons in each layer has the sum of independent ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError
from dkn_engine.statistics.intervals import COUNTED, Estimate, mean_estimate
from dkn_engine.statistics.table import Comparison, Conditions, Row

FIGURE = "overlap"
Sets = Mapping[str, NDArray[np.int32]]
_TAIL = 0.025


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of a set with a target, and that of random sets of the same size.

    Attributes:
        size: neurons in the set, ``observed`` of them in the target.
        expected: mean overlap of the random sets; ``low``, ``high``: their 95 % interval, ends
            included.
        p_value: two-sided: twice the chance of an overlap as far out on its side, at most 1.
    """

    size: int
    observed: int
    expected: float
    low: int
    high: int
    p_value: float


def top_changed(change: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    """The ``k`` neurons that changed most, of equal ones the first: bool ``[L, F]``.

    Args:
        change: ``[L, F]``, 0 or more; NaN for what a narrower layer does not have.
        k: at most the number of neurons.
    """
    n = np.count_nonzero(~np.isnan(change))
    if not 0 <= k <= n:
        raise UserError(f"k must be between 0 and {n} neurons; got {k}")
    chosen = np.zeros(change.size, dtype=bool)
    chosen[np.argsort(-change, axis=None, kind="stable")[:k]] = True
    return chosen.reshape(change.shape)


def above(change: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The neurons that changed more than ``share`` of the largest change: bool ``[L, F]``."""
    found: NDArray[np.bool_] = change > share * np.nanmax(change)
    return found


def overlap(
    neurons: NDArray[np.int32],
    target: NDArray[np.bool_],
    *,
    by_layer: bool = True,
    among: NDArray[np.int64] | None = None,
) -> Overlap:
    """Overlap of a set of neurons with a target, against sets drawn by chance.

    Args:
        neurons: int ``[n, 2]`` (layer, index), distinct.
        target: bool ``[L, F]``.
        by_layer: chance draws as many neurons in each layer as the set has there; otherwise it
            draws them from the whole model.
        among: ``[L]``, how many neurons each layer has; None for F each.
    """
    among = np.full(len(target), target.shape[1]) if among is None else among
    observed = int(target[neurons[:, 0], neurons[:, 1]].sum())
    if by_layer:
        drawn = np.bincount(neurons[:, 0], minlength=len(target))
        pmf = chance(drawn, target.sum(axis=1), among)
    else:
        pmf = chance([len(neurons)], [target.sum()], [among.sum()])
    below, upwards = np.cumsum(pmf), np.cumsum(pmf[::-1])[::-1]
    return Overlap(
        len(neurons),
        observed,
        float(pmf @ np.arange(len(pmf))),
        int(np.searchsorted(below, _TAIL, side="right")),
        int(len(pmf) - 1 - np.searchsorted(upwards[::-1], _TAIL, side="right")),
        min(1.0, 2 * float(min(below[observed], upwards[observed]))),
    )


def chance(
    drawn: NDArray[np.int64] | list[int],
    marked: NDArray[np.int64] | list[int],
    among: NDArray[np.int64] | list[int],
) -> NDArray[np.float64]:
    """Probabilities of 0, 1, ... marked neurons among those drawn, float64 ``[sum(drawn) + 1]``.

    Args:
        drawn, marked, among: in each layer, how many are drawn without replacement, how many are
            marked, and out of how many.
    """
    from scipy.stats import hypergeom

    total = np.ones(1)
    for n, k, m in zip(drawn, marked, among, strict=True):
        if n:
            total = np.convolve(total, hypergeom.pmf(np.arange(n + 1), m, k, n))
    found: NDArray[np.float64] = np.minimum(total / total.sum(), 1.0)
    return found


def targets(
    change: NDArray[np.float64], sets: Sets, shares: Sequence[float], threshold: float
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The neurons that changed most, by several measures of most, with a name for each.

    Args:
        change: ``[L, F]``, relative change of each neuron, NaN for none.
        sets: as many as each of these.
        shares: of all neurons.
        threshold: more than this share of the largest change.
    """
    n = np.count_nonzero(~np.isnan(change))
    for name, neurons in sets.items():
        yield f"as many as {name}", top_changed(change, len(neurons))
    for share in shares:
        yield f"top {share:.3g}", top_changed(change, round(share * n))
    yield f"above {threshold:.3g} of the largest", above(change, threshold)


def overlap_rows(
    sets: Sets,
    draws: Sequence[NDArray[np.int32]],
    target: NDArray[np.bool_],
    where: Conditions,
    among: NDArray[np.int64] | None = None,
) -> tuple[list[Row], list[Comparison]]:
    """Shares of the sets that are in a target, beside chance; random draws beside both.

    Beside a set's own share, which is counted, there is no interval; beside chance there are the
    ends between which 95 % of random sets lie, exactly; beside Rnd the interval of its mean.

    Args:
        sets: by the name of their group.
        draws: sets matched to the first of them.
        target: bool ``[L, F]``.
        where: conditions of the rows.
        among: of :func:`overlap`.
    """
    rows, comparisons = [], []
    for name, neurons in sets.items():
        matched = overlap(neurons, target, among=among)
        anywhere = overlap(neurons, target, by_layer=False, among=among)
        share, n = matched.observed / matched.size, matched.size
        chances = {f"{name} by chance": matched, f"{name} by chance, any layer": anywhere}
        rows.append(Row.of(FIGURE, name, where, Estimate.alone(share, n, COUNTED, share)))
        for group, o in chances.items():
            mean = o.expected / n
            expected = Estimate(mean, o.low / n, o.high / n, n, mean)
            rows.append(Row.of(FIGURE, group, where, expected, control=True))
        # Observed minus expected, with the scatter of chance around it.
        mean, low, high = (
            (matched.observed - x) / n for x in (matched.expected, matched.high, matched.low)
        )
        difference = Estimate(mean, low, high, n)
        groups = (name, f"{name} by chance")
        comparisons.append(Comparison.of(FIGURE, groups, where, difference, matched.p_value))
    if draws:
        drawn = mean_estimate(target[d[:, 0], d[:, 1]].mean() for d in draws)
        rows.append(Row.of(FIGURE, "Rnd", where, drawn, control=True))
    return rows, comparisons
