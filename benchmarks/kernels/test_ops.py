"""Micro-benchmarks of the sweep's operations at the demo model's sizes (``make bench``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine import topology
from dkn_engine.ops.ig_accumulate import ig_accumulate
from dkn_engine.ops.path_activation import path_activation
from dkn_engine.ops.prefix_attention import prefix_attention

D, F, ROWS, SEGMENTS = 576, 1536, 192, 8
HEADS, KV_HEADS, HEAD_WIDTH, PREFIX = 9, 3, 64, 12
Benchmark = Callable[..., Any]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("site", ["post", "pre"])
def test_ig_accumulate(benchmark: Benchmark, site: str, backend: str) -> None:
    segments = torch.arange(SEGMENTS).repeat_interleave(ROWS // SEGMENTS)
    gradients, weights = torch.randn(ROWS, D), torch.rand(2, ROWS)
    w_out, factor = torch.randn(F, D), torch.randn(SEGMENTS, F)
    ends = (torch.randn(SEGMENTS, F), factor, torch.randn(SEGMENTS, F))
    path = None if site == "post" else (torch.rand(ROWS), *ends, torch.nn.SiLU())
    given = (gradients, weights, segments, w_out, factor)
    expected = ig_accumulate(*given, path=path, backend="reference")
    found = benchmark(ig_accumulate, *given, path=path, backend=backend)
    # Sums of 24 products of sums of 576; the tests have the exact bound.
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_path_activation(benchmark: Benchmark, backend: str) -> None:
    start, end, up = (torch.randn(ROWS, F) for _ in range(3))
    given = (torch.rand(ROWS), start, end, up, torch.nn.SiLU())
    expected = path_activation(*given, backend="reference")
    found = benchmark(path_activation, *given, backend=backend)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


def test_prefix_attention(benchmark: Benchmark) -> None:
    rows = ROWS // SEGMENTS
    query = torch.randn(SEGMENTS, HEADS, rows, HEAD_WIDTH)
    key, value = torch.randn(2, SEGMENTS, KV_HEADS, rows, HEAD_WIDTH)
    prefix = torch.randn(2, SEGMENTS, KV_HEADS, PREFIX, HEAD_WIDTH)
    visible = torch.ones(SEGMENTS, PREFIX, dtype=torch.bool)
    found = benchmark(prefix_attention, query, key, value, *prefix, visible, scaling=0.125)
    assert found.shape == query.shape


@pytest.mark.parametrize("n", [100, 500])
def test_merge_tree(benchmark: Benchmark, n: int) -> None:
    random = np.random.default_rng(0)
    neurons = np.stack([np.arange(n) % 12, np.arange(n)], axis=1).astype(np.int32)
    w_out, w_in = random.standard_normal((2, n, D)).astype(np.float32)
    assert benchmark(topology.merge_tree, neurons, w_out, w_in).n == n
