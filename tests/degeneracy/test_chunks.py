"""Facts that are examined together give what each gives alone; questions side by side, too."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy.asked_together import Measurement, together
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import nothing, suppress
from dkn_engine.degeneracy.functional_filter import Examinee, examine, examine_chunk
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.degeneracy.reference_facts import Reference
from dkn_engine.errors import FactError
from dkn_engine.forward import row_check
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.patched_rows import RowEngine
from dkn_engine.models.layout import find_layout
from dkn_engine.types import Component, Degeneracy, Drops, Fact
from tests.support.brute_force_edits import answer_probability
from tests.support.tiny import N_LAYERS, WIDTH, sequence, sequences, tiny

EVERY = FilterConfig(require_rank_1=False, min_probability=0.0, n_random=4, control_precision=0.0)
PRECISE = dataclasses.replace(EVERY, control_precision=0.05, n_random=12)
# Loose thresholds, so that random models have families too.
LOOSE = dataclasses.replace(EVERY, min_alone=0.0, max_none=1.0)
MEANS = dataclasses.replace(EVERY, suppress_value="mean")
RELEASED = dataclasses.replace(EVERY, method="released", released_max_drop=0.5)
SAMPLED = dataclasses.replace(EVERY, exact_limit=2, n_samples=14)
SETTINGS = {
    "every": EVERY,
    "precise": PRECISE,
    "loose": LOOSE,
    "means": MEANS,
    "released": RELEASED,
    "sampled": SAMPLED,
}
# Facts of one to three answer tokens; as many candidates as stand here, none included.
SEQUENCES = [sequence(5, 1, seed=1), sequence(3, 2), sequence(6, 3, seed=2), sequence(4, 1, seed=3)]
CANDIDATES = (3, 0, 7, 1)


def examinees() -> list[Examinee]:
    found = []
    for b, q in enumerate(CANDIDATES):
        random = np.random.default_rng(b)
        flat = random.choice(N_LAYERS * WIDTH, 3 * q + 2, replace=False)
        neurons = np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)
        components = tuple(
            Component(neurons[3 * i : 3 * i + 1 + i % 3], 0.0, 1.0, 1.0 - 0.1 * i) for i in range(q)
        )
        fact = Fact(f"f{b}", f"w{b}", f"w{b + 20}", subject=f"s{b}")
        # Each fact has as many held-out prompts as its number says.
        paraphrases = range(b * (b - 1) // 2, b * (b + 1) // 2)
        found.append(Examinee(fact, b, components, neurons, paraphrases))
    return found


def reference_of(model: Any) -> Reference:
    some = [sequence(4, 2, seed=s) for s in range(10, 18)]
    prompts = Prompts(model, find_layout(model), some, warn=False)
    facts = tuple(Fact(f"r{i}", f"w{i}", f"w{i + 40}", subject=f"r{i}") for i in range(8))
    return Reference(facts, prompts, np.ones(8, bool), prompts.first_activations().mean(0))


@dataclasses.dataclass(frozen=True)
class AskedModel:
    """The chunk's prompts and held-out ones, and the same for each fact by itself."""

    prompts: Prompts
    held_out: Prompts
    alone: list[Prompts]
    paraphrases: list[Prompts | None]
    reference: Reference


@functools.cache
def asked_of(name: str, dtype: torch.dtype) -> AskedModel:
    """Once for all settings, which only ask."""
    model = tiny(name, dtype)
    held_out = [sequence(4, 2, seed=20 + i) for i in range(6)]

    def read(some: list[AnswerSequence]) -> Prompts:
        return Prompts(model, find_layout(model), some, warn=False)

    own = [[held_out[i] for i in one.paraphrases] for one in examinees()]
    return AskedModel(
        read(SEQUENCES),
        read(held_out),
        [read([one]) for one in SEQUENCES],
        [read(mine) if mine else None for mine in own],
        reference_of(model),
    )


