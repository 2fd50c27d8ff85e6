"""The public verb ``attribute`` and its stream: what is kept, given, refused, and left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.attribution.attribute_facts import FACTS_PER_CHUNK
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig, FactsConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import context_length, encode_sequences
from dkn_engine.models.layout import find_layout
from tests.support.guests import Boom, broken, mixed_model, state
from tests.support.tiny import MASK_ID, N_LAYERS, WIDTH, down_of, sequence, tiny
from tests.support.words import text, words_tokenizer

# A fixed rule, so that batches of other sizes pay the same points.
FIXED = AttributionConfig(quadrature="gauss_legendre", n_steps=4)
GIVEN = AttributionConfig(quadrature="gauss_legendre", n_steps=4, baseline="given")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


def sequences(n: int) -> list[AnswerSequence]:
    return [sequence(2 + i % 5, 1 + i % 3, seed=i) for i in range(n)]


def facts(n: int) -> list[dkn.Fact]:
    return [
        dkn.Fact(f"f{i}", text(s.ids[: s.n_prompt]), text(s.targets))
        for i, s in enumerate(sequences(n))
    ]


def attribute(model: Any, n: int, config: AttributionConfig = FIXED, **more: Any) -> Any:
    return dkn.attribute(model, words_tokenizer(), facts(n), config, **more)


def stream(model: Any, some: Any, config: AttributionConfig = FIXED, **more: Any) -> Any:
    return dkn.iter_attribute(model, words_tokenizer(), some, config, **more)


def test_all_facts_are_attributed_in_their_order(model: Any) -> None:
    """More than a chunk of them; each as if it were alone."""
    n = FACTS_PER_CHUNK + 3
    found = attribute(model, n)
    assert found.fact_ids == tuple(f"f{i}" for i in range(n))
    assert found.path == ("sweep",) * n
    dense, layers = (n, N_LAYERS, WIDTH), (n, N_LAYERS)
    for name, dtype, shape in (
        ("scores", np.float32, dense),
        ("convergence_delta", np.float32, layers),
        ("probability", np.float64, (n,)),
        ("n_points", np.int32, layers),
        ("converged", np.bool_, layers),
        ("error", np.float32, (n,)),
    ):
        array = getattr(found, name)
        assert (array.dtype, array.shape) == (dtype, shape), name
    for i, one in enumerate(sequences(n)):
        alone = attribute_chunk(model, find_layout(model), [one], FIXED, mask_id=MASK_ID)
        highest = np.abs(alone.scores).max()
        np.testing.assert_allclose(found.scores[i], alone.scores[0], atol=1e-6 * highest)
        assert found.probability[i] == pytest.approx(alone.probability[0], rel=1e-9)
        assert found.n_points[i].tolist() == alone.n_points[0].tolist()


def test_no_facts_are_empty_arrays(model: Any) -> None:
    found = attribute(model, 0)
    assert found.scores.shape == (0, N_LAYERS, WIDTH)
    assert found.convergence_delta.shape == found.n_points.shape == (0, N_LAYERS)
    assert found.fact_ids == found.path == ()


def test_a_stream_says_what_the_arrays_say(model: Any) -> None:
    whole = attribute(model, 3)
    for i, one in enumerate(stream(model, facts(3))):
        assert one.fact_id == whole.fact_ids[i]
        np.testing.assert_array_equal(one.scores, whole.scores[i])
        np.testing.assert_array_equal(one.convergence_delta, whole.convergence_delta[i])
        assert one.probability == whole.probability[i]
        assert one.neurons.shape == (0, 2)


@pytest.mark.parametrize("n_top", [1, 7, N_LAYERS * WIDTH + 5])
def test_the_top_is_the_highest_scores(model: Any, n_top: int) -> None:
    whole = attribute(model, 3)
    for i, one in enumerate(stream(model, facts(3), keep="top", n_top=n_top)):
        assert one.scores is None
        order = np.argsort(-whole.scores[i].ravel(), kind="stable")[:n_top]
        expected = np.stack(np.unravel_index(order, (N_LAYERS, WIDTH)), axis=1)
        assert one.neurons.tolist() == expected.tolist()
        assert one.top_scores.tolist() == whole.scores[i].ravel()[order].tolist()
        assert (one.neurons.dtype, one.top_scores.dtype) == (np.int32, np.float32)


def test_nothing_is_kept_where_nothing_is_asked_for(model: Any) -> None:
    for one in stream(model, facts(2), keep="none"):
        assert one.scores is None
        assert len(one.neurons) == len(one.top_scores) == 0
        assert one.convergence_delta.shape == (N_LAYERS,)


def test_facts_are_read_as_they_are_needed(model: Any) -> None:
    read: list[str] = []

    def lazily() -> Iterator[dkn.Fact]:
        for fact in facts(2 * FACTS_PER_CHUNK):
            read.append(fact.id)
            yield fact

    found = stream(model, lazily())
    assert read == []
    assert next(found).fact_id == "f0"
    assert len(read) == FACTS_PER_CHUNK
    assert len(list(found)) == 2 * FACTS_PER_CHUNK - 1


@pytest.mark.parametrize("n", [3, FACTS_PER_CHUNK + 2])
def test_baselines_may_be_given_for_all_facts_or_for_each(model: Any, n: int) -> None:
    tables = np.random.default_rng(0).standard_normal((n, N_LAYERS, WIDTH))
    found = attribute(model, n, GIVEN, baselines=tables)
    for i, one in enumerate(sequences(n)):
        alone = attribute_chunk(
            model, find_layout(model), [one], GIVEN, baselines=torch.from_numpy(tables[i : i + 1])
        )
        highest = np.abs(alone.scores).max()
        np.testing.assert_allclose(found.scores[i], alone.scores[0], atol=1e-6 * highest)
    shared = attribute(model, n, GIVEN, baselines=tables[0])
    each = attribute(model, n, GIVEN, baselines=np.stack([tables[0]] * n))
    np.testing.assert_array_equal(shared.scores, each.scores)


def test_a_baseline_of_zeros_is_the_zero_baseline(model: Any) -> None:
    zero = AttributionConfig(quadrature="gauss_legendre", n_steps=4, baseline="zero")
    given = attribute(model, 2, GIVEN, baselines=np.zeros((N_LAYERS, WIDTH)))
    np.testing.assert_array_equal(given.scores, attribute(model, 2, zero).scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_baselines_of_another_precision_than_the_model(dtype: Any) -> None:
    table = np.random.default_rng(0).standard_normal((N_LAYERS, WIDTH)).astype(np.float32)
    found = [
        attribute(tiny("llama", torch.float32), 2, GIVEN, baselines=table.astype(d)).scores
        for d in (dtype, np.float32)
    ]
    np.testing.assert_array_equal(*found)


TABLE = np.zeros((N_LAYERS, WIDTH))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (FIXED, {"keep": "some"}, "keep must be one of all, top, none; got 'some'"),
        (FIXED, {"keep": "top", "n_top": 0}, "n_top must be an integer of at least 1; got 0"),
        (FIXED, {"baselines": TABLE}, "baseline='masked' and baselines set"),
        (GIVEN, {}, "baseline='given' and baselines None"),
        (GIVEN, {"baselines": TABLE[:1]}, r"baselines must be real \[3, 40\]"),
        (GIVEN, {"baselines": TABLE.astype(int)}, "baselines must be real"),
        (GIVEN, {"baselines": TABLE[None, None]}, r"got float64 \[1, 1, 3, 40\]"),
    ],
    ids=["keep", "n_top", "unasked", "missing", "shape", "whole numbers", "axes"],
)
def test_wrong_arguments_are_named_at_once(
    model: Any, config: Any, options: Any, message: str
) -> None:
    with pytest.raises(dkn.UserError, match=message):
        stream(model, facts(2), config, **options)  # before the first result is asked for


@pytest.mark.parametrize("rows", [2, 4])
def test_baselines_must_be_as_many_as_facts(model: Any, rows: int) -> None:
    with pytest.raises(dkn.UserError, match=f"got {rows} rows and"):
        attribute(model, 3, GIVEN, baselines=np.stack([TABLE] * rows))


def test_a_fact_that_cannot_be_encoded_is_named(model: Any) -> None:
    with pytest.raises(dkn.FactError, match="'bad'"):
        list(stream(model, [*facts(2), dkn.Fact("bad", "w5", " ")]))


def test_a_tokenizer_without_a_mask_needs_another_baseline(model: Any) -> None:
    tokenizer = words_tokenizer()
    tokenizer.mask_token = tokenizer.eos_token = None
    with pytest.raises(dkn.UserError, match="mask token"):
        dkn.iter_attribute(model, tokenizer, facts(1), FIXED)
    zero = AttributionConfig(baseline="zero")
    assert len(list(dkn.iter_attribute(model, tokenizer, facts(1), zero))) == 1


def test_facts_are_encoded_as_asked(model: Any) -> None:
    fact = dkn.Fact("f", "w5 w6", "w9")
    tokenizer = words_tokenizer(bos=True)
    special = FactsConfig(answer_space=False, answer_special_tokens=True)
    plain, released = (
        dkn.attribute(model, tokenizer, [fact], FIXED, facts_config=config).n_points[0, 0]
        for config in (None, special)
    )
    # Four points and the one at the baseline, for each token; <s> counts as one.
    assert (plain, released) == (5, 10)


def test_pairs_that_cannot_be_encoded_are_left_out(model: Any) -> None:
    texts = [("w5", "w6"), ("", "w6"), ("w5", " "), ("w7 w8", "w9")]
    found = encode_sequences(model, words_tokenizer(), texts, config=FactsConfig())
    assert found == [AnswerSequence((5,), 1, (6,)), AnswerSequence((7, 8), 2, (9,))]


@pytest.mark.parametrize(("name", "expected"), [("llama", 64), ("gpt2", 64), ("gemma3", 64)])
def test_the_context_length_is_the_models(name: str, expected: int) -> None:
    assert context_length(tiny(name)) == expected


def test_a_model_that_does_not_say_has_no_context_length(model: Any) -> None:
    class Bare:
        config = object()

    assert context_length(Bare()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_alone(mode: Any) -> None:
    model = mixed_model("llama")
    before = state(model)
    with mode():
        attribute(model, 2)
    assert state(model) == before
    with broken(down_of("llama", model, 1)), pytest.raises(Boom):
        attribute(model, 2)
    assert state(model) == before
