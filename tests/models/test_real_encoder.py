"""A trained encoder, BERT for reaction SMILES, out of a package: ``tests/support/reactions.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dkn_engine as dkn
from dkn_engine.types import Attribution
from tests.support import reactions

SOURCE = reactions.package()
pytestmark = pytest.mark.skipif(SOURCE is None, reason=f"not installed: {reactions.INSTALL}")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    assert SOURCE is not None
    folder = reactions.save_model(SOURCE, tmp_path_factory.mktemp("reactions") / "bert")
    return dkn.load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def scored(bert: tuple[Any, Any]) -> tuple[list[dkn.Fact], Attribution]:
    """The two reactions of the fewest tokens with p between 0.5 and 0.99."""
    model, tokenizer = bert
    facts = reactions.facts(tokenizer)
    p = dkn.answer_probability(model, tokenizer, facts)
    open_ones = [f for f, q in zip(facts, p, strict=True) if 0.5 < q < 0.99]
    few = sorted(open_ones, key=lambda f: len(f.prompt))[:2]
    return few, dkn.attribute(model, tokenizer, few, dkn.AttributionConfig(baseline="zero"))


def test_it_names_nearly_all_masked_tokens(bert: tuple[Any, Any]) -> None:
    """Each token of ten reactions masked in turn: 398 of 417, as 95 % says who trained it."""
    model, tokenizer = bert
    right = total = 0
    for reaction in reactions.REACTIONS.values():
        ids = torch.tensor(tokenizer(reaction)["input_ids"])
        at = torch.arange(1, len(ids) - 1)
        rows = ids.repeat(len(at), 1)
        rows[at - 1, at] = tokenizer.mask_token_id
        with torch.no_grad():
            said = model(input_ids=rows).logits[at - 1, at].argmax(-1)
        right, total = right + int((said == ids[at]).sum()), total + len(at)
    assert total == 417
    assert right / total > 0.94


def test_a_token_of_a_product_is_asked_as_the_model_itself_is(bert: tuple[Any, Any]) -> None:
    model, tokenizer = bert
    facts = reactions.facts(tokenizer)
    found = dkn.answer_probability(model, tokenizer, facts)
    for fact, p in zip(facts, found, strict=True):
        ids = torch.tensor([tokenizer(fact.prompt)["input_ids"]])
        at = int((ids[0] == tokenizer.mask_token_id).nonzero())
        with torch.no_grad():
            own = model(input_ids=ids).logits[0, at].softmax(-1)
        gold = tokenizer.convert_tokens_to_ids(fact.answer)
        assert p == pytest.approx(float(own[gold]), rel=1e-4)


def test_scores_add_up(bert: tuple[Any, Any], scored: tuple[list[dkn.Fact], Attribution]) -> None:
    """Completeness, in every layer; converged to the default tolerance."""
    facts, found = scored
    assert len(facts) == 2
    assert found.converged.all()
    assert found.path == ("blocks", "blocks")
    for scores, delta in zip(found.scores, found.convergence_delta, strict=True):
        assert np.abs(delta).max() < 1e-2 * np.abs(scores).sum(1).max()


def without(
    bert: tuple[Any, Any], fact: dkn.Fact, scores: NDArray[Any], flat: NDArray[Any]
) -> float:
    """The answer's probability with neurons at zero, by their places in the flat scores."""
    neurons = np.stack(np.divmod(flat, scores.shape[1]), 1)
    return float(dkn.answer_probability(*bert, fact, suppress=neurons)[0])


def test_the_best_neurons_carry_the_answer_and_others_do_not(
    bert: tuple[Any, Any], scored: tuple[list[dkn.Fact], Attribution]
) -> None:
    facts, found = scored
    random = np.random.default_rng(0)
    for fact, p, scores in zip(facts, found.probability, found.scores, strict=True):
        assert without(bert, fact, scores, np.argsort(-scores.ravel())[:50]) < 0.01 * p
        others = random.choice(scores.size, 50, replace=False)
        assert without(bert, fact, scores, others) == pytest.approx(p, rel=0.1)


def test_from_the_masked_baseline_others_are_best_and_p_rises_without_them(
    bert: tuple[Any, Any], scored: tuple[list[dkn.Fact], Attribution]
) -> None:
    """Zero is not where these paths begin."""
    facts, _ = scored
    found = dkn.attribute(*bert, facts, dkn.AttributionConfig(max_masked=4))
    for fact, p, scores in zip(facts, found.probability, found.scores, strict=True):
        assert without(bert, fact, scores, np.argsort(-scores.ravel())[:50]) > p