def agree(found: Degeneracy | FactError, expected: Degeneracy, tolerance: float) -> None:
    assert isinstance(found, Degeneracy)
    assert found.dkn == expected.dkn
    assert len(found.components) == len(expected.components)
    assert found.controls.keys() == expected.controls.keys()
    for name in ("subset_probabilities", "subset_masks", "rest_suppressed"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance, err_msg=name
        )
    for name in ("n_paraphrases_known", "n_paraphrases_not_known", "n_reference"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("n_reference_packaged", "null", "null_draws", "null_passing"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.null_p == pytest.approx(expected.null_p, rel=0, abs=0, nan_ok=True)
    for name in ("random", "paraphrases", "unrelated", "mean_ablation"):
        ours, theirs = found.controls.get(name), expected.controls.get(name)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            drops_agree(ours, theirs, tolerance)


def drops_agree(found: Drops, expected: Drops, tolerance: float) -> None:
    assert (found.n, found.n_redundancy) == (expected.n, expected.n_redundancy)
    for name in ("partial_drop", "full_drop", "partial_std", "full_std"):
        want = getattr(expected, name)
        # Drops are relative to probabilities of some hundredths here.
        close = pytest.approx(want, abs=100 * tolerance, rel=100 * tolerance, nan_ok=True)
        assert getattr(found, name) == close, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_a_fact_gives_in_any_chunk_what_it_gives_alone(
    name: str, settings: str, dtype: torch.dtype
) -> None:
    if dtype != torch.float64 and (name != "llama" or settings not in {"every", "means"}):
        pytest.skip("other dtypes round alike in all of them")
    config, asked, every = Config(filter=SETTINGS[settings]), asked_of(name, dtype), examinees()
    alone = []
    for b, one in enumerate(every):
        own: dict[str, Any] = {"paraphrases": asked.paraphrases[b], "reference": asked.reference}
        alone.append(
            examine(asked.alone[b], 0, one.components, one.located, one.fact, config, **own)
        )
    more: dict[str, Any] = {"paraphrases": asked.held_out, "reference": asked.reference}
    # Equal to rounding: of the probabilities, which are below 1.
    tolerance = 4 * float(torch.finfo(dtype).eps) if dtype != torch.float64 else 1e-12
    for order in ((3, 1, 2, 0), (2, 0), (1,), ()):
        found = examine_chunk(asked.prompts, [every[i] for i in order], config, **more)
        assert len(found) == len(order)
        for i, degeneracy in zip(order, found, strict=True):
            agree(degeneracy, alone[i], tolerance)


@pytest.mark.parametrize("max_rows", [1, 5, 1024])
@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_questions_of_any_shape_are_answered_as_by_one_forward_each(
    name: str, positions: str, max_rows: int
) -> None:
    model, some = tiny(name), sequences()
    prompts = Prompts(
        model, find_layout(model), some, positions=positions, warn=False, max_rows=max_rows
    )
    edits = [nothing(), suppress([[0, 1], [2, 5]]), suppress([[0, 1]]), suppress([[2, 7]])]
    asked = [
        Asked(edits, [0, 2]),
        Asked([], [1]),
        Asked(edits[1:3], [1]),
        Asked(edits[:1], []),
        Asked(edits[::-1], [2]),
    ]
    for question, (found, _) in zip(asked, prompts.answers(asked), strict=True):
        expected = [
            [
                answer_probability(name, model, sequences()[b], e, positions)
                for b in question.sequences
            ]
            for e in question.edits
        ]
        shape = len(question.edits), len(question.sequences)
        np.testing.assert_allclose(found, np.array(expected).reshape(shape), rtol=1e-10)
    assert prompts.answers([]) == []


def test_rows_of_several_facts_climb_once() -> None:
    """Each starts in the lowest layer that an edit of the climb changes; the head runs once."""
    model = tiny("llama")
    prompts = Prompts(model, find_layout(model), [sequence(5, 1), sequence(3, 1)])
    engine = prompts._batches[0][1].rows
    assert engine is not None
    before, last = engine.row_layers, N_LAYERS - 1
    asked = [Asked([nothing(), suppress([[last, 2]])], [0]), Asked([suppress([[last, 3]])], [1])]
    prompts.answers(asked)
    assert engine.row_layers - before == 3


def test_measurements_side_by_side_share_calls_and_fail_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    one, other = (Prompts(model, find_layout(model), [sequence(4, 1, seed=s)]) for s in (1, 2))
    calls: list[int] = []
    for prompts in (one, other):
        real = prompts.with_objective

        def counted(some: Any, real: Any = real, **options: Any) -> Any:
            calls.append(len(some))
            return real(some, **options)

        monkeypatch.setattr(prompts, "with_objective", counted)

    def measurement(prompts: Prompts, n: int) -> Measurement[float]:
        total = 0.0
        for i in range(n):
            (answer,) = yield prompts, Asked([suppress([[0, i]])], [0])
            total += float(answer[0])
        if n == 2:
            raise FactError("too long")
        return total

    found = together([measurement(one, n) for n in (1, 2, 3)] + [measurement(other, 1)])
    assert sorted(calls) == [1, 1, 2, 3]
    single = [float(one.probabilities([suppress([[0, i]])])[0, 0]) for i in range(3)]
    assert isinstance(found[1], FactError)
    assert found[0] == pytest.approx(single[0], rel=1e-12)
    assert found[2] == pytest.approx(sum(single), rel=1e-12)
    assert together([]) == []


def test_own_tokens_of_edited_models_are_followed_question_by_question() -> None:
    model = tiny("llama")
    layout = find_layout(model)
    forced = sequence(4, 2, seed=1)
    prompt = forced.ids[: forced.n_prompt]
    limit: list[int] = []

    def behind(tokens: tuple[int, ...]) -> tuple[int, ...]:
        if limit:
            raise FactError("outgrown")
        return prompt + tokens

    free = AnswerSequence(forced.ids, forced.n_prompt, forced.targets, (), behind)
    prompts = Prompts(model, layout, [forced, free])
    edits = [nothing(), suppress([[0, 1], [1, 5]])]

    def measurement(b: int) -> Measurement[Any]:
        answer = yield prompts, Asked(edits, [b])
        return answer[:, 0]

    expected = [prompts.probabilities(edits, [b])[:, 0] for b in (0, 1)]
    found = together([measurement(b) for b in (0, 1)])
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-12)
    limit.append(0)
    found = together([measurement(b) for b in (0, 1)])
    assert isinstance(found[1], FactError)
    np.testing.assert_allclose(np.array(found[0]), expected[0], rtol=1e-12)
    assert prompts.holds_free([0, 1])
    assert not prompts.holds_free([0])


def test_every_order_of_the_questions_is_the_same() -> None:
    model = tiny("llama")
    prompts = Prompts(model, find_layout(model), sequences())
    asked = [Asked([suppress([[0, i]]), nothing()], [i]) for i in range(3)]
    expected = [found for found, _ in prompts.answers(asked)]
    for order in itertools.permutations(range(3)):
        for i, (found, _) in zip(order, prompts.answers([asked[i] for i in order]), strict=True):
            np.testing.assert_allclose(found, expected[i], rtol=1e-12)


@contextlib.contextmanager
def hooked(model: Any) -> Iterator[None]:
    """A hook of the user's, which may treat one place among the rows differently."""
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


def test_plain_rows_are_tried_once_at_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = row_check.try_rows

    def counted(engine: RowEngine) -> None:
        tried.append(engine.contexts.ids.shape[1])
        real(engine)

    monkeypatch.setattr(row_check, "try_rows", counted)
    model = tiny("llama")
    layout = find_layout(model)
    for n in (5, 3, 7, 6):
        Prompts(model, layout, [sequence(n, 1)])
    assert tried == [5, 7]
    with hooked(model):
        Prompts(model, layout, [sequence(3, 1)])
    assert tried == [5, 7, 3]
    Prompts(model, layout, [sequence(3, 1)])
    Prompts(model, find_layout(model), [sequence(3, 1)])
    assert tried == [5, 7, 3, 3]


@pytest.mark.parametrize("warn", [True, False])
def test_unedited_rows_that_go_astray_after_the_trial_mean_full_forwards(
    monkeypatch: pytest.MonkeyPatch, warn: bool
) -> None:
    model, some = tiny("llama"), sequences()
    prompts = Prompts(model, find_layout(model), some, warn=warn)
    edits = [suppress([[0, 1], [2, 5]]), nothing()]
    expected = prompts.probabilities(edits)
    real = RowEngine.run_layer

    def astray(self: Any, layer: int, hidden: Any, rows: Any) -> Any:
        return real(self, layer, hidden, rows) * (1.1 if layer == 1 else 1.0)

    monkeypatch.setattr(RowEngine, "run_layer", astray)
    assert not prompts.stands_in
    warns: Any = pytest.warns(UserWarning, match="full forward passes")
    with warns if warn else contextlib.nullcontext():
        found = prompts.probabilities(edits)
    assert prompts.stands_in
    np.testing.assert_allclose(found, expected, rtol=1e-10)
