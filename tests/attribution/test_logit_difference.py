"""The objective ``logit_difference`` against brute force and by its public verbs."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.selection import select_neurons
from tests.support.attribution_runs import LEFT, attributed, fixed, tolerance
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import N_LAYERS, WIDTH, relative_error, sequence, tiny
from tests.support.words import text, words_tokenizer

DIFFERENCE: Any = "logit_difference"
WRONG = ((7,), (11, 13, 5), (17, 3))  # of one, three and two tokens


def behind(prompt: AnswerSequence, answer: tuple[int, ...]) -> AnswerSequence:
    ids = prompt.ids[: prompt.n_prompt]
    return AnswerSequence(ids + answer[:-1], len(ids), answer)


def contrasted(n_wrong: tuple[int, ...] = (3, 1, 2)) -> list[AnswerSequence]:
    """Answers of two, one and three tokens, each against some of the wrong ones."""
    shapes = ((5, 2), (2, 1), (7, 3))
    golds = [sequence(n, k, seed=i) for i, (n, k) in enumerate(shapes)]
    return [
        replace(gold, against=tuple(behind(gold, wrong) for wrong in WRONG[:n]))
        for gold, n in zip(golds, n_wrong, strict=True)
    ]


def expected_scores(oracle: BruteForce, one: AnswerSequence) -> Tensor:
    def mean(s: AnswerSequence) -> Tensor:
        return oracle.scores(s, LEFT, kind="logit").mean(0)

    return mean(one) - torch.stack([mean(wrong) for wrong in one.against]).mean(0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gptj"])
def test_scores_equal_brute_force(name: str) -> None:
    model, some = tiny(name), contrasted()
    found = attributed(name, model, fixed(objective=DIFFERENCE), some)
    oracle = BruteForce(name, model, "post")
    for scores, one in zip(found.scores, some, strict=True):
        assert relative_error(scores, expected_scores(oracle, one)) < tolerance(name)


def test_of_one_token_it_is_the_differences_own_gradient() -> None:
    """By autograd of gold's logit minus the mean of the wrong ones', along one path.

    In GPT-2, all of which is float64; LLaMA's norms round a gradient to float32.
    """
    model, rivals = tiny("gpt2"), [7, 11, 17]
    gold = sequence(4, 1)
    one = replace(gold, against=tuple(behind(gold, (t,)) for t in rivals))
    found = attributed("gpt2", model, fixed(objective=DIFFERENCE), [one]).scores[0]
    oracle, position = BruteForce("gpt2", model, "post"), gold.n_prompt - 1
    value, start = oracle.activations(gold.ids, position), oracle.masked_baseline(gold, position)
    total = torch.zeros_like(value)
    for layer in range(N_LAYERS):
        for alpha, weight in zip(*LEFT, strict=True):
            x = start[layer] + float(alpha) * (value[layer] - start[layer])
            x.requires_grad_(True)
            logits = [
                oracle.objective(gold.ids, position, t, layer, x, "logit")
                for t in [*gold.targets, *rivals]
            ]
            difference = logits[0] - torch.stack(logits[1:]).mean()
            total[layer] += float(weight) * torch.autograd.grad(difference, x)[0]
    assert relative_error(found, total * (value - start)) < 1e-10


@pytest.mark.parametrize("how", ["mean", "sum", "first"])
def test_scores_sum_to_the_change_of_the_difference(how: Any) -> None:
    """To the tolerance: a sum of F errors is at most sqrt(F) times their length."""
    model, some = tiny("llama"), contrasted()
    config = AttributionConfig(objective=DIFFERENCE, tolerance=1e-3, answer_tokens=how)
    found, oracle = attributed("llama", model, config, some), BruteForce("llama", model, "post")

    def change(s: AnswerSequence) -> Tensor:
        every = oracle.change(s, "masked", "logit")
        return {"mean": every.mean(0), "sum": every.sum(0), "first": every[0]}[how]

    for b, one in enumerate(some):
        wrong = torch.stack([change(w) for w in one.against]).mean(0)
        apart = found.scores[b].sum(-1) - (change(one) - wrong).numpy()
        allowed = float(found.error[b]) * WIDTH**0.5 * np.linalg.norm(found.scores[b])
        assert np.abs(apart).max() <= allowed
        np.testing.assert_allclose(found.convergence_delta[b], apart, atol=1e-5)


def test_the_bound_on_the_error_is_of_the_difference() -> None:
    """An answer against itself leaves nothing, which no tolerance is a share of."""
    gold = sequence(5, 1)
    config = AttributionConfig(objective=DIFFERENCE)
    same = replace(gold, against=(gold,))
    found = attributed("llama", tiny("llama"), config, [same])
    assert not found.scores.any()
    assert not found.converged.any()


@functools.cache
def exact_differences() -> tuple[Any, list[tuple[list[AnswerSequence], NDArray[np.floating]]]]:
    """A model, and answers with their scores by a dense rule.

    The last one is shorter than its parts: of an answer and one that is almost as likely.
    """
    model, gold = tiny("llama"), sequence(5, 1)
    near = model.lm_head.weight
    with torch.no_grad():
        near[7] = near[gold.targets[0]] + 0.2 * near[7]
    exact = AttributionConfig(objective=DIFFERENCE, quadrature="gauss_legendre", n_steps=64)
    groups = [contrasted(), [replace(gold, against=(behind(gold, (7,)),))]]
    return model, [(some, attributed("llama", model, exact, some).scores) for some in groups]


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_a_difference_is_within_the_tolerance(tolerance: float) -> None:
    model, groups = exact_differences()
    config = AttributionConfig(objective=DIFFERENCE, tolerance=tolerance)
    for some, true in groups:
        found = attributed("llama", model, config, some)
        assert found.converged.all()
        assert (found.error <= tolerance).all()
        for scores, expected in zip(found.scores, true, strict=True):
            assert relative_error(scores, expected) <= tolerance


def test_a_difference_that_is_nearly_nothing_costs_no_other_answer() -> None:
    """Differences are scored again to what their own length asks for, whatever the others'."""
    model, config = tiny("llama"), AttributionConfig(objective=DIFFERENCE, tolerance=1e-4)
    head = model.get_output_embeddings().weight
    with torch.no_grad():  # of two answers that are like a third, one much more than the other
        for answer, apart in ((8, 0.025), (11, 0.1)):
            head[answer] = head[7] + apart * head[answer]
    prompts = [sequence(5, 1, seed=s) for s in (1, 3, 4)]
    close, *some = (
        replace(behind(one, (answer,)), against=(behind(one, (7,)),))
        for one, answer in ((prompts[2], 8), *((one, 11) for one in prompts))
    )
    alone = [attributed("llama", model, config, [one]) for one in some]
    found = attributed("llama", model, config, [close, *some])
    assert found.n_points[0].sum() > 2 * max(one.n_points.sum() for one in alone)
    for i, one in enumerate(alone):
        assert found.n_points[i + 1].tolist() == one.n_points[0].tolist()
        assert relative_error(found.scores[i + 1], one.scores[0]) < 1e-8


