"""Several threads in one process: calls on one model take turns, different models run together."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dkn_engine as dkn
from dkn_engine.models.fingerprint import model_fingerprint
from dkn_engine.models.layout import find_layout
from dkn_engine.models.model_lock import locked
from tests.models.test_guest import assert_unchanged
from tests.models.test_guest import state as guest_state
from tests.support.attribution_runs import attributed, fixed
from tests.support.guests import state
from tests.support.tiny import N_LAYERS, down_of, sequences, tiny
from tests.support.words import text, words_tokenizer

NEURONS = [[0, 3], [1, 17], [2, 39]]
IDS = torch.tensor([[5, 9, 11, 30, 7]])
SECONDS = 60.0  # what waits longer hangs


def facts() -> list[dkn.Fact]:
    return [
        dkn.Fact(f"f{b}", text(one.ids[: one.n_prompt]), text(one.targets))
        for b, one in enumerate(sequences())
    ]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """What the tasks return, each in a thread of its own, all at once."""
    start = threading.Barrier(len(tasks))

    def begin(task: Callable[[], Any]) -> Any:
        start.wait(SECONDS)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        waiting = [pool.submit(begin, task) for task in tasks]
        return [one.result(SECONDS) for one in waiting]


def repeated(few: int, many: int) -> list[Any]:
    """How often a test tries what threads may or may not do to one another."""
    return [few, pytest.param(many, marks=pytest.mark.slow)]


@pytest.mark.parametrize("times", repeated(4, 10))
def test_the_first_calls_on_a_model_take_turns_too(times: int) -> None:
    """What is found out of a model once, at its first call, is watched by hooks as well."""
    for _ in range(times):
        model = tiny("llama", torch.float32)

        def first(model: Any = model) -> Any:
            return dkn.attribute(model, words_tokenizer(), facts()).scores

        found = together(*[first] * 4)
        for one in found[1:]:
            np.testing.assert_array_equal(one, found[0])


@pytest.mark.parametrize("times", repeated(5, 15))
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_three_threads_on_one_model_give_what_one_gives(name: str, times: int) -> None:
    model = tiny(name)
    before = guest_state(model)
    expected = attributed(name, model, fixed())

    def often() -> list[Any]:
        from dkn_engine.attribution.chunk import attribute_chunk
        from tests.support.tiny import MASK_ID

        layout = find_layout(model)
        return [
            attribute_chunk(model, layout, sequences(), fixed(), mask_id=MASK_ID)
            for _ in range(times)
        ]

    for found in chain(*together(often, often, often)):
        assert np.array_equal(found.scores, expected.scores)
        assert found.path == expected.path
    assert_unchanged(before, guest_state(model))
    logits(model)


def verbs(model: nn.Module) -> list[Callable[[], Any]]:
    """Each public verb on the model, returning numbers that compare."""
    tokenizer, config = (
        words_tokenizer(),
        dkn.AttributionConfig(quadrature="gauss_legendre", n_steps=2),
    )
    lenient = dkn.Config(
        attribution=config,
        filter=dkn.FilterConfig(require_rank_1=False, min_probability=0.0, n_random=2),
    )

    def streamed() -> Any:
        return [f.scores for f in dkn.iter_attribute(model, tokenizer, facts(), config)]

    def found() -> Any:
        results = dkn.find_dkns(model, tokenizer, facts(), lenient)
        return [(r.status, r.neurons.tolist(), r.scores.tolist(), r.probability) for r in results]

    def asked() -> Any:
        return dkn.answer_probability(model, tokenizer, facts(), suppress=NEURONS)

    def asked_everywhere() -> Any:
        return dkn.answer_probability(model, tokenizer, facts(), enhance=NEURONS, positions="all")

    def changed(on: Any) -> Callable[[], Any]:
        def run() -> Any:
            with dkn.intervene(model, NEURONS, factor=3.0, on=on):
                return logits(model).numpy().copy()

        return run

    def compared() -> Any:
        return [f.kept for f in dkn.faithfulness(model, tokenizer, facts(), NEURONS)]

    def by_other_names() -> Any:
        kn = dkn.compat.KnowledgeNeurons(model, tokenizer)
        neurons = [list(n) for n in NEURONS]
        verbs = (kn.enhance_knowledge, kn.edit_knowledge)
        return [verb("w5 w9 w11", "w13 w14", neurons)[0] for verb in verbs]

    def trained() -> Any:
        from dkn_engine.analysis.experiments.evolvability.finetune import finetuned

        with finetuned(model, tokenizer, facts(), NEURONS, steps=3, lr=1e-2) as training:
            return training.neuron_change(), logits(model).numpy().copy()

    def identified() -> Any:
        return model_fingerprint(model)

    def connected() -> Any:
        from dkn_engine.config import TopologyConfig
        from dkn_engine.models.connections import connection_rows

        return connection_rows(find_layout(model), np.array(NEURONS, np.int32), TopologyConfig())

    def named() -> Any:
        return dkn.interchange.nnsight_names(model, NEURONS)

    few = [streamed, found, asked, asked_everywhere, changed("activations"), changed("weights")]
    return [
        *few,
        compared,
        by_other_names,
        trained,
        identified,
        connected,
        named,
        *examinations(model),
    ]


def examinations(model: nn.Module) -> list[Callable[[], Any]]:
    """Given neurons, grouped in each way that runs the model or reads its weights."""
    ways = (
        dkn.TopologyConfig(fold_norm=True),
        dkn.TopologyConfig(connections="influence", select="tree"),
        dkn.TopologyConfig(clustering="covering"),
    )

    def examined(way: dkn.TopologyConfig) -> Any:
        lenient = dkn.FilterConfig(
            require_rank_1=False, min_probability=0.0, n_random=2, n_random_searches=1
        )
        config = dkn.Config(topology=way, filter=lenient)
        neurons = [[layer, index] for layer in range(N_LAYERS) for index in (3, 17, 39)]
        results = dkn.examine(model, words_tokenizer(), facts()[:1], neurons, config)
        return [
            (r.status, [c.neurons.tolist() for c in r.components], r.subset_probabilities.tolist())
            for r in results
        ]

    def whole() -> Any:
        return dkn.topology.model_merge_tree(dkn.topology.layer_weights(model)).tree.heights

    return [*(partial(examined, way) for way in ways), whole]


@pytest.mark.parametrize("times", repeated(1, 4))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_all_verbs_at_once_on_one_model_give_what_they_give_alone(name: str, times: int) -> None:
    model = tiny(name)
    before, tasks = guest_state(model), verbs(model)
    alone = [task() for task in tasks]

    def some(first: int) -> Callable[[], list[tuple[int, Any]]]:
        order = [(first + i) % len(tasks) for i in range(times * len(tasks))]
        return lambda: [(i, tasks[i]()) for i in order]

    for i, found in chain(*together(*(some(first) for first in (0, 5, 10)))):
        np.testing.assert_equal(found, alone[i])
    assert_unchanged(before, guest_state(model))


def test_the_lock_of_a_model_is_free_while_a_stream_waits_for_its_reader() -> None:
    """Also where a stream goes on in another thread than it began in."""
    model, tokenizer = tiny("llama"), words_tokenizer()
    config = dkn.AttributionConfig(quadrature="gauss_legendre", n_steps=2)
    expected = dkn.attribute(model, tokenizer, facts() * 4, config).scores
    stream = dkn.iter_attribute(model, tokenizer, iter(facts() * 4), config)
    found = [next(stream)]
    (asked,) = together(lambda: dkn.attribute(model, tokenizer, facts(), config).scores)
    assert np.array_equal(asked, expected[:3])
    (rest,) = together(lambda: list(stream))
    assert np.array_equal([f.scores for f in [*found, *rest]], expected)

    results = dkn.iter_dkns(model, tokenizer, facts())
    first = next(results)
    (others,) = together(lambda: list(results))
    assert [r.fact_id for r in [first, *others]] == ["f0", "f1", "f2"]


@contextlib.contextmanager
def meeting(models: Sequence[nn.Module]) -> Iterator[None]:
    """The first forward of each model waits until those of all the others have begun."""
    begun = threading.Barrier(len(models))
    waiting = set(map(id, models))

    def wait(module: nn.Module, _args: Any) -> None:
        if id(module) in waiting:
            waiting.discard(id(module))
            begun.wait(10)

    handles = [model.register_forward_pre_hook(wait) for model in models]
    yield
    for handle in handles:
        handle.remove()


def test_different_models_run_side_by_side() -> None:
    models = [tiny("llama", seed=i) for i in range(3)]
    expected = [attributed("llama", model, fixed()).scores for model in models]
    with meeting(models):  # Barrier.wait raises if they do not meet
        found = together(*(lambda m=m: attributed("llama", m, fixed()).scores for m in models))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


class Wrapped(nn.Module):
    """As peft's: a module of its own around a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.own = nn.Linear(2, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(input_ids=ids).logits[:, -1]
        return found


