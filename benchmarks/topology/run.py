"""Times of the topology beside scipy and, where they are installed, gudhi and ripser.

Every case is compared with its peer before it is timed; a difference ends the run. Run it alone on
the machine: ``python -m benchmarks.topology.run [--threads N] [--model demo|none]
[--peers PYTHON]`` writes ``results/topology.csv``. ``--peers`` names the Python of
another environment that has gudhi and ripser; without it they are looked for in this one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import scipy
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from benchmarks.rows import Row, row, timed, write
from dkn_engine import topology
from dkn_engine.config import Config
from dkn_engine.topology import released
from tests.support import topology_oracle as reference

REPEATS = 9
SCIPY = f"scipy {scipy.__version__}"
D_MODEL = 768
# Timed in the peers' own environment; prints seconds and the deaths' sum for comparison.
PEER_PROGRAM = """
import json, sys, time, warnings
import numpy as np
warnings.simplefilter("ignore")
name, path, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
distances = np.load(path)
if name == "gudhi":
    import gudhi
    from importlib.metadata import version
    def work():
        tree = gudhi.RipsComplex(distance_matrix=distances).create_simplex_tree(max_dimension=1)
        tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
        return np.asarray(tree.persistence_intervals_in_dimension(0))[:, 1]
else:
    import ripser
    from importlib.metadata import version
    def work():
        return ripser.ripser(distances, maxdim=0, distance_matrix=True)["dgms"][0][:, 1]
deaths, times = work(), []
for _ in range(repeats):
    start = time.perf_counter()
    work()
    times.append(time.perf_counter() - start)
deaths = np.sort(deaths[np.isfinite(deaths)]).tolist()
print(json.dumps({"version": version(name), "times": times, "deaths": deaths}))
"""


def layer_graph(n: int, n_layers: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random neurons spread evenly over the layers, normal float32 weights."""
    random = np.random.default_rng(seed)
    neurons = np.stack([np.arange(n) % n_layers, np.arange(n)], axis=1).astype(np.int32)
    w_out, w_in = random.standard_normal((2, n, D_MODEL)).astype(np.float32)
    return neurons, w_out, w_in


def measure(case: str, provider: str, work: Callable[[], object], repeats: int = REPEATS) -> Row:
    return row(case, provider, "seconds", timed(work, repeats))


def dense(n: int, peers: str) -> Iterator[Row]:
    """H0 of a dense matrix; scipy is given the condensed form, and the square one as we are."""
    case = f"H0 of a dense matrix, n = {n}"
    condensed = pdist(np.random.default_rng(n).standard_normal((n, 8)))
    square = squareform(condensed)
    heights = topology.h0_persistence(square).heights
    np.testing.assert_array_equal(heights, linkage(condensed, "single")[:, 2])
    yield measure(case, "dkn_engine", partial(topology.h0_persistence, square))
    yield measure(case, f"{SCIPY}, condensed", partial(linkage, condensed, "single"))
    yield measure(case, f"{SCIPY}, square", lambda: linkage(squareform(square), "single"))
    for name in ("ripser", "gudhi"):
        yield from dense_peer(case, name, square, heights, peers)


