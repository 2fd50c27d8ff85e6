"""Edits in encoders: equal to plain loops with one hook a neuron; analyses on top of them run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dkn_engine as dkn
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import combine, enhance, nothing, suppress
from dkn_engine.degeneracy.questions import AskedSlopes
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.tiny import N_LAYERS, WIDTH
from tests.support.tiny_encoders import (
    ENCODERS,
    down_of,
    left_to_right,
    sentences,
    tiny_encoder,
)
from tests.support.words import text, words_tokenizer

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 0}
OFF, ON = [(0, 3), (1, 5), (2, 7), (2, 8)], [(0, 4), (1, 6)]
EDITS = [suppress(OFF), enhance(ON, 2.5), combine(suppress(OFF[:1]), enhance(ON[1:], -1.0))]


@contextmanager
def changed(name: str, model: nn.Module, edit: Any, where: Sequence[int]) -> Iterator[None]:
    """Neuron by neuron, at some positions of the only sentence."""

    def hook_of(index: int, factor: float, offset: float) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0].clone()
            for at in where:
                x[0, at, index] = x[0, at, index] * factor + offset
            return (x,)

        return hook

    rows = zip(edit.neurons.tolist(), edit.factor.tolist(), edit.offset.tolist(), strict=True)
    handles = [
        down_of(name, model, layer).register_forward_pre_hook(hook_of(index, factor, offset))
        for (layer, index), factor, offset in rows
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain(name: str, model: Any, one: AnswerSequence, edit: Any, positions: str) -> float:
    """The product of the tokens' probabilities, each by a forward of its own."""
    product = 1.0
    inputs = one.steps or (one.ids,) * len(one.targets)
    for ids, at, target in zip(inputs, one.masks, one.targets, strict=True):
        where = {"answer": [at], "answer_all": one.masks, "all": range(len(ids))}[positions]
        with changed(name, model, edit, where), torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, at]
        product *= float(logits.softmax(-1)[target])
    return product


# The order is no matter of the layout, so that two of them show it.
CASES = [(name, "independent") for name in ENCODERS]
CASES += [(name, "left_to_right") for name in ("bert", "modernbert")]


@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize(("name", "order"), CASES)
def test_probabilities_are_those_of_plain_loops(name: str, order: str, positions: str) -> None:
    model = tiny_encoder(name)
    some = sentences()
    if order == "left_to_right":
        some = [left_to_right(one) for one in some]
    prompts = Prompts(model, find_layout(model), some, positions=positions)
    found = prompts.probabilities([*EDITS, nothing()])
    expected = [[plain(name, model, s, e, positions) for s in some] for e in [*EDITS, nothing()]]
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(prompts.probability, expected[-1], **CLOSE)
    assert not prompts.stands_in


@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("order", ["independent", "left_to_right"])
def test_slopes_are_differences_of_probabilities(order: str, positions: str) -> None:
    """By central differences of log p over each gate."""
    model, some = tiny_encoder("bert"), sentences()
    if order == "left_to_right":
        some = [left_to_right(one) for one in some]
    prompts = Prompts(model, find_layout(model), some, positions=positions)
    closed, h = suppress(OFF), 1e-4
    ((log_p, slopes),) = prompts.gate_slopes([AskedSlopes(0, closed, np.ones((1, len(OFF))))])
    for n in range(len(OFF)):
        ends = np.ones((2, len(OFF)))
        ends[:, n] += [h, -h]
        ((up, down), _) = prompts.gate_slopes([AskedSlopes(0, closed, ends)])[0]
        assert slopes[0, n] == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-9)
    assert np.exp(log_p[0]) == pytest.approx(prompts.probability[0], rel=1e-9)


def test_activations_behind_gates_are_the_models_own() -> None:
    model, one = tiny_encoder("bert"), left_to_right(sentences()[0])
    prompts = Prompts(model, find_layout(model), [one], positions="all")
    found = prompts.gated_activations(0, suppress(OFF), np.ones((1, len(OFF))))
    for c, (ids, at) in enumerate(zip(one.steps, one.masks, strict=True)):
        for n, (layer, index) in enumerate(OFF):
            seen: list[float] = []
            down = down_of("bert", model, layer)
            handle = down.register_forward_pre_hook(
                lambda _, args, a=at, i=index, s=seen: s.append(args[0][0, a, i].item())
            )
            model(input_ids=torch.tensor([ids]))
            handle.remove()
            assert found[c, 0, n] == pytest.approx(seen[0], rel=1e-9)