def test_given_baselines_are_those_of_the_prompt() -> None:
    model, some = tiny("llama"), contrasted()
    random = torch.Generator().manual_seed(5)
    given = torch.randn(3, N_LAYERS, WIDTH, generator=random, dtype=torch.float64)
    config = fixed(objective=DIFFERENCE, baseline="given")
    found = attributed("llama", model, config, some, baselines=given)
    oracle = BruteForce("llama", model, "post")
    for scores, one, start in zip(found.scores, some, given, strict=True):
        parts = [oracle.scores(s, LEFT, start, kind="logit").mean(0) for s in (one, *one.against)]
        expected = parts[0] - torch.stack(parts[1:]).mean(0)
        assert relative_error(scores, expected) < 1e-10


def facts() -> list[dkn.Fact]:
    return [
        dkn.Fact(
            f"f{i}",
            text(s.ids[: s.n_prompt]),
            text(s.targets),
            wrong_answers=tuple(text(w.targets) for w in s.against),
        )
        for i, s in enumerate(contrasted())
    ]


def test_attribute_takes_the_facts_wrong_answers() -> None:
    model, config = tiny("llama"), fixed(objective=DIFFERENCE)
    found = dkn.attribute(model, words_tokenizer(), facts(), config)
    expected = attributed("llama", model, config, contrasted())
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6, atol=1e-7)
    bare = [dkn.Fact("bare", "w5 w9", "w13")]
    with pytest.raises(dkn.FactError, match="'bare': objective='logit_difference' needs wrong_a"):
        dkn.attribute(model, words_tokenizer(), bare, config)


def test_a_run_locates_neurons_by_it_and_skips_facts_without_wrong_answers() -> None:
    model = tiny("llama")
    config = dkn.Config(
        attribution=fixed(objective=DIFFERENCE),
        filter=dkn.FilterConfig(require_rank_1=False, min_probability=0.0, n_random=2),
    )
    some = [*facts(), dkn.Fact("bare", "w5 w9", "w13")]
    results = dkn.find_dkns(model, words_tokenizer(), some, config)
    scores = dkn.attribute(model, words_tokenizer(), facts(), config.attribution).scores
    for result, table in zip(results[:3], scores, strict=True):
        assert result.status == "ok"
        expected = select_neurons(table, config.selection)
        np.testing.assert_array_equal(result.neurons, expected.neurons)
    assert results[3].status == "skipped"
    assert "needs wrong_answers" in results[3].reason
    # Given neurons are not scored.
    (examined,) = dkn.examine(model, words_tokenizer(), some[3], [[0, 3], [2, 39]], config)
    assert examined.status == "ok"


def test_paraphrases_that_help_are_contrasted_too() -> None:
    model = tiny("llama")
    attribution = fixed(objective=DIFFERENCE)
    selection = dkn.SelectionConfig(n_paraphrases=1, paraphrase_share=0.5)
    lenient = dkn.FilterConfig(require_rank_1=False, min_probability=0.0, n_random=2)
    config = dkn.Config(attribution=attribution, selection=selection, filter=lenient)
    one = replace(facts()[0], paraphrases=("w5 w9 w30", "w7 w3"))
    (result,) = dkn.find_dkns(model, words_tokenizer(), [one], config)
    both = [one, replace(one, id="other", prompt=one.paraphrases[0])]
    tables = dkn.attribute(model, words_tokenizer(), both, attribution).scores
    expected = select_neurons(tables, selection)
    np.testing.assert_array_equal(result.neurons, expected.neurons)
    assert result.status == "ok"


def test_sequences_without_wrong_answers_are_refused() -> None:
    with pytest.raises(dkn.UserError, match="needs wrong answers of every answer"):
        attributed("llama", tiny("llama"), fixed(objective=DIFFERENCE), [sequence(4, 1)])
