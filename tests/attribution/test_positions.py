"""Attribution at chosen positions of the prompt, against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig, Config
from dkn_engine.errors import FactError, UserError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.prompt_positions import prompt_positions
from tests.support.attribution_runs import LEFT, attributed, fixed, tolerance
from tests.support.brute_force_scores import BruteForce, Read, Rule
from tests.support.guests import state
from tests.support.tiny import MASK_ID, relative_error, sequences, tiny
from tests.support.words import text, words_tokenizer

PLACES = ((0, 3), (1,), (0, 2, 6))  # of prompts of five, two and seven tokens


def at_places() -> list[AnswerSequence]:
    return [s.at(places) for s, places in zip(sequences(), PLACES, strict=True)]


def expected_at(
    oracle: BruteForce, one: AnswerSequence, at: Sequence[int], rule: Rule, masked: bool = True
) -> Tensor:
    """Scores ``[tokens, L, F]``, summed over positions at which the activation alone moves."""
    total = torch.zeros(())
    for place in at:
        reads = [Read(place, one.n_prompt - 1 + i, t) for i, t in enumerate(one.targets)]
        value = oracle.activations(one.ids, place).expand(len(reads), -1, -1)
        start = torch.zeros_like(value)
        if masked:
            start = oracle.masked_baseline(one, place).expand_as(value)
        mean = oracle.mean_gradients(one.ids, reads, (start, value), rule)
        total = total + mean * (value - start)
    return total


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gptj", "opt"])
def test_scores_equal_brute_force(name: str, site: str, baseline: str) -> None:
    model = tiny(name)
    found = attributed(name, model, fixed(site=site, baseline=baseline), at_places())
    assert found.path == "blocks"
    oracle = BruteForce(name, model, site)
    for scores, one, places in zip(found.scores, sequences(), PLACES, strict=True):
        other = expected_at(oracle, one, places, LEFT, masked=baseline == "masked").mean(0)
        assert relative_error(scores, other) < tolerance(name)


def test_the_predicting_position_itself_gives_what_answer_gives() -> None:
    """Of answers of one token, whose last prompt token predicts them."""
    model, some = tiny("llama"), [s for s in sequences() if len(s.targets) == 1]
    config = AttributionConfig(tolerance=1e-8)
    swept = attributed("llama", model, config, some)
    found = attributed("llama", model, config, [s.at((s.n_prompt - 1,)) for s in some])
    assert (swept.path, found.path) == ("sweep", "blocks")
    assert relative_error(found.scores, swept.scores) < 2e-8
    np.testing.assert_allclose(found.probability, swept.probability, rtol=1e-12)


def test_full_forwards_give_the_same() -> None:
    model = tiny("llama")
    blocks = attributed("llama", model, fixed(), at_places())
    model.model.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, {**kwargs, "strange": object()}), with_kwargs=True
    )
    with pytest.warns(UserWarning, match="rows are of the positions that predict; in blocks, lay"):
        found = attributed("llama", model, fixed(), at_places())
    assert found.path == "general"
    assert relative_error(found.scores, blocks.scores) < 1e-10


@pytest.mark.parametrize("how", ["sum", "first"])
def test_answer_tokens_are_combined(how: Any) -> None:
    model = tiny("gpt2")
    found = attributed("gpt2", model, fixed(answer_tokens=how), at_places())
    whole = attributed("gpt2", model, fixed(), sequences())
    np.testing.assert_allclose(found.probability, whole.probability, rtol=1e-12)
    oracle = BruteForce("gpt2", model, "post")
    for scores, one, places in zip(found.scores, sequences(), PLACES, strict=True):
        every = expected_at(oracle, one, places, LEFT)
        other = every[0] if how == "first" else every.sum(0)
        assert relative_error(scores, other) < 1e-10


def test_a_score_of_one_gradient_is_taken_there_too() -> None:
    """Activation times gradient, which is a rule with one point, the activation."""
    model = tiny("gpt2")
    config = AttributionConfig(method="attribution_patching", baseline="zero")
    found = attributed("gpt2", model, config, at_places())
    oracle, end = BruteForce("gpt2", model, "post"), ([1.0], [1.0])
    for scores, one, places in zip(found.scores, sequences(), PLACES, strict=True):
        other = expected_at(oracle, one, places, end, masked=False).mean(0)
        assert relative_error(scores, other) < 1e-10


def test_the_last_layer_says_nothing_of_earlier_positions() -> None:
    found = attributed("llama", tiny("llama"), AttributionConfig(), [sequences()[2].at((0, 2))])
    assert not found.scores[0, -1].any()
    assert found.scores[0, 0].any()
    assert found.converged.all()


def fact(**more: Any) -> dkn.Fact:
    return dkn.Fact("a", "w3 w4 w5 w6 w7", "w8", **more)


@pytest.mark.parametrize(
    ("which", "places"),
    [
        ("answer", ()),
        ("all", (0, 1, 2, 3, 4)),
        ("subject_last", (3,)),
        ((-1, 0, 4), (0, 4)),
    ],
)
def test_positions_are_found_in_the_prompt(which: Any, places: tuple[int, ...]) -> None:
    assert prompt_positions(words_tokenizer(), fact(subject="w5 w6"), which) == places


@pytest.mark.parametrize(
    ("which", "subject", "words"),
    [
        ((5,), None, "fact 'a': positions must be among the prompt's 5 tokens; got 5"),
        ((-6,), None, "fact 'a': positions must be among the prompt's 5 tokens; got -6"),
        ("subject_last", None, "needs a subject that stands in its prompt; got None"),
        ("subject_last", "w5 w", "needs a token that ends with the subject; the prompt 'w3 w4"),
        ("subject_last", "w9", "needs a subject that stands in its prompt; got 'w9'"),
    ],
)
def test_positions_that_a_prompt_lacks_are_refused(which: Any, subject: Any, words: str) -> None:
    with pytest.raises(FactError, match=words):
        prompt_positions(words_tokenizer(), fact(subject=subject), which)


def test_the_public_verb_finds_the_subject_and_leaves_the_model_as_it_was() -> None:
    model, one = tiny("llama"), sequences()[0]
    asked = dkn.Fact("a", text(one.ids[:5]), text(one.targets), subject=text(one.ids[2:4]))
    before = state(model)
    config = fixed(positions="subject_last")
    found = dkn.attribute(model, words_tokenizer(), [asked], config)
    assert state(model) == before
    assert found.path == ("blocks",)
    assert words_tokenizer().mask_token_id == MASK_ID
    other = expected_at(BruteForce("llama", model, "post"), one, (3,), LEFT).mean(0)
    assert relative_error(found.scores[0], other.float()) < 1e-6  # scores are float32


def test_wrong_answers_are_attributed_at_the_same_positions() -> None:
    model, (one, other, _) = tiny("gpt2"), sequences()
    rival = AnswerSequence(one.ids[:5], 5, other.targets)
    asked = AnswerSequence(one.ids[:5], 5, one.targets[:1], against=(rival,)).at((1,))
    found = attributed("gpt2", model, fixed(objective="logit_difference"), [asked])
    parts = [
        attributed(
            "gpt2",
            model,
            fixed(objective="logit"),
            [AnswerSequence(one.ids[:5], 5, t, changed=(1,))],
        )
        for t in (one.targets[:1], other.targets)
    ]
    assert relative_error(found.scores, parts[0].scores - parts[1].scores) < 1e-10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"positions": ()}, "positions must be of at least one token"),
        ({"positions": "subject"}, "positions must be one of 'answer', 'subject_last', 'all' or a"),
        ({"positions": "all", "masked_tokens": "all"}, "masked_tokens must be 'prompt' at other"),
        ({"positions": (0,), "multiply_by": "first_activation"}, "multiply_by must be 'delta' or"),
        ({"positions": "all", "method": "relp"}, "method must be another at other positions"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AttributionConfig(**options)


def test_a_run_takes_the_answers_position_alone() -> None:
    with pytest.raises(UserError, match=r"attribution.positions must be 'answer' for DKNs, whose"):
        Config(attribution=AttributionConfig(positions="all"))
