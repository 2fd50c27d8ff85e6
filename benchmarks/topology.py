"""Times of the topology beside scipy and the plain references, one CSV row each.

Every case is compared with its peer before it is timed; a difference ends the run. Run it alone on
the machine: ``python -m benchmarks.topology [--threads N] [--output FILE]``.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from dkn_engine import topology
from dkn_engine.config import Config
from dkn_engine.topology import reference, released

REPEATS = 9
COLUMNS = [
    *("case", "provider", "n", "threads", "median_ms", "q20_ms", "q80_ms", "load"),
    *("machine", "python", "numpy", "scipy"),
]
Row = dict[str, object]


def layer_graph(n: int, n_layers: int, d: int, seed: int) -> tuple[np.ndarray, ...]:
    """Random neurons spread evenly over the layers, normal float32 weights."""
    random = np.random.default_rng(seed)
    neurons = np.stack([np.arange(n) % n_layers, np.arange(n)], axis=1).astype(np.int32)
    w_out, w_in = random.standard_normal((2, n, d)).astype(np.float32)
    return neurons, w_out, w_in


def timed(case: str, provider: str, n: int, work: Callable[[], object], threads: int = 1) -> Row:
    """One row: quantiles over ``REPEATS`` calls after one to warm up."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    low, median, high = np.quantile(times, [0.2, 0.5, 0.8])
    values = (case, provider, n, threads, *(f"{t:.4f}" for t in (median, low, high)))
    versions = (platform.machine(), platform.python_version(), np.__version__, scipy.__version__)
    return dict(zip(COLUMNS, (*values, f"{os.getloadavg()[0]:.2f}", *versions), strict=True))


def dense(n: int) -> Iterator[Row]:
    """H0 of a dense matrix; scipy is given the condensed form, and the square one as we are."""
    points = np.random.default_rng(n).standard_normal((n, 8))
    condensed = pdist(points)
    square = squareform(condensed)
    expected = linkage(condensed, "single")[:, 2]
    np.testing.assert_array_equal(topology.h0_persistence(square).heights, expected)
    yield timed("h0_dense", "dkn_engine", n, lambda: topology.h0_persistence(square))
    yield timed("h0_dense", "scipy_condensed", n, lambda: linkage(condensed, "single"))
    yield timed("h0_dense", "scipy_square", n, lambda: linkage(squareform(square), "single"))


def layered(threads: int) -> Iterator[Row]:
    """Weights and merge tree of 100 neurons in 12 layers, once and for 1,000 graphs."""
    graphs = [layer_graph(100, 12, 768, seed) for seed in range(1000)]
    graph, config = graphs[0], Config.released().topology
    one_span = topology.distances(*graph, max_span=1)
    expected = reference.h0_persistence(one_span)
    found = topology.merge_tree(*graph)
    np.testing.assert_array_equal(found.children, expected.children)
    np.testing.assert_array_equal(found.heights, expected.heights)
    yield timed("layer_tree", "dkn_engine", 100, lambda: topology.merge_tree(*graph))
    yield timed("layer_tree", "reference", 100, lambda: reference.h0_persistence(one_span))
    yield timed(
        "layer_tree",
        "released_vectorised",
        100,
        lambda: released.released_candidates(*graph, config),
    )
    for count in sorted({1, threads}):
        yield timed(
            "layer_trees_1000",
            "dkn_engine",
            100,
            lambda count=count: topology.merge_trees(graphs, count),
            count,
        )


def main() -> None:
    """Writes the rows to standard output or to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with args.output.open("w", newline="") if args.output else sys.stdout as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for rows in (dense(300), dense(3000), layered(args.threads)):
            writer.writerows(rows)


if __name__ == "__main__":
    main()
