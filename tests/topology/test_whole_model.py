from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dkn_engine import topology
from dkn_engine.topology import MergeTree
from tests.support import topology_oracle as reference
from tests.support.graphs import LayerGraph


def stack(
    widths: Sequence[int],
    d: int = 4,
    dtype: type = np.float32,
    seed: int = 0,
    whole: bool = False,
) -> tuple[list[tuple[NDArray[np.floating], NDArray[np.floating]]], LayerGraph]:
    """Blocks of a model, and the same as one graph."""
    random = np.random.default_rng(seed)
    blocks: list[tuple[NDArray[np.floating], NDArray[np.floating]]] = []
    for width in widths:
        pair = random.integers(-2, 3, (2, width, d)) if whole else random.normal(size=(2, width, d))
        w_out, w_in = pair.astype(dtype)
        blocks.append((w_out, w_in))
    neurons = [[layer, i] for layer, width in enumerate(widths) for i in range(width)]
    graph = LayerGraph(
        np.array(neurons, dtype=np.int32).reshape(-1, 2),
        np.concatenate([w_out for w_out, _ in blocks]),
        np.concatenate([w_in for _, w_in in blocks]),
    )
    return blocks, graph


def assert_same_tree(found: MergeTree, expected: MergeTree) -> None:
    assert found.n == expected.n
    for name in ("children", "heights", "sizes"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name), err_msg=name, strict=True
        )


