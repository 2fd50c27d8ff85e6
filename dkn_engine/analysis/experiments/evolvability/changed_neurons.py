"""Rows of a table: how many neurons of each set are among those that fine-tuning changed most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.experiments.evolvability.overlap import above, overlap, top_changed
from dkn_engine.statistics.intervals import COUNTED, Estimate, mean_estimate
from dkn_engine.statistics.table import Comparison, Conditions, Row

FIGURE = "overlap"
Sets = Mapping[str, NDArray[np.int32]]


def targets(
    change: NDArray[np.float64], sets: Sets, shares: Sequence[float], threshold: float
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The neurons that changed most, by several measures of most, with a name for each.

    Args:
        change: ``[L, F]``, relative change of each neuron.
        sets: as many as each of these.
        shares: of all neurons.
        threshold: more than this share of the largest change.
    """
    for name, neurons in sets.items():
        yield f"as many as {name}", top_changed(change, len(neurons))
    for share in shares:
        yield f"top {share:.3g}", top_changed(change, round(share * change.size))
    yield f"above {threshold:.3g} of the largest", above(change, threshold)


def overlap_rows(
    sets: Sets, draws: Sequence[NDArray[np.int32]], target: NDArray[np.bool_], where: Conditions
) -> tuple[list[Row], list[Comparison]]:
    """Shares of the sets that are in a target, beside chance; random draws beside both.

    Beside a set's own share, which is counted, there is no interval; beside chance there are the
    ends between which 95 % of random sets lie, exactly; beside Rnd the interval of its mean.

    Args:
        sets: by the name of their group.
        draws: sets matched to the first of them.
        target: bool ``[L, F]``.
        where: conditions of the rows.
    """
    rows, comparisons = [], []
    for name, neurons in sets.items():
        matched, anywhere = overlap(neurons, target), overlap(neurons, target, by_layer=False)
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
