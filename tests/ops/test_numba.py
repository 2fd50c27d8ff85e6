"""The compiled loops against their references in float64, and whole attributions on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import BackendError
from dkn_engine.models.layout import find_layout
from dkn_engine.ops import _numba, dispatch
from dkn_engine.ops._numba import loops
from dkn_engine.ops.answer_probability import answer_probability
from dkn_engine.ops.ig_accumulate import ig_accumulate
from dkn_engine.ops.ig_accumulate import numba as blocks_of_points
from dkn_engine.ops.path_activation import path_activation
from dkn_engine.ops.prefix_attention import prefix_attention
from dkn_engine.run.build_info import build_info
from tests.ops.kernels import test_ig_accumulate as sums
from tests.ops.kernels import test_path_activation as points
from tests.ops.kernels.cases import Case, converted, orders, require_no_worse, spelled
from tests.ops.kernels.conftest import poison  # noqa: F401  (a fixture)
from tests.support.guests import mixed_model, state
from tests.support.tiny import MASK_ID, sequences, tiny
from tests.support.values import ACTIVATIONS, normal

pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("case", sums.CASES, ids=spelled)
def test_sums_are_no_worse_than_torchs(case: Case) -> None:
    given = sums.inputs(case, "cpu")
    found = ig_accumulate(**given, backend="numba")
    assert found.dtype == torch.float32
    exact = ig_accumulate(**converted(given, Tensor.double), backend="reference")
    torchs = [
        ig_accumulate(**sums.permuted(given, order), backend="reference")
        for order in orders(case["d"])
    ]
    require_no_worse(found, torchs, exact, "scores")


@pytest.mark.parametrize("case", points.CASES, ids=spelled)
def test_points_are_no_worse_than_torchs(case: Case) -> None:
    given, act = points.inputs(case, "cpu"), ACTIVATIONS[case["act"]][0]
    found = path_activation(*given, act, backend="numba")
    assert found.dtype == case["dtype"]
    plain = path_activation(*given, act, backend="reference")
    exact = path_activation(*converted(given, Tensor.double), act, backend="reference")
    require_no_worse(found, [plain], exact, "activation")


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_size_of_argument_is_as_exact_as_torchs(act: str) -> None:
    """Values and slopes alone, from nearly 0 to where exponentials under- and overflow."""
    size = torch.cat([torch.zeros(1), torch.logspace(-6, 4, 4001)])
    z = torch.cat([-size.flip(0), size])
    module, value, slope = ACTIVATIONS[act]

    def values_of(backend: str) -> Tensor:
        given = (torch.ones(1), torch.zeros_like(z)[None], z[None], None, module)
        return path_activation(*given, backend=backend)[0]

    def slopes_of(backend: str) -> Tensor:
        one, f = torch.ones(1, 1), len(z)
        segment, path = torch.zeros(1).long(), (one[0], torch.zeros(1, f), z[None], None, module)
        given = (one, one, segment, torch.ones(f, 1), torch.ones(1, f))
        return ig_accumulate(*given, path=path, backend=backend)[0, 0]

    # In bands, since far out one rounding of the value hides everything near 0.
    for low, high in ((0, 0.1), (0.1, 1), (1, 8), (8, 30), (30, 1e5)):
        band = (z.abs() >= low) & (z.abs() < high)
        for name, function, exact in (("value", values_of, value), ("slope", slopes_of, slope)):
            found, plain = function("numba")[band], function("reference")[band]
            require_no_worse(found, [plain], exact(z.double())[band], f"{name} from {low}")


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_far_out_each_value_is_the_reference(act: str) -> None:
    ends = torch.tensor([[-1e4, -200.0, -30.0, -5.0, 0.0, 5.0, 30.0, 200.0, 1e4]])
    given, module = (torch.ones(1), torch.zeros_like(ends), ends, None), ACTIVATIONS[act][0]
    found = path_activation(*given, module, backend="numba")
    plain = path_activation(*given, module, backend="reference")
    exact = path_activation(*converted(given, Tensor.double), module, backend="reference")
    for i in range(ends.shape[1]):
        require_no_worse(found[:, i], [plain[:, i]], exact[:, i], f"at {ends[0, i]}")


def test_in_double_precision_the_slope_of_silu_is_exact_far_out() -> None:
    """At 22 it is 1 + 6e-9: beyond 20 only gelu's is its limit."""
    z = torch.tensor([[-22.0, 22.0]], dtype=torch.float64)
    one, segment = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    path = (one[0], torch.zeros_like(z), z, None, nn.SiLU())
    ones = torch.ones_like(z)
    found = ig_accumulate(one, one, segment, ones.T, ones, path=path, backend="numba")
    torch.testing.assert_close(found[0], ACTIVATIONS["silu"][2](z), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_not_a_number_stays_none(act: str) -> None:
    nan = torch.full((1, 9), float("nan"))
    one, module = torch.ones(1), ACTIVATIONS[act][0]
    assert path_activation(one, 0 * nan, nan, None, module, backend="numba").isnan().all()
    g, segment = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    path = (one, torch.zeros(1, 9), nan, None, module)
    options: dict[str, Any] = {"path": path, "backend": "numba"}
    found = ig_accumulate(g, g, segment, torch.ones(9, 1), torch.ones(1, 9), **options)
    expected = ig_accumulate(
        g, g, segment, torch.ones(9, 1), torch.ones(1, 9), path=path, backend="reference"
    )
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("act", ["", "silu"])
def test_empty_segments_give_zeros_and_nothing_gives_nothing(act: str) -> None:
    case = {**sums.WIDE, "f": 7, "act": act, "dtype": torch.float32}
    given = sums.inputs({**case, "steps": 0}, "cpu")
    assert torch.equal(ig_accumulate(**given, backend="numba"), torch.zeros(1, sums.M, 7))
    nothing = ig_accumulate(**sums.inputs({**case, "f": 0}, "cpu"), backend="numba")
    assert nothing.shape == (1, sums.M, 0)
    ends = torch.zeros(0, 7)
    relu = ACTIVATIONS["relu"][0]
    assert path_activation(torch.zeros(0), ends, ends, ends, relu, backend="numba").shape == (0, 7)


def test_a_loop_that_does_not_write_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The poison works: these tests would notice a gap."""
    monkeypatch.setattr(loops, "run", lambda *_args: None)
    ends = torch.ones(2, 3)
    found = path_activation(torch.ones(2), ends, ends, None, nn.SiLU(), backend="numba")
    assert found.isnan().all()


def test_projected_gradients_are_held_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {**sums.CASES[0], "f": 63, "d": 31, "steps": 20, "act": "silu", "gated": True}
    given = sums.inputs({**case, "ragged": True, "dtype": torch.float64}, "cpu")
    whole = ig_accumulate(**given, backend="numba")
    held, run = [], loops.run

    def recorded(loop: Any, *args: Any) -> None:
        held.append(args[-2].shape)
        run(loop, *args)

    monkeypatch.setattr(loops, "run", recorded)
    named = {**given, "path": (*given["path"][:4], "silu")}
    found = blocks_of_points.ig_accumulate(**named, block=17 * 63)
    assert held == [(17, 63)] * 4 + [(12, 63)]  # 80 points
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-13)


def test_inputs_are_left_alone_and_gradients_do_not_flow() -> None:
    given = sums.inputs({**sums.WIDE, "f": 7, "act": "silu", "dtype": torch.float32}, "cpu")
    given["gradients"].requires_grad_(True)
    kept = converted(given, lambda x: x.detach().clone())
    assert not ig_accumulate(**given, backend="numba").requires_grad
    for name in ("gradients", "weights", "w_out", "factor"):
        assert torch.equal(given[name], kept[name])
    for mine, before in zip(given["path"][:4], kept["path"][:4], strict=True):
        assert torch.equal(mine, before)


@pytest.mark.parametrize("segment", [-1, sums.M])
def test_points_of_no_segment_are_refused(segment: int) -> None:
    """Compiled code would write outside of the result."""
    given = sums.inputs({**sums.WIDE, "f": 7, "act": "", "dtype": torch.float32}, "cpu")
    given["segments"][0] = segment
    with pytest.raises(IndexError, match=r"segments must be in \[0, 5\); got"):
        ig_accumulate(**given, backend="numba")


def activate(act: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.ones(2, 3, dtype=dtype)
    return path_activation(torch.ones(2), x, x, None, act, backend="numba")


OPERATIONS = ("ig_accumulate", "path_activation", "prefix_attention", "answer_probability")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_tensors_on_a_gpu_are_refused_by_name(operation: str) -> None:
    on_gpu: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device("cuda", 1))
    expected = rf"{operation}: backend 'numba' cannot run here: .* on the CPU; found cuda:1"
    with pytest.raises(BackendError, match=expected):
        dispatch.choose(operation, "numba", on_gpu)


def test_what_the_loops_do_not_serve_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"non-linearity among gelu .*; found Tanh"):
        activate(nn.Tanh())
    x = torch.ones(2, 3)
    zeros = torch.zeros(2, dtype=torch.int64)
    path = (torch.ones(2), x, x, None, nn.Tanh())
    with pytest.raises(BackendError, match=r"non-linearity among gelu .*; found Tanh"):
        ig_accumulate(x, torch.ones(1, 2), zeros, x.T @ x, x, path=path, backend="numba")
    with pytest.raises(BackendError, match=r"expected float64, .*; found torch\.int64"):
        activate(nn.ReLU(), torch.int64)
    monkeypatch.delattr(_numba, "loops")
    monkeypatch.setitem(sys.modules, "dkn_engine.ops._numba.loops", None)
    with pytest.raises(BackendError, match="numba cannot be imported"):
        activate(nn.ReLU())


def test_a_cache_that_cannot_be_written_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba looks for a place when a function is decorated, and raises where there is none."""

    def refuse(**_options: Any) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.njit", refuse)
    monkeypatch.delattr(_numba, "loops")
    monkeypatch.delitem(sys.modules, "dkn_engine.ops._numba.loops")
    with pytest.raises(BackendError, match="no locator available; set NUMBA_CACHE_DIR to a dir"):
        activate(nn.ReLU())


def test_a_loop_that_does_not_compile_is_raised_and_not_taken_for_a_layer_that_fails() -> None:
    with pytest.raises(BackendError, match=r"loops.step_sum failed: TypingError"):
        loops.run(loops.step_sum, "weights", None, np.ones((2, 2)), np.ones((2, 2)))


def test_numba_is_imported_where_it_is_used() -> None:
    code = (
        "import sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from dkn_engine.ops.ig_accumulate import ig_accumulate\n"
        "from dkn_engine.ops.path_activation import path_activation\n"
        "x, zeros, act = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64), torch.nn.SiLU()\n"
        "for backend in ('auto', 'reference'):\n"
        "    ig_accumulate(x, torch.ones(1, 2), zeros, x.T @ x, x, backend=backend)\n"
        "    path_activation(torch.ones(2), x.double(), x.double(), None, act, backend=backend)\n"
        "path_activation(torch.ones(2), x, x, None, act, backend='reference')\n"
        "print('numba' in sys.modules)\n"
        "path_activation(torch.ones(2), x, x, None, act)\n"
        "print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.fixture
def n_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_auto_takes_the_loops_where_they_win(n_threads: Callable[[int], None]) -> None:
    def chosen(dtype: torch.dtype = torch.float32, **more: Any) -> str:
        return dispatch.choose("ig_accumulate", "auto", torch.ones(1, dtype=dtype), **more)

    n_threads(1)
    assert chosen(loop_wins=True) == chosen(torch.bfloat16, loop_wins=True) == "numba"
    assert chosen() == chosen(torch.float64, loop_wins=True) == "reference"
    assert chosen(loop_wins=True, loop_refusal="another non-linearity") == "reference"
    n_threads(8)  # of torch's own; the loops have one
    assert chosen(loop_wins=True) == "reference"


def test_auto_gives_what_the_loops_give(n_threads: Callable[[int], None]) -> None:
    n_threads(1)
    ends = [normal(40, 70, dtype=torch.float32, seed=i) for i in range(3)]
    alphas, act = torch.linspace(0, 1, 40), nn.SiLU()
    before, after, up = ends
    g, w_out = normal(40, 9, dtype=torch.float32), normal(70, 9, dtype=torch.float32)
    given = (g, torch.rand(2, 40), torch.arange(40) % 3, w_out, before[:3])
    path = (alphas, before[:3], after[:3], up[:3], act)
    pre = [ig_accumulate(*given, path=path, backend=b) for b in ("auto", "numba")]
    post = [ig_accumulate(*given, backend=b) for b in ("auto", "reference")]
    along = [path_activation(alphas, before, after, up, act, backend=b) for b in ("auto", "numba")]
    for auto, taken in (pre, post, along):
        assert torch.equal(auto, taken)


def test_matrix_products_run_as_the_reference_does() -> None:
    for operation in ("prefix_attention", "answer_probability"):
        assert dispatch.choose(operation, "numba", torch.ones(1)) == "reference"
    query, key, value = (normal(2, 4, 3, 5, dtype=torch.float32, seed=i) for i in range(3))
    visible = torch.ones(2, 3, dtype=torch.bool)
    targets = torch.arange(7)
    both = [
        (
            prefix_attention(query, key, value, key, value, visible, scaling=0.4, backend=backend),
            *answer_probability(
                lambda x: x,
                normal(7, 9, dtype=torch.float32),
                targets,
                objective="probability",
                gradient=True,
                backend=backend,
            ),
        )
        for backend in ("numba", "reference")
    ]
    for one, other in zip(*both, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which loops have run."""
    seen: set[str] = set()
    run = loops.run

    def recorded(loop: Any, *args: Any) -> None:
        seen.add(loop.__name__)
        run(loop, *args)

    monkeypatch.setattr(loops, "run", recorded)
    return seen


OF_SITE = {"post": {"step_sum"}, "pre": {"points", "slope_sum"}, "up": {"step_sum"}}


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize(
    ("name", "site"),
    [("llama", "post"), ("llama", "pre"), ("llama", "up"), ("gpt2", "post"), ("gpt2", "pre")],
)
def test_a_whole_attribution_equals_the_reference(
    name: str, site: Any, adaptive: bool, called: set[str]
) -> None:
    model = tiny(name, torch.float32)
    options: dict[str, Any] = {"quadrature": "gauss_legendre", "n_steps": 3}
    if adaptive:
        options = {"tolerance": 1e-2}
    found, expected = (
        attribute_chunk(
            model,
            find_layout(model),
            sequences()[:2],
            AttributionConfig(site=site, backend=backend, **options),
            mask_id=MASK_ID,
        )
        for backend in ("numba", "reference")
    )
    assert found.path == expected.path == "sweep"
    assert called == OF_SITE[site]
    assert (found.n_points == expected.n_points).all()
    assert found.scores.shape == expected.scores.shape
    # What is allowed between batchings: 1e-5 of a sequence's largest score.
    largest = np.abs(expected.scores).max((1, 2), keepdims=True)
    assert (np.abs(found.scores - expected.scores) <= 1e-5 * largest).all()
    assert np.abs(found.convergence_delta - expected.convergence_delta).max() <= 1e-6


def test_the_model_the_threads_and_numba_are_left_as_they_were(
    n_threads: Callable[[int], None],
) -> None:
    import numba

    n_threads(1)  # and back at the end: numba, asked for its threads, gives OpenMP all cores
    model = mixed_model("llama")
    numba.set_num_threads(1)
    before = (state(model), numba.get_num_threads(), dict(vars(numba.config)))
    config = AttributionConfig(site="pre", quadrature="riemann_left", n_steps=1, backend="numba")
    attribute_chunk(model, find_layout(model), sequences()[:1], config, mask_id=MASK_ID)
    assert (state(model), numba.get_num_threads(), dict(vars(numba.config))) == before
    for loop in (loops.points, loops.slope_sum, loops.step_sum):
        assert loop.targetoptions["nogil"]
        assert not loop.targetoptions.get("parallel", False)
        assert loop.stats.cache_path is not None


def test_build_info_says_that_they_run() -> None:
    assert build_info()["backends"]["numba"] == "runs (loops of ig_accumulate and path_activation)"