@pytest.mark.parametrize("whole", [False, True], ids=["normal", "tied"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("widths", [(3,), (1, 1), (5, 9, 2), (8, 7, 16, 9), (4, 0, 4), (6, 6, 6)])
def test_the_tree_of_a_tiny_model_is_that_of_its_distance_matrix(
    widths: Sequence[int], dtype: type, whole: bool
) -> None:
    blocks, graph = stack(widths, dtype=dtype, whole=whole)
    found = topology.model_merge_tree(blocks)
    as_float64 = LayerGraph(graph.neurons, *(w.astype(np.float64) for w in graph[1:]))
    # Adjacent layers only, so that trees are equal with the ties that longer paths can cause.
    expected = reference.h0_persistence(reference.distances(*as_float64, max_span=1))
    assert_same_tree(found.tree, expected)
    full = topology.h0_persistence(topology.distances(*graph))
    np.testing.assert_array_equal(found.tree.heights, full.heights)


@pytest.mark.parametrize("whole", [False, True], ids=["normal", "tied"])
@pytest.mark.parametrize("list_length", [1, 2, 8, 500])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_lists_and_threads_change_nothing_but_the_passes(
    list_length: int, n_threads: int, whole: bool
) -> None:
    blocks, graph = stack((150, 220, 90, 180), d=6, whole=whole, seed=3)
    found = topology.model_merge_tree(blocks, list_length=list_length, n_threads=n_threads)
    assert_same_tree(found.tree, topology.merge_tree(*graph))
    one = topology.model_merge_tree(blocks)
    np.testing.assert_array_equal(found.edges, one.edges, strict=True)
    for pair, expected in zip(found.layer_pairs, one.layer_pairs, strict=True):
        np.testing.assert_array_equal(pair.neurons, expected.neurons, strict=True)
        np.testing.assert_array_equal(pair.weights, expected.weights, strict=True)
        assert pair.mean_absolute_weight == expected.mean_absolute_weight
    if list_length == 1:
        assert found.n_passes > 1
    if list_length == 500:
        assert found.n_passes == 1
        assert found.n_dots == 150 * 220 + 220 * 90 + 90 * 180


@pytest.mark.parametrize("scale", [1e-30, 1e18])
def test_weights_of_extreme_size_keep_their_order(scale: float) -> None:
    blocks, graph = stack((40, 50, 30), seed=5)
    blocks = [(w_out * np.float32(scale), w_in) for w_out, w_in in blocks]
    graph = graph._replace(w_out=graph.w_out * np.float32(scale))
    assert_same_tree(topology.model_merge_tree(blocks).tree, topology.merge_tree(*graph))


def test_equal_weights_merge_in_the_order_of_the_pairs() -> None:
    blocks = [(np.ones((30, 2)), np.ones((30, 2)))] * 3
    graph = ([[layer, i] for layer in range(3) for i in range(30)], np.ones((90, 2)))
    found = topology.model_merge_tree(blocks, list_length=2)
    assert_same_tree(found.tree, topology.merge_tree(*graph, np.ones((90, 2))))


def test_neurons_that_write_nothing_stay_alone_unless_something_drives_them() -> None:
    blocks, _ = stack((5, 6), seed=1)
    blocks[0][0][2] = 0
    found = topology.model_merge_tree(blocks)
    assert len(found.tree.heights) == 9
    assert 2 not in found.edges


def test_edges_are_those_of_the_merges() -> None:
    blocks, graph = stack((20, 30, 10))
    found = topology.model_merge_tree(blocks)
    distances = topology.distances(*graph, max_span=1)
    np.testing.assert_array_equal(distances[tuple(found.edges.T)], found.tree.heights)
    assert (found.edges[:, 0] < found.edges[:, 1]).all()
    np.testing.assert_array_equal(found.neurons(found.edges), graph[0][found.edges])


@pytest.mark.parametrize("whole", [False, True], ids=["normal", "tied"])
def test_strongest_connections_of_each_pair(whole: bool) -> None:
    blocks, _ = stack((20, 30, 0, 10), d=3, dtype=np.float64, whole=whole, seed=2)
    pairs = topology.model_merge_tree(blocks, n_strongest=7, list_length=2, n_threads=2).layer_pairs
    assert [pair.lower for pair in pairs] == [0, 1, 2]
    weights = np.zeros((20, 30))
    for k in range(3):
        weights += blocks[0][0][:, k, None] * blocks[1][1][:, k]
    with np.errstate(divide="ignore"):
        order = np.argsort(np.abs(1 / weights), axis=None, kind="stable")[:7]
    expected = np.stack(np.unravel_index(order, weights.shape), axis=1)
    np.testing.assert_array_equal(pairs[0].neurons, expected)
    np.testing.assert_array_equal(pairs[0].weights, weights[tuple(expected.T)])
    assert pairs[0].mean_absolute_weight == pytest.approx(np.abs(weights).mean(), rel=1e-13)
    assert (len(pairs[1].weights), pairs[1].mean_absolute_weight) == (0, 0.0)


def test_no_strongest_connections_on_request() -> None:
    blocks, _ = stack((4, 4))
    assert topology.model_merge_tree(blocks, n_strongest=0).layer_pairs[0].neurons.shape == (0, 2)


def test_blocks_may_be_memory_maps_or_a_function(tmp_path: Path) -> None:
    blocks, graph = stack((60, 70, 50), seed=4)
    expected = topology.merge_tree(*graph)
    maps = []
    for layer, block in enumerate(blocks):
        for name, array in zip(("out", "in"), block, strict=True):
            np.save(tmp_path / f"{name}{layer}.npy", array)
        maps.append(
            tuple(np.load(tmp_path / f"{n}{layer}.npy", mmap_mode="r") for n in ("out", "in"))
        )
    assert_same_tree(topology.model_merge_tree(maps, list_length=1).tree, expected)
    fresh = topology.model_merge_tree(lambda: iter(blocks), list_length=1)
    assert fresh.n_passes > 1
    assert_same_tree(fresh.tree, expected)


@pytest.mark.parametrize("n_layers", [0, 1])
def test_few_layers_have_no_merges(n_layers: int) -> None:
    found = topology.model_merge_tree([(np.ones((3, 2)), np.ones((3, 2)))] * n_layers)
    assert (found.tree.n, len(found.tree.heights)) == (3 * n_layers, 0)
    assert found.layer_pairs == ()


BLOCK = (np.ones((3, 2)), np.ones((3, 2)))


@pytest.mark.parametrize(
    ("blocks", "options", "error", "message"),
    [
        (iter([BLOCK]), {}, TypeError, "blocks must be a sequence or a function .* got list_iter"),
        ([BLOCK] * 2, {"list_length": 0}, ValueError, "list_length must be at least 1; got 0"),
        ([BLOCK] * 2, {"n_strongest": -1}, ValueError, "n_strongest must be 0 or more; got -1"),
        ([BLOCK] * 2, {"n_threads": 0}, ValueError, "n_threads must be at least 1; got 0"),
        ([(np.ones(3), np.ones(3))], {}, ValueError, r"w_in of layer 0 must be \[F, d\]; got \[3"),
        (
            [(np.ones((2, 2)), np.ones((3, 2)))],
            {},
            ValueError,
            r"w_out of layer 0 must be \[3, d\].*got \[2, 2\]",
        ),
        (
            [BLOCK, (np.ones((3, 4)), np.ones((3, 4)))],
            {},
            ValueError,
            r"layer 0 and w_in of layer 1: w_in must be \[3, 2\].*got \[3, 4\]",
        ),
        (
            [BLOCK, (np.ones((3, 2)), np.full((3, 2), np.nan))],
            {},
            ValueError,
            r"w_in must be finite; got nan at \[0, 0\]",
        ),
        (
            [(np.full((3, 2), 1e200), BLOCK[1]), (BLOCK[0], np.array([[1e200, -1e200]] * 3))],
            {},
            ValueError,
            "finite dot products",
        ),
        ([BLOCK, tuple(np.ones((2, 3, 2), np.float16))], {}, TypeError, "w_in must be float32"),
    ],
)
def test_wrong_arguments_are_named(
    blocks: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        topology.model_merge_tree(blocks, **options)


MEASURE = """
import pathlib
import numpy as np
from dkn_engine import topology

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def blocks():
    for layer in range(12):
        yield np.random.default_rng(layer).standard_normal((2, 1500, 32), np.float32)

topology.model_merge_tree([next(iter(blocks()))] * 2)
before = peak()
found = topology.model_merge_tree(blocks)
assert found.tree.n == 18000 and len(found.tree.heights) == 17999
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status")
def test_memory_does_not_grow_with_the_number_of_edges() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    # 25 million edges: 200 MB of lengths alone.
    assert int(done.stdout) < 40_000


def test_another_number_of_layers_in_a_later_pass_is_refused() -> None:
    blocks, _ = stack((60, 70, 50), seed=4)
    passes = iter([blocks, blocks[:2]])
    with pytest.raises(ValueError, match="blocks must be 3 layers in each pass"):
        topology.model_merge_tree(lambda: next(passes), list_length=1)
