"""The sweep and the general path against brute force, on every layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.attribution import chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import BackendError
from dkn_engine.forward import row_check as check
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.forward.row_blocks import Block
from tests.support.attribution_runs import (
    BLOCKS,
    EAGER,
    FLOAT64,
    LEFT,
    S,
    attributed,
    fixed,
    given_baselines,
    require_brute_force,
    tolerance,
)
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import (
    FAMILIES,
    N_LAYERS,
    relative_error,
    sequence,
    sequences,
    tiny,
    with_long_stream,
)

SWEPT = ("gpt2", "llama", "qwen3", "gemma3", "gpt_neox", "phi3")


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", FAMILIES)
def test_masked_baseline_scores_equal_brute_force(name: str, site: str) -> None:
    # The trapezoid's last point is the clean row, which is not a path point of the sweep.
    rule = ([0, 0.5, 1], [0.25, 0.5, 0.25])
    model = tiny(name)
    found = attributed(name, model, fixed(site=site, quadrature="trapezoid"))
    assert found.path == ("blocks" if name in BLOCKS else "sweep")
    require_brute_force(found, name, model, site, rule=rule, allowed=tolerance(name))


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", SWEPT)
def test_float32_scores_are_within_1e_5_of_float64(name: str, site: str) -> None:
    found = attributed(name, tiny(name, torch.float32), fixed(site=site))
    assert found.scores.dtype == np.float32
    oracle = BruteForce(name, tiny(name), site)
    for scores, one in zip(found.scores, sequences(), strict=True):
        assert relative_error(scores, oracle.scores(one, LEFT).mean(0)) < 1e-5


@pytest.mark.parametrize("baseline", ["zero", "given"])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_zero_and_given_baselines_equal_brute_force(name: str, site: str, baseline: str) -> None:
    model = tiny(name)
    given = given_baselines() if baseline == "given" else None
    found = attributed(name, model, fixed(site=site, baseline=baseline), baselines=given)
    starts = ("zero",) * 3 if given is None else list(given)
    require_brute_force(found, name, model, site, starts=starts)


def test_a_given_baseline_of_the_clean_activation_scores_zero() -> None:
    model, one = tiny("llama"), sequence(4, 1)
    clean = BruteForce("llama", model, "post").activations(one.ids, 3)
    found = attributed("llama", model, fixed(baseline="given"), [one], baselines=clean[None])
    # What is left is the rounding between one row and a whole prompt.
    assert np.abs(found.scores).max() < 1e-15
    assert np.abs(found.convergence_delta).max() < 1e-15


def test_a_pre_site_does_not_move_the_up_factor() -> None:
    """With an up factor of zero nothing that the gate does is seen."""
    model = tiny("llama")
    with torch.no_grad():
        for layer in range(N_LAYERS):
            model.get_submodule(f"model.layers.{layer}.mlp.up_proj").weight[::2] = 0
    found = attributed("llama", model, fixed(site="pre"))
    assert not found.scores[..., ::2].any()
    assert found.scores[..., 1::2].all()


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_windows_smaller_than_the_prompt_equal_brute_force(name: str) -> None:
    narrow, wide = tiny(name, sliding_window=3), tiny(name, sliding_window=64)
    some = [sequence(9, 2, seed=4), sequence(3, 3, seed=5)]
    found = attributed(name, narrow, fixed(), some)
    assert found.path == "sweep"
    oracle = BruteForce(name, narrow, "post")
    for scores, one in zip(found.scores, some, strict=True):
        assert relative_error(scores, oracle.scores(one, LEFT).mean(0)) < FLOAT64
    assert relative_error(attributed(name, wide, fixed(), some).scores, found.scores) > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_eager_attention_equals_brute_force(name: str) -> None:
    model = tiny(name)
    model.set_attn_implementation("eager")
    found = attributed(name, model, fixed())
    assert found.path == "sweep"
    oracle = BruteForce(name, model, "post")
    for scores, one in zip(found.scores, sequences(), strict=True):
        assert relative_error(scores, oracle.scores(one, LEFT).mean(0)) < EAGER


@pytest.mark.parametrize(("site", "rows"), [("post", 1), ("post", 3), ("post", 7), ("pre", 3)])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_small_batches_of_rows_give_the_same(name: str, site: str, rows: int) -> None:
    model = tiny(name)
    whole = attributed(name, model, fixed(site=site))
    cut = attributed(name, model, fixed(site=site, rows_per_batch=rows))
    assert relative_error(cut.scores, whole.scores) < tolerance(name)
    assert np.array_equal(cut.n_points, whole.n_points)


@pytest.mark.parametrize("quadrature", ["adaptive", "gauss_legendre"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "opt"])
def test_facts_together_and_one_by_one_agree(name: str, quadrature: str) -> None:
    """To 1e-5 of a fact's largest score, in float32, as the engine promises.

    Up to a limit of points, which OPT reaches.
    """
    model = tiny(name, torch.float32)
    adaptive: dict[str, Any] = {"quadrature": quadrature, "n_steps": None, "max_points": 64}
    config = fixed(**adaptive) if quadrature == "adaptive" else fixed(quadrature=quadrature)
    together = attributed(name, model, config)
    for i, one in enumerate(sequences()):
        alone = attributed(name, model, config, [one])
        largest = np.abs(alone.scores[0]).max()
        assert np.abs(together.scores[i] - alone.scores[0]).max() < 1e-5 * largest
        assert np.array_equal(together.n_points[i], alone.n_points[0])


@pytest.mark.parametrize("rows", ["auto", 1, 5])
@pytest.mark.parametrize("name", SWEPT)
def test_rows_climb_only_the_layers_above_their_own(name: str, rows: Any) -> None:
    """A row-layer is one row through one decoder layer; a path point of layer l costs one in each
    of the L - 1 - l above. A context's clean row costs L; where a layer does more to its MLP's
    output than adding it, a context's points emerge from one more (from each its own, if cut).
    """
    found = attributed(name, with_long_stream(tiny(name)), fixed(rows_per_batch=rows))
    contexts = sum(len(s.targets) for s in sequences())
    climbs = S * N_LAYERS * (N_LAYERS - 1) // 2 + N_LAYERS
    if name != "gemma3":  # which norms it
        assert found.row_layers == contexts * climbs
    elif rows == "auto":
        assert found.row_layers == contexts * (climbs + N_LAYERS)
    else:
        most = climbs + S * N_LAYERS
        assert contexts * (climbs + N_LAYERS) <= found.row_layers <= contexts * most


def test_adaptive_refinement_pays_row_layers_for_its_points_only() -> None:
    found = attributed("llama", tiny("llama"), AttributionConfig(baseline="zero", tolerance=1e-6))
    assert found.n_points.min() < found.n_points.max()  # some layers were refined alone
    contexts = sum(len(s.targets) for s in sequences())
    climbs = N_LAYERS - np.arange(N_LAYERS)
    assert found.row_layers <= (found.n_points * climbs).sum() + contexts * N_LAYERS


def test_a_window_that_rows_cannot_know_means_blocks() -> None:
    """The mask has a window; the layers do not tell their attention about it."""
    model = tiny("gemma3", sliding_window=3)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 1e-4  # every probability is 1 / V within 1e-5
    for layer in range(N_LAYERS):
        model.get_submodule(f"model.layers.{layer}.self_attn").sliding_window = None
    one = sequence(9, 2)
    found = attributed("gemma3", model, fixed(baseline="zero"), [one])
    assert found.path == "blocks"
    expected = BruteForce("gemma3", model, "post").scores(one, LEFT, "zero").mean(0)
    assert relative_error(found.scores[0], expected) < FLOAT64


@pytest.mark.parametrize("part", ["layers.1.self_attn", "layers.1"])
def test_an_argument_that_rows_do_not_know_means_blocks(part: str) -> None:
    model = tiny("llama")
    model.get_submodule(f"model.{part}").register_forward_pre_hook(
        lambda _module, args, kwargs: (args, {**kwargs, "strange": torch.ones(1)}), with_kwargs=True
    )
    found = attributed("llama", model, fixed())
    assert found.path == "blocks"
    require_brute_force(found, "llama", model, "post")


def test_a_hook_that_changes_what_enters_a_layer_runs_again_for_rows() -> None:
    """Rows enter a layer as what it was given, before its own hooks, which are the model's."""
    model = tiny("llama")
    model.get_submodule("model.layers.1").register_forward_pre_hook(
        lambda _module, args: (args[0] * 1.5, *args[1:])
    )
    found = attributed("llama", model, fixed())
    assert found.path == "sweep"
    require_brute_force(found, "llama", model, "post")


