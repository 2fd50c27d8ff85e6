"""Objectives under edits against plain full forwards, whose logits are read one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.config import FactsConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, nothing, suppress
from dkn_engine.degeneracy.objectives import Objective, reading_of
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.forward.patched_rows import RowEngine
from dkn_engine.models.layout import find_layout
from tests.support.brute_force_edits import edited
from tests.support.brute_force_objectives import objectives
from tests.support.tiny import N_LAYERS, WIDTH, sequence, tiny
from tests.support.tiny_encoders import left_to_right, masked, tiny_encoder
from tests.support.words import text, words_tokenizer

KINDS = ("log_probability", "logit", "logit_difference")
HOW = ("mean", "sum", "first")
# GPT-J and OPT have no rows, so full forwards. GPT-J multiplies queries with keys in float32, and
# Gemma 2's attention takes its softmax in float32, whatever the model's dtype.
FAMILIES = ("llama", "gpt2", "gemma2", "opt", "gptj")
CLOSE = {"gptj": 1e-5, "gemma2": 1e-5}
# Of one token, of several that begin as the answer does, and of others.
WRONG = ((7,), (11, 13, 5), (17, 3))


def edits() -> list[Edit]:
    random = np.random.default_rng(1)
    found = [nothing()]
    for n in (1, 5, 30):
        flat = random.choice(N_LAYERS * WIDTH, n, replace=False)
        found.append(suppress(np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1)))
    means = random.standard_normal((N_LAYERS, WIDTH))
    return [*found, suppress(found[-1].neurons, means)]


def behind(prompt: AnswerSequence, answer: tuple[int, ...]) -> AnswerSequence:
    ids = prompt.ids[: prompt.n_prompt]
    return AnswerSequence(ids + answer[:-1], len(ids), answer)


def decoders_facts() -> list[AnswerSequence]:
    """Answers of two, one and three tokens; one wrong answer begins with the answer's own token."""
    golds = [sequence(5, 2, seed=1), sequence(2, 1, seed=2), sequence(7, 3, seed=3)]
    found = []
    for gold, n in zip(golds, (3, 1, 2), strict=True):
        like = (gold.targets[0], 19, 23, 29)
        wrong = [behind(gold, answer) for answer in (*WRONG[:n], like)]
        found.append(replace(gold, against=tuple(wrong)))
    return found


def other_answer(one: AnswerSequence, answer: tuple[int, ...]) -> AnswerSequence:
    """A sentence of an encoder with masks for another answer in the place of its own."""
    before, after = one.ids[: one.masks[0]], one.ids[one.masks[-1] + 1 :]
    ids = (*before, *[one.ids[one.masks[0]]] * len(answer), *after)
    masks = tuple(range(len(before), len(before) + len(answer)))
    return AnswerSequence(ids, len(ids), answer, masks=masks)


def encoders_facts(order: str) -> list[AnswerSequence]:
    found = []
    for gold in (masked(3, 2, 2, seed=1), masked(4, 1, 0, seed=2)):
        wrong = [other_answer(gold, a) for a in (*WRONG, (gold.targets[0], 5))]
        every = [gold, *wrong]
        if order == "left_to_right":
            every = [left_to_right(s) if len(s.targets) > 1 else s for s in every]
        found.append(replace(every[0], against=tuple(every[1:])))
    return found


def prompts_of(model: Any, some: list[AnswerSequence], how: Objective, **options: Any) -> Prompts:
    return Prompts(model, find_layout(model), some, warn=False, objective=how, **options)


