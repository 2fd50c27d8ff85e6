"""Path points as blocks of whole sequences, against full forwards and against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dkn_engine.attribution.block_sweep import Blocks
from dkn_engine.attribution.full_forwards import General
from dkn_engine.attribution.path_points import Evaluator
from dkn_engine.attribution.paths import Paths, Points
from dkn_engine.attribution.sites import site_activation
from dkn_engine.attribution.suffix_blocks import SuffixBlocks
from dkn_engine.forward.contexts import AnswerSequence, scored_contexts
from dkn_engine.forward.patched_rows import SweepUnsupported
from dkn_engine.forward.prefill import prefill
from dkn_engine.models.guest import guest, hooks
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import LEFT, attributed, fixed, tolerance
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import FAMILIES, N_LAYERS, relative_error, sequences, tiny

ALPHAS = (0.0, 0.3, 0.9)


def evaluators(
    model: Any,
    site: str,
    objective: str = "probability",
    rows: int = 1000,
    some: Sequence[AnswerSequence] | None = None,
    kind: type[Blocks | SuffixBlocks] = Blocks,
) -> tuple[Blocks | SuffixBlocks, General]:
    """Both over the same paths, which begin at random."""
    layout, device = find_layout(model), next(model.parameters()).device
    contexts = scored_contexts(sequences() if some is None else some, device, "prompt")
    clean = prefill(model, layout, contexts)
    value, fixed_factor = site_activation(layout, clean, site)
    random = torch.Generator().manual_seed(0)
    start = torch.randn(value.shape, generator=random).to(value)
    paths = Paths(layout, site, value, start, fixed_factor, "delta", "auto")
    rest = (paths, objective, rows)
    return kind(layout, contexts, clean, *rest), General(model, contexts, *rest)


def points(n_contexts: int) -> Points:
    """Some of every context and layer, in no order."""
    table = [(c, layer, a) for c in range(n_contexts) for layer in range(N_LAYERS) for a in ALPHAS]
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(1)).tolist()
    context, layer, alpha = zip(*(table[i] for i in order), strict=True)
    return Points(torch.tensor(context), torch.tensor(layer), torch.tensor(alpha).double())


def begun(evaluator: Evaluator, n_contexts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients, values, ends = evaluator.begin(points(n_contexts))
    return gradients, values, ends.gradients, ends.values


@pytest.mark.parametrize(
    ("kind", "site", "objective"),
    [
        (Blocks, "post", "probability"),
        (Blocks, "pre", "probability"),
        (Blocks, "post", "log_probability"),
        (Blocks, "post", "logit"),
        (SuffixBlocks, "post", "probability"),
        (SuffixBlocks, "pre", "probability"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_give_what_full_forwards_give(
    name: str, kind: type[Blocks | SuffixBlocks], site: str, objective: str
) -> None:
    """Whole sequences, and what is behind the changed position alone: that one, which predicts.

    A site is of one layer's MLP and an objective of the logits above, so one site is enough for
    the other objectives, and one sequence of two answer tokens. Blocks behind a position hand the
    objective to blocks of whole sequences (test_options.py asks GPT-J for each through them).
    """
    model, some = tiny(name), sequences() if objective == "probability" else sequences()[:1]
    with guest(model, grad=True):
        blocks, general = evaluators(model, site, objective, some=some, kind=kind)
        if isinstance(blocks, SuffixBlocks):
            assert {part.contexts.ids.shape[1] for part in blocks.parts} == {1}
        n = len(blocks.contexts)
        for found, expected in zip(begun(blocks, n), begun(general, n), strict=True):
            assert relative_error(found.detach(), expected.detach()) < tolerance(name)


@pytest.mark.parametrize("site", ["up", "gate_act"])
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_of_gated_mlps_at_each_factor(name: str, site: str) -> None:
    model = tiny(name)
    with guest(model, grad=True):
        blocks, general = evaluators(model, site)
        n = len(blocks.contexts)
        for found, expected in zip(begun(blocks, n), begun(general, n), strict=True):
            assert relative_error(found.detach(), expected.detach()) < tolerance(name)


@pytest.mark.parametrize("rows", [1, 20, 50])
@pytest.mark.parametrize("name", ["gptj", "opt"])
def test_small_batches_give_the_same(name: str, rows: int) -> None:
    model = tiny(name)
    with guest(model, grad=True):
        whole, _ = evaluators(model, "post")
        cut, _ = evaluators(model, "post", rows=rows)
        n = len(whole.contexts)
        for found, expected in zip(begun(cut, n), begun(whole, n), strict=True):
            assert relative_error(found.detach(), expected.detach()) < tolerance(name)


@pytest.mark.parametrize("name", ["llama", "gptj", "falcon", "gpt_neo", "opt", "mistral"])
def test_blocks_behind_positions_of_the_prompt_give_what_full_forwards_give(name: str) -> None:
    model = tiny(name)
    places = ((0, 3), (1,), (0, 2, 6))  # of prompts of five, two and seven tokens
    some = [s.at(p) for s, p in zip(sequences(), places, strict=True)]
    with guest(model, grad=True):
        blocks, general = evaluators(model, "post", some=some, kind=SuffixBlocks)
        n = len(blocks.contexts)
        for found, expected in zip(begun(blocks, n), begun(general, n), strict=True):
            assert relative_error(found.detach(), expected.detach()) < tolerance(name)


def test_layers_that_see_no_cache_are_seen_to_be_others() -> None:
    """As of a model that takes a cache and leaves it be."""
    model = tiny("gptj")
    forward = model.transformer.forward

    def without(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.pop("past_key_values", None)
        if given is not None and given.sequence is None:
            return forward(*args, past_key_values=given, **kwargs)
        return forward(*args, **{**kwargs, "use_cache": False})

    model.transformer.forward = without
    words = "behind a cached prefix enter layer 1"
    with guest(model, grad=True), pytest.raises(SweepUnsupported, match=words):
        evaluators(model, "post", kind=SuffixBlocks)
    found = attributed("gptj", model, fixed())
    assert found.path == "blocks"
    oracle = BruteForce("gptj", model, "post")
    for scores, one in zip(found.scores, sequences(), strict=True):
        assert relative_error(scores, oracle.scores(one, LEFT).mean(0)) < tolerance("gptj")


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_heads_that_are_counted_with_the_sequences_are_told_apart(n: int, alibi: bool) -> None:
    """Falcon's ALiBi is one tensor for all sequences and heads."""
    model = tiny("falcon", alibi=alibi)
    found = attributed("falcon", model, fixed(), sequences()[:n])
    assert found.path == "blocks"
    oracle = BruteForce("falcon", model, "post")
    for scores, one in zip(found.scores, sequences(), strict=False):
        expected = oracle.scores(one, LEFT).mean(0)
        assert relative_error(scores, expected) < 1e-10