def test_an_argument_that_nobody_knows_is_named_once() -> None:
    model = tiny("llama")
    model.model.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, {**kwargs, "strange": object()}), with_kwargs=True
    )
    with pytest.warns(UserWarning, match="takes 'kwargs', a object; using full") as warned:
        found = attributed("llama", model, fixed())
    assert found.path == "general"
    assert len(warned) == 1
    require_brute_force(found, "llama", model, "post")


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_a_hook_that_treats_one_position_differently_means_blocks(layer: int) -> None:
    """Such as an intervention of the user's; among rows the position would be another."""

    def halve_last(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :-1], output[:, -1:] / 2], dim=1)

    model, one = tiny("llama"), sequence(6, 1)
    model.get_submodule(f"model.layers.{layer}").register_forward_hook(halve_last)
    found = attributed("llama", model, fixed(), [one])
    assert found.path == "blocks"
    expected = BruteForce("llama", model, "post").scores(one, LEFT).mean(0)
    assert relative_error(found.scores[0], expected) < FLOAT64


def _mlp(model: Any) -> Any:
    return model.get_submodule("model.layers.1.mlp")


@contextlib.contextmanager
def _global_hook(_model: Any) -> Iterator[None]:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _hook(model: Any) -> Iterator[None]:
    handle = _mlp(model).down_proj.register_forward_pre_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    mlp = _mlp(model)
    mlp.forward = mlp.forward
    try:
        yield
    finally:
        del mlp.forward