def asked_of(prompts: Prompts, some: list[Edit]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and objectives ``[P, B]``."""
    question = Asked(some, range(len(prompts)), objective=True)
    ((p, value),) = prompts.with_objective([question])
    assert value is not None
    return p, value


def by_force(name: str, model: Any, some: list[AnswerSequence], **options: Any) -> np.ndarray:
    return np.array([objectives(name, model, one, edits(), **options) for one in some]).T


def check(name: str, model: Any, some: list[AnswerSequence], kind: str, how: str, at: str) -> None:
    prompts = prompts_of(model, some, Objective(kind, how), positions=at)
    p, value = asked_of(prompts, edits())
    expected = by_force(name, model, some, kind=kind, how=how, positions=at)
    tolerance = CLOSE.get(name, 1e-10)
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
    # And the edits matter, by far more than is allowed.
    assert np.ptp(expected, axis=0).min() > 1e-2
    plain = Prompts(model, find_layout(model), some, positions=at, warn=False)
    np.testing.assert_allclose(p, plain.probabilities(edits()), rtol=tolerance)
    np.testing.assert_allclose(prompts.probability, plain.probability, rtol=tolerance)
    np.testing.assert_array_equal(prompts.rank, plain.rank)
    assert len(prompts) == len(some)


@pytest.mark.parametrize("at", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_decoders_objectives_equal_brute_force(name: str, kind: str, at: str) -> None:
    check(name, tiny(name), decoders_facts(), kind, "mean", at)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_combined_as_attribution_does(kind: str, how: str) -> None:
    check("llama", tiny("llama"), decoders_facts(), kind, how, "answer")


@pytest.mark.parametrize("at", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("order", ["independent", "left_to_right"])
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_objectives_equal_brute_force(kind: str, order: str, at: str) -> None:
    check("bert", tiny_encoder("bert"), encoders_facts(order), kind, "mean", at)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # whose logits are capped
def test_backends_agree(name: str, backend: str) -> None:
    model, some = tiny(name), decoders_facts()
    found = prompts_of(model, some, Objective("logit_difference"), backend=backend)
    _, value = asked_of(found, edits())
    expected = by_force(name, model, some, kind="logit_difference")
    tolerance = CLOSE.get(name, 1e-10)
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_and_any_company_give_the_same(name: str, kind: str) -> None:
    model, some, every = tiny(name), decoders_facts(), edits()
    _, expected = asked_of(prompts_of(model, some, Objective(kind)), every)
    _, value = asked_of(prompts_of(model, some, Objective(kind), max_rows=3), every)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
    for b, one in enumerate(some):
        _, alone = asked_of(prompts_of(model, [one], Objective(kind)), every)
        np.testing.assert_allclose(alone[:, 0], expected[:, b], rtol=1e-10, atol=1e-10)


def test_questions_side_by_side_have_answers_of_their_own() -> None:
    """Some want the objective and others do not, in one climb."""
    model, some, every = tiny("llama"), decoders_facts(), edits()
    prompts = prompts_of(model, some, Objective("logit_difference"))
    p, value = asked_of(prompts, every)
    questions = [
        Asked(every[:2], [2]),
        Asked(every[1:], [0, 2], objective=True),
        Asked([], [1], objective=True),
        Asked(every[:3], [1], objective=True),
    ]
    places = [([0, 1], [2]), ([1, 2, 3, 4], [0, 2]), ([], [1]), ([0, 1, 2], [1])]
    answers = prompts.with_objective(questions)
    for one, (own, read), (rows, columns) in zip(questions, answers, places, strict=True):
        at = np.ix_(np.array(rows, dtype=int), np.array(columns))
        np.testing.assert_allclose(own, p[at], rtol=1e-10)
        assert (read is not None) == one.objective
        if read is not None:
            np.testing.assert_allclose(read, value[at], rtol=1e-10, atol=1e-10)
    without = Prompts(model, find_layout(model), some, warn=False)
    assert without.with_objective(questions)[1][1] is None


def test_no_wrong_answers_no_difference() -> None:
    model, some = tiny("llama"), decoders_facts()
    some[1] = replace(some[1], against=())
    _, value = asked_of(prompts_of(model, some, Objective("logit_difference")), edits())
    assert np.isnan(value[:, 1]).all()
    expected = by_force("llama", model, [some[0], some[2]], kind="logit_difference")
    np.testing.assert_allclose(value[:, [0, 2]], expected, rtol=1e-10, atol=1e-10)


def test_a_token_that_a_model_rules_out_leaves_other_answers_their_logits() -> None:
    """A logit of minus infinity counts for the answers that have it alone."""
    model, some = tiny("opt"), decoders_facts()
    ruled_out = 3  # the second token of an answer that is against the first fact alone

    def hook(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([0, ruled_out]), float("-inf"))

    handle = model.lm_head.register_forward_hook(hook)
    _, value = asked_of(prompts_of(model, some, Objective("logit_difference")), edits())
    handle.remove()
    assert np.isposinf(value[:, 0]).all()
    assert np.isfinite(value[:, 1]).all()


@pytest.mark.parametrize("gold", [(9, 8), (9,)])
@pytest.mark.parametrize("continuation", ["clean", "edited", "edited_text"])
@pytest.mark.parametrize("kind", KINDS)
def test_behind_tokens_of_the_models_own(
    kind: str, continuation: Any, gold: tuple[int, ...]
) -> None:
    """The released code's way: its greedy tokens follow the prompt, whatever the answer says."""
    model, tokenizer = tiny("llama"), words_tokenizer()
    config = FactsConfig(teacher_forced=False, continuation=continuation)
    prompt = text(sequence(4, 1, seed=5).ids)
    wrong = [text(answer) for answer in WRONG]
    one = encode_sequence(model, tokenizer, prompt, text(gold), config=config, wrong_answers=wrong)
    longest = one.against[1]
    assert len(longest.targets) == 3
    _, value = asked_of(prompts_of(model, [one], Objective(kind)), edits())
    expected = [
        continued(model, longest, gold, edit, kind, continuation != "clean") for edit in edits()
    ]
    np.testing.assert_allclose(value[:, 0], expected, rtol=1e-10, atol=1e-10)


def test_without_wrong_answers_the_models_own_tokens_give_probabilities_alone() -> None:
    model, tokenizer = tiny("llama"), words_tokenizer()
    config = FactsConfig(teacher_forced=False, continuation="edited")
    prompt = text(sequence(4, 1, seed=5).ids)
    bare = encode_sequence(model, tokenizer, prompt, text((9, 8)), config=config)
    some = [bare, decoders_facts()[0]]
    p, value = asked_of(prompts_of(model, some, Objective("logit_difference")), edits())
    plain = Prompts(model, find_layout(model), some, warn=False)
    np.testing.assert_allclose(p, plain.probabilities(edits()), rtol=1e-10)
    assert np.isnan(value[:, 0]).all()
    assert np.isfinite(value[:, 1]).all()


def continued(
    model: Any,
    longest: AnswerSequence,
    gold: tuple[int, ...],
    edit: Edit,
    kind: str,
    follows_edit: bool,
) -> float:
    """By plain forwards, each token behind the edited or the clean model's own."""
    own: tuple[int, ...] = ()
    rows = []
    for _ in longest.targets:
        ids = longest.behind(own)
        with edited("llama", model, edit, [len(ids) - 1]), torch.no_grad():
            rows.append(model(input_ids=torch.tensor([ids])).logits[0, -1].double())
        with torch.no_grad():
            clean = model(input_ids=torch.tensor([ids])).logits[0, -1]
        own += (int((rows[-1] if follows_edit else clean).argmax()),)
    if kind == "log_probability":
        rows = [row.log_softmax(-1) for row in rows]

    def mean(answer: tuple[int, ...]) -> float:
        taken = [float(row[t]) for row, t in zip(rows, answer, strict=False)]
        return sum(taken) / len(answer)

    wrong = sum(mean(answer) for answer in WRONG) / len(WRONG)
    return mean(gold) - (wrong if kind == "logit_difference" else 0.0)


@pytest.fixture
def climbed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each layer is run on, call by call."""
    rows: list[int] = []
    run_layer = RowEngine.run_layer

    def counted(self: Any, layer: int, hidden: Any, *args: Any) -> Any:
        rows.append(hidden.shape[0] * hidden.shape[1])
        return run_layer(self, layer, hidden, *args)

    monkeypatch.setattr(RowEngine, "run_layer", counted)
    return rows


def test_nothing_more_climbs_for_wrong_answers_of_one_token(climbed: list[int]) -> None:
    """Their logits are read where the answer's are: as many rows as without them."""
    gold = sequence(5, 1, seed=1)
    some = [replace(gold, against=tuple(behind(gold, (t,)) for t in (7, 11, 13)))]
    prompts = prompts_of(tiny("llama"), some, Objective("logit_difference"))
    assert not prompts.stands_in
    climbed.clear()
    asked_of(prompts, edits())
    with_objective, climbed[:] = list(climbed), []
    prompts.probabilities(edits())
    assert with_objective == climbed
    assert climbed


def test_longer_wrong_answers_climb_for_the_questions_that_want_them_alone(
    climbed: list[int],
) -> None:
    prompts = prompts_of(tiny("llama"), decoders_facts(), Objective("logit_difference"))
    plain, wanting = Asked(edits(), [0]), Asked(edits(), [2], objective=True)
    n_rows = []
    for questions in ([plain], [wanting], [plain, wanting]):
        climbed.clear()
        prompts.with_objective(questions)
        n_rows.append(sum(climbed))
    assert n_rows[2] == n_rows[0] + n_rows[1]
    climbed.clear()
    prompts.with_objective([replace(plain, objective=True)])
    assert sum(climbed) > n_rows[0]


@pytest.mark.parametrize("source", [(5, 40, 8), (5, 40, 9)])
def test_a_wrong_answer_in_another_text_of_the_encoder_has_its_own_place(
    source: tuple[int, ...],
) -> None:
    """As where a tokenizer joins an answer with what is beside its blank."""
    own = AnswerSequence((0, 40), 2, (3,), source=(5, 40, 8))
    fact = replace(own, against=(replace(own, targets=(7,), source=source),))
    reading = reading_of(Objective("logit_difference"), [fact])
    if source == own.source:
        assert reading.terms == [[{3: 1.0, 7: -1.0}]]
    else:
        assert reading.terms == [[{3: 1.0}], [{7: -1.0}]]