def excludes(one: Any, other: Any) -> bool:
    """Whether a thread waits for the second while this one has the first."""
    inside = threading.Event()

    def enter() -> None:
        with locked(other):
            inside.set()

    thread = threading.Thread(target=enter)
    with locked(one):
        thread.start()
        waits = not inside.wait(0.2)
    thread.join(SECONDS)
    assert inside.is_set()
    return waits


@pytest.mark.parametrize("inner_first", [False, True])
def test_a_wrapper_and_what_it_wraps_are_one_model(inner_first: bool) -> None:
    model = tiny("llama")
    wrapper = Wrapped(model)
    one, other = (model, wrapper) if inner_first else (wrapper, model)
    assert excludes(one, other)
    assert excludes(other, one)
    assert excludes(model.model, wrapper)
    assert excludes(down_of("llama", model, 1), wrapper)


def test_a_module_around_two_models_waits_for_both() -> None:
    models = [tiny("llama"), tiny("gpt2")]
    assert not excludes(*models)
    both = nn.ModuleList(models)
    assert all(excludes(model, both) and excludes(both, model) for model in models)
    assert not excludes(*models)


def test_models_that_share_a_configuration_or_weights_take_turns() -> None:
    """The name of the attention is kept in the configuration."""
    model = tiny("llama")
    sibling = type(model)(model.config).double().eval()
    assert excludes(model, sibling)
    tied = tiny("llama")
    other = tiny("llama")
    other.lm_head.weight = tied.lm_head.weight
    assert excludes(tied, other)
    expected = attributed("llama", model, fixed()).scores
    again = together(
        *[lambda: attributed("llama", model, fixed()).scores] * 2,
        lambda: attributed("llama", sibling, fixed()).scores,
    )
    assert np.array_equal(again[0], expected)
    assert np.array_equal(again[1], expected)