def known_facts(model: Any) -> list[dkn.Fact]:
    """What the model itself says in blanks at any place."""
    rng, facts = np.random.default_rng(0), []
    tokenizer = words_tokenizer(ends=True)
    for i in range(9):
        words = [text([t]) for t in rng.integers(3, 60, size=6).tolist()]
        words[i % 6] = "[MASK]"
        prompt = " ".join(words)
        ids = tokenizer(prompt.replace("[MASK]", "<mask>"))["input_ids"]
        with torch.no_grad():
            said = int(model(input_ids=torch.tensor([ids])).logits[0, 1 + i % 6].argmax())
        other = prompt.replace(words[(i + 1) % 6], "w20")
        facts.append(dkn.Fact(f"f{i}", prompt, text([said]), paraphrases=(other,)))
    return facts


def test_public_probabilities_under_edits() -> None:
    model, tokenizer = tiny_encoder("bert"), words_tokenizer(ends=True)
    facts = known_facts(model)
    found = dkn.answer_probability(model, tokenizer, facts, suppress=OFF)
    for fact, p in zip(facts, found, strict=True):
        ids = tokenizer(fact.prompt.replace("[MASK]", "<mask>"))["input_ids"]
        at, (target,) = ids.index(60), tokenizer(fact.answer, add_special_tokens=False)["input_ids"]
        one = AnswerSequence(tuple(ids), len(ids), (target,), masks=(at,))
        assert p == pytest.approx(plain("bert", model, one, suppress(OFF), "answer"), rel=1e-9)


def test_dkns_of_an_encoder_with_all_controls() -> None:
    model, tokenizer = tiny_encoder("bert"), words_tokenizer(ends=True)
    facts = known_facts(model)
    config = dkn.Config().set("filter.min_probability", 1e-4)
    results = dkn.find_dkns(model, tokenizer, facts, config)
    assert [r.status for r in results] == ["ok"] * len(facts)
    for fact, r in zip(facts, results, strict=True):
        assert r.prompt == fact.prompt
        assert r.probability == pytest.approx(
            dkn.answer_probability(model, tokenizer, [fact])[0], rel=1e-6
        )
        assert len(r.neurons)
        assert (r.neurons < [N_LAYERS, WIDTH]).all()
        sets = {n for c in r.components for n in map(tuple, c.neurons.tolist())}
        assert sets <= set(map(tuple, r.neurons.tolist()))


def test_interactions_and_given_neurons() -> None:
    model, tokenizer = tiny_encoder("bert"), words_tokenizer(ends=True)
    fact = known_facts(model)[0]
    config = dkn.Config().set("filter.min_probability", 1e-4)
    (result,) = dkn.examine(model, tokenizer, [fact], np.array(OFF), config)
    assert result.status == "ok"
    (pairs,) = dkn.interactions(model, tokenizer, [fact], OFF)
    off = dkn.answer_probability(model, tokenizer, [fact], suppress=OFF[:2])[0]
    assert pairs is not None
    assert 0 < off < 1


def test_a_blank_that_a_decoder_cannot_be_asked_at_is_skipped() -> None:
    from tests.support.tiny import tiny

    model, tokenizer = tiny("llama"), words_tokenizer()
    facts = [dkn.Fact("a", "w5 [MASK] w7", "w9"), dkn.Fact("b", "w5 w7 [MASK] .", "w9")]
    config = dkn.Config().set("facts.blank", "keep")
    found = dkn.find_dkns(model, tokenizer, facts, config)
    assert found[0].status == "skipped"
    assert "is not at the end of 'w5 [MASK] w7'" in found[0].reason
    assert found[1].status in {"ok", "not_known"}
    plain_prompt = dkn.Fact("c", "w5 w7", "w9")
    p = dkn.answer_probability(model, tokenizer, plain_prompt)
    assert found[1].probability == pytest.approx(p[0], rel=1e-9)