@contextlib.contextmanager
def _class_patched(model: Any) -> Iterator[None]:
    kind, forward = type(_mlp(model)), type(_mlp(model)).forward
    kind.forward = lambda self, x: forward(self, x)
    try:
        yield
    finally:
        kind.forward = forward


@pytest.mark.parametrize("change", [_global_hook, _hook, _own_forward, _class_patched])
def test_rows_are_tried_before_where_a_place_among_them_may_matter(
    monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    """In plain layers the clean rows of the climb are enough."""
    tried: list[object] = []
    real = check.try_rows

    def counted(engine: Any) -> None:
        tried.append(engine)
        real(engine)

    monkeypatch.setattr(check, "try_rows", counted)
    model = tiny("llama")
    expected = attributed("llama", model, fixed())
    assert not tried
    with change(model):
        found = attributed("llama", model, fixed())
    assert len(tried) == 1
    assert np.array_equal(found.scores, expected.scores)
    attributed("llama", model, fixed())
    assert len(tried) == 1


@pytest.mark.parametrize("kind", [RowSet, Block])
def test_what_fails_among_rows_that_were_not_tried_means_blocks(
    monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    model = tiny("llama")
    expected = attributed("llama", model, fixed())
    real = RowEngine.run_layer

    def odd(self: Any, layer: int, hidden: Any, rows: Any) -> Any:
        if isinstance(rows, kind):
            raise RuntimeError("odd")
        return real(self, layer, hidden, rows)

    monkeypatch.setattr(RowEngine, "run_layer", odd)
    monkeypatch.setattr(chunk, "prefixes_pay", lambda *_: True)  # not in so small a model
    found = attributed("llama", model, fixed())
    assert (expected.path, found.path) == ("sweep", "blocks")
    assert relative_error(found.scores, expected.scores) < FLOAT64


@pytest.mark.parametrize("objective", ["probability", "log_probability", "logit"])
def test_a_probability_that_underflows_is_no_reason_against_rows(objective: Any) -> None:
    model, some = tiny("llama", torch.float32), sequences()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 200
    found = attributed("llama", model, fixed(objective=objective), some)
    assert found.probability.min() < 1e-45  # 0 in float32
    assert found.path == "sweep"


def test_rows_that_fail_in_a_layer_mean_blocks() -> None:
    def whole_sequences_only(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[1] < 5:
            raise RuntimeError("expected a sequence")

    model, one = tiny("llama"), sequence(6, 1)
    expected = attributed("llama", model, fixed(), [one])
    model.get_submodule("model.layers.1").register_forward_pre_hook(whole_sequences_only)
    found = attributed("llama", model, fixed(), [one])
    assert found.path == "blocks"
    assert relative_error(found.scores, expected.scores) < FLOAT64


def test_a_backend_that_is_not_there_is_an_error_and_no_reason_to_fall_back() -> None:
    with pytest.raises(BackendError, match="backend 'native' is not available"):
        attributed("llama", tiny("llama"), fixed(backend="native"))


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_half_precision_is_not_worse_than_brute_force_in_it(
    name: str, dtype: torch.dtype, site: str
) -> None:
    """Both against float64 with the same rounded weights; twice, since roundings are chance."""
    model = tiny(name, dtype)
    exact = tiny(name).to(dtype).to(torch.float64)
    found = attributed(name, model, fixed(site=site))
    assert found.path == "sweep"
    assert found.scores.dtype == np.float32
    errors, plain = [], []
    for scores, one in zip(found.scores, sequences(), strict=True):
        expected = BruteForce(name, exact, site).scores(one, LEFT).mean(0)
        errors.append(relative_error(scores, expected))
        plain.append(
            relative_error(BruteForce(name, model, site).scores(one, LEFT).mean(0), expected)
        )
    assert np.mean(errors) < 2 * np.mean(plain)


@pytest.mark.parametrize("how", [{}, {"quadrature": "riemann_left", "n_steps": 3}, {"site": "pre"}])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_what_is_no_number_stays_in_its_fact(name: str, how: Any) -> None:
    """One fact's overflow must not reach the others of its chunk, whatever sums them up."""
    model, config = tiny(name), AttributionConfig(**how)
    some = [sequence(5, 2, seed=1), sequence(4, 1, seed=2), sequence(6, 2, seed=7)]
    bad = some[0].ids[2]
    assert not any(bad in one.ids for one in some[1:])
    alone = [attributed(name, model, config, [one]) for one in some[1:]]
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = torch.nan
    found = attributed(name, model, config, some)
    assert np.isnan(found.scores[0]).any()
    for i, one in enumerate(alone, start=1):
        assert relative_error(found.scores[i], one.scores[0]) < tolerance(name)
        for field in ("error", "convergence_delta", "n_points", "converged"):
            np.testing.assert_allclose(
                getattr(found, field)[i], getattr(one, field)[0], rtol=1e-6, atol=1e-9
            )