def test_a_copy_is_another_model_and_locks_are_not_copied() -> None:
    model = tiny("llama")
    with locked(model):
        copied = copy.deepcopy(model)
        loaded = pickle.loads(pickle.dumps(model))
    assert not excludes(model, copied)
    assert not excludes(model, loaded)
    assert state(copied)["weights"] == state(model)["weights"]


def test_no_lock_keeps_a_model_alive() -> None:
    from dkn_engine.models import model_lock

    before = set(model_lock._locks)  # other tests' models may live on
    model = tiny("llama")
    with locked(model):
        pass
    own = set(model_lock._locks) - before
    assert len(own) > len(list(model.modules()))
    del model
    gc.collect()
    assert not own & set(model_lock._locks)


def test_a_context_left_by_another_thread_lets_the_model_go() -> None:
    """As frameworks do with fixtures and dependencies that yield."""
    model = tiny("llama")
    clean, before = logits(model), state(model)
    context = dkn.intervene(model, NEURONS, factor=0.0, on="weights")
    context.__enter__()
    assert not torch.equal(logits(model), clean)
    together(lambda: context.__exit__(None, None, None))
    assert state(model) == before
    (found,) = together(lambda: dkn.answer_probability(model, words_tokenizer(), facts()))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("on", ["activations", "weights"])
def test_others_wait_for_the_end_of_an_intervention(on: Any) -> None:
    model, tokenizer = tiny("llama"), words_tokenizer()
    clean = dkn.answer_probability(model, tokenizer, facts())
    with ThreadPoolExecutor(1) as pool:
        with dkn.intervene(model, NEURONS, factor=0.0, on=on):
            waiting = pool.submit(dkn.answer_probability, model, tokenizer, facts())
            changed = dkn.answer_probability(model, tokenizer, facts())
        assert np.array_equal(waiting.result(SECONDS), clean)
    assert not np.isclose(changed, clean, rtol=1e-3).any()


def test_a_call_that_raises_lets_the_model_go() -> None:
    model, tokenizer = tiny("llama"), words_tokenizer()
    with pytest.raises(dkn.FactError):
        dkn.attribute(model, tokenizer, [dkn.Fact("broken", "w5", " ")])
    handle = down_of("llama", model, 0).register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dkn.attribute(model, tokenizer, facts())
    handle.remove()
    (found,) = together(lambda: dkn.answer_probability(model, tokenizer, facts()))
    assert np.isfinite(found).all()


def test_an_own_forward_beside_a_call_is_told_why_it_fails() -> None:
    """It is the user's to avoid; the attention of the engine knows no rows in that thread."""
    model = tiny("llama")
    errors: list[str] = []

    def forward() -> None:
        with pytest.raises(RuntimeError) as raised:
            logits(model)
        errors.append(str(raised.value))

    caller = threading.current_thread()

    def beside(_module: nn.Module, _args: Any) -> None:
        engines = str(model.config._attn_implementation).startswith("dkn_engine")
        # The forward beside the call comes here, too, in a thread of its own.
        if engines and not errors and threading.current_thread() is caller:
            together(forward)

    handle = model.get_submodule("model.layers.0.self_attn").register_forward_pre_hook(beside)
    attributed("llama", model, fixed())
    handle.remove()
    assert "dkn_engine is using this model in another thread" in errors[0]