def last_of_the_batch(_module: Any, _args: Any, output: Tensor) -> Tensor:
    """Another thing in another batch: no pass of any kind is the model's own."""
    return torch.cat([output[:-1], output[-1:].flip(-1)])


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_blocks_that_are_not_the_models_are_not_believed(layer: int) -> None:
    model = tiny("llama")
    with guest(model, grad=True):
        blocks, _ = evaluators(model, "post")
        n = len(blocks.contexts)
        handle = model.get_submodule(f"model.layers.{layer}").register_forward_hook(
            last_of_the_batch
        )
        what = f"leave layer {layer} off" if layer + 1 < N_LAYERS else "give p"
        with hooks([handle]), pytest.raises(SweepUnsupported, match=what):
            blocks.begin(points(n))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["opt", "gptj"])
def test_half_precision_is_not_worse_than_brute_force_in_it(name: str, dtype: torch.dtype) -> None:
    """Both against float64 with the same rounded weights; twice, since roundings are chance."""
    model, exact = tiny(name, dtype), tiny(name).to(dtype).to(torch.float64)
    found = attributed(name, model, fixed())
    assert found.path == "blocks"
    errors, plain = [], []
    for scores, one in zip(found.scores, sequences(), strict=True):
        expected = BruteForce(name, exact, "post").scores(one, LEFT).mean(0)
        errors.append(relative_error(scores, expected))
        rounded = BruteForce(name, model, "post").scores(one, LEFT).mean(0)
        plain.append(relative_error(rounded, expected))
    assert sum(errors) < 2 * sum(plain)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_mlps_run_where_something_has_changed_and_is_read(name: str) -> None:
    model = tiny(name)
    with guest(model, grad=True):
        blocks, _ = evaluators(model, "post", rows=10**6)
        assert isinstance(blocks, Blocks)
        n, length = len(blocks.contexts), blocks.contexts.ids.shape[1]
        blocks.begin(points(n))
        ran = [0] * N_LAYERS

        def count(layer: int, _module: Any, _args: Any, output: Tensor) -> None:
            ran[layer] += output.shape[:-1].numel()

        downs = [mlp.down for mlp in blocks.layout.mlps]
        with hooks([d.register_forward_hook(partial(count, i)) for i, d in enumerate(downs)]):
            blocks.evaluate(points(n))
    of_a_layer = n * len(ALPHAS)
    # One block where there is nothing to run; those from below; of these the rows that are scored.
    assert ran == [length, of_a_layer * length, 2 * of_a_layer]


def test_mlps_that_do_not_run_in_part_run_as_a_whole() -> None:
    model = tiny("gpt2")
    with guest(model, grad=True):
        blocks, general = evaluators(model, "post")
        assert isinstance(blocks, Blocks)
        length = blocks.contexts.ids.shape[1]
        act = blocks.layout.mlps[-1].act
        assert blocks.in_part
        assert act is not None

        def refuse(_module: Any, args: Any) -> None:
            if args[0].shape[-2] != length:
                raise RuntimeError("takes whole sequences")

        n = len(blocks.contexts)
        with hooks([act.register_forward_pre_hook(refuse)]):
            found = begun(blocks, n)
        assert not blocks.in_part
        for mine, expected in zip(found, begun(general, n), strict=True):
            assert relative_error(mine, expected) < tolerance("post")