def dense_peer(
    case: str, name: str, square: np.ndarray, heights: np.ndarray, python: str
) -> Iterator[Row]:
    """H0 by a package that may not be there, in its own process."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, square)
        file.flush()
        repeats = "3" if len(square) > 1000 else str(REPEATS)
        command = [python, "-c", PEER_PROGRAM, name, file.name, repeats]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().rsplit("\n", 1)[-1]
        print(f"skipped: {name} for {case} ({reason})", file=sys.stderr)
        return
    found = json.loads(done.stdout)
    # ripser computes in float32, and leaves out bars of length 0.
    np.testing.assert_allclose(found["deaths"], heights[-len(found["deaths"]) :], rtol=1e-6)
    yield row(case, f"{name} {found['version']}", "seconds", found["times"])


def layered(n: int) -> Iterator[Row]:
    """Weights and merge tree of located neurons in 12 layers."""
    case = f"weights and merge tree, {n} neurons in 12 layers"
    graph, config = layer_graph(n, 12, 0), Config.released().topology
    one_span = topology.distances(*graph, max_span=1)
    tree = topology.merge_tree(*graph)
    yield measure(case, "dkn_engine", lambda: topology.merge_tree(*graph))
    if n <= 100:
        expected = reference.h0_persistence(one_span)
        np.testing.assert_array_equal(tree.children, expected.children)
        np.testing.assert_array_equal(tree.heights, expected.heights)
        yield measure(
            case,
            "released procedure, vectorised",
            lambda: released.released_candidates(*graph, config),
        )
    yield measure(
        case.replace("and merge tree", "and distances"),
        "dkn_engine",
        lambda: topology.distances(*graph),
    )


def batches(count: int, threads: int) -> Iterator[Row]:
    """Many graphs of 100 neurons in 12 layers; beyond 1,000 the same ones again."""
    different = [layer_graph(100, 12, seed) for seed in range(min(count, 1000))]
    graphs = different * (count // len(different))
    case = f"weights and merge trees of {count} graphs of 100 neurons"
    for n_threads in sorted({1, threads}):
        work = partial(topology.merge_trees, graphs, n_threads)
        yield measure(
            case, f"dkn_engine, {n_threads} threads", work, 5 if count > 1000 else REPEATS
        )
    if count <= 1000:
        with_components = partial(topology.analyze_graphs, graphs)
        yield measure(f"{case}, with components", "dkn_engine, 1 threads", with_components)


def whole_model(threads: int) -> Iterator[Row]:
    """All neurons of the demo model, each figure from a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_whole_model, (threads,))
    for provider, metric, values in found:
        yield row("merge tree of all neurons of the demo model", provider, metric, values)


def _whole_model(threads: int) -> list[tuple[str, str, list[float]]]:
    import torch

    from dkn_engine import load_model

    torch.set_num_threads(1)
    model, _ = load_model("demo")
    # Weights are mapped from their file: read all of them, so that they count before.
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    for parameter in model.parameters():
        parameter.detach().sum()
    # From here on the peak is that of the topology alone.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak_mib()
    blocks = topology.layer_weights(model)
    seconds, found = [], None
    for _ in range(3):
        start = time.perf_counter()
        found = topology.model_merge_tree(blocks)
        seconds.append(time.perf_counter() - start)
    peak = _peak_mib()
    assert found is not None
    rows: list[tuple[str, str, list[float]]] = [
        ("dkn_engine, 1 threads", "seconds", seconds),
        ("dkn_engine", "passes", [found.n_passes]),
        ("dkn_engine", "GFLOP", [2e-9 * found.n_dots * model.config.hidden_size]),
        ("the model", "weights, MiB", [weights]),
        ("process", "resident before, MiB", [before]),
        ("process", "peak, MiB", [peak]),
    ]
    if threads > 1:
        start = time.perf_counter()
        topology.model_merge_tree(blocks, n_threads=threads)
        rows.append((f"dkn_engine, {threads} threads", "seconds", [time.perf_counter() - start]))
    out = torch.from_numpy(np.asarray(blocks[0][0]))
    inner = torch.from_numpy(np.asarray(blocks[1][1]))

    def one_pass() -> None:
        for _ in range(len(blocks) - 1):
            out @ inner.T

    rows.append(("torch, float32 GEMMs of one pass alone", "seconds", timed(one_pass, 3)))
    return rows


def _peak_mib() -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no VmHWM")


def main() -> None:
    """Measure every case and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", choices=["demo", "none"], default="demo")
    parser.add_argument("--peers", default=sys.executable)
    args = parser.parse_args()
    cases = [dense(n, args.peers) for n in (10, 100, 500, 3000)]
    cases += [layered(n) for n in (10, 100, 500, 3000)]
    cases += [batches(count, args.threads) for count in (1, 100, 1000, 10000)]
    if args.model == "demo":
        cases.append(whole_model(args.threads))
    rows = []
    for case in cases:
        for found in case:
            print(f"{found.case} | {found.provider} | {found.metric} | {found.median:.6g}")
            rows.append(found)
    print(write("topology.csv", rows))


if __name__ == "__main__":
    main()
