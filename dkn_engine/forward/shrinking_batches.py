"""Work in batches that shrink when a device runs out of memory."""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Sequence

import torch


def in_batches(
    n: int,
    size: int,
    work: Callable[[int, int], None],
    cuts: Sequence[int] = (),
    *,
    of: str = "rows",
    option: str = "rows_per_batch",
) -> int:
    """Call ``work(start, stop)`` over ``0 ... n`` and return the batch size that fitted.

    When ``work`` runs out of the device's memory, the batch is halved and tried again, with one
    warning. A single item that does not fit is an error.

    Args:
        n: number of items.
        size: items a batch at first, at least 1.
        work: must write its results where they belong only when it has them all.
        cuts: ascending; a batch ends at the last of these that it reaches, if it reaches one.
        of: what the items are, for the warning; ``option``: what sets their number.

    Raises:
        torch.OutOfMemoryError: one item alone does not fit.
    """
    start = 0
    while start < n:
        stop = min(start + size, n)
        if stop < n:
            reached = bisect.bisect_right(cuts, stop) - 1
            if reached >= 0 and cuts[reached] > start:
                stop = cuts[reached]
        if _fits(work, start, stop):
            start = stop
            continue
        # By now the failed try is over, and what it held is given back.
        size = (stop - start) // 2
        warnings.warn(
            f"out of memory: going on with half the {of} a batch; a smaller {option} avoids the "
            "failed tries",
            stacklevel=2,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return size


def _fits(work: Callable[[int, int], None], start: int, stop: int) -> bool:
    """Do the work, unless the device runs out of memory; one item alone must fit."""
    try:
        work(start, stop)
    except torch.OutOfMemoryError:
        if stop - start == 1:
            raise
        return False
    return True
