"""``Config.released()`` from texts to families, against the published procedure's plain loops.

Answers of one, two and three tokens, on GPT-2 and LLaMA layouts, with and without a BOS (which the
published code counts as an answer token), and with tokenizers that keep a token's space in its text
(byte level) or lose it (SentencePiece: the next token is glued to the word before).
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import dkn_engine as dkn
from dkn_engine import analysis
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import Config
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.errors import FactError, UserError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.continuation import ByText
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from tests.support.brute_force_edits import edited, greedy_tokens
from tests.support.brute_force_scores import BruteForce
from tests.support.published import Asked, Cluster, clusters, distances, located
from tests.support.tiny import MASK_ID, N_LAYERS, WIDTH, relative_error, sequences, tiny
from tests.support.words import text, words_tokenizer

WORDS = ["al", "be", "co", "du", "el", "fi", "go", "hu", "in", "jo", "ka", "lu"]
N_STEPS, THRESHOLD, QUANTILE, MAX_DROP = 5, 0.01, 0.05, 0.3
PROMPT, ANSWERS = "co du fi al", ("go", "hu jo", "ka el be")


def tokenizer(kind: str, *, bos: bool) -> Any:
    """Words with their space in front, single letters, and an end-of-text token.

    ``byte``: as in GPT-2, a token's text holds its space. ``piece``: as in LLaMA, a text's first
    word is written as if a space were in front, and a decoded text loses it.
    """
    from transformers import PreTrainedTokenizerFast

    space = "\u0120" if kind == "byte" else "\u2581"
    pieces = ["<unk>", "<s>", "</s>", "<mask>", space, *sorted(set("".join(WORDS)))]
    pieces += [w for word in WORDS for w in (word, space + word)]
    if kind == "byte":
        vocab = {piece: i for i, piece in enumerate(pieces)}
        made = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:
        made = Tokenizer(models.Unigram([(p, -10.0 / len(p)) for p in pieces], unk_id=0))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Metaspace(prepend_scheme="first")
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    # A mask token, which the published code does not use.
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="<mask>", **special)


@dataclass(frozen=True)
class Case:
    """One layout, one tokenizer, one answer."""

    name: str
    kind: str
    bos: bool
    answer: str
    prompt: str = PROMPT

    def __str__(self) -> str:
        n = len(self.answer.split()) + self.bos
        return f"{self.name}-{self.kind}-{'bos' if self.bos else 'plain'}-{n}"

    @property
    def fact(self) -> dkn.Fact:
        return dkn.Fact("f", self.prompt, self.answer)

    def asked(self) -> Asked:
        coder = tokenizer(self.kind, bos=self.bos)
        # Wide enough for a token's prediction to follow from more than the token before.
        return Asked(self.name, tiny(self.name, vocab_size=len(coder)), coder)


CASES = [
    Case(name, kind, bos, answer)
    for name in ("gpt2", "llama")
    for kind in ("byte", "piece")
    for bos in (False, True)
    for answer in ANSWERS
]


@functools.cache
def published_scores(case: Case) -> NDArray[np.float64]:
    """By the published loop, the slowest thing here: once a case, on a model that nothing used."""
    scores = case.asked().scores(case.prompt, case.answer, N_STEPS)
    scores.setflags(write=False)
    return scores


@functools.cache
def published_families(case: Case) -> tuple[list[Cluster], list[Cluster]]:
    """The clusters of a case, and those that the published filter keeps."""
    asked, neurons = case.asked(), located(published_scores(case), THRESHOLD)
    every = clusters(neurons, distances(case.name, asked.model, neurons), QUANTILE)
    return every, asked.family(case.prompt, case.answer, every, MAX_DROP)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def released(**filters: Any) -> Config:
    """The preset with fewer steps, for models that know nothing and have no structure either."""
    config = Config.released()
    return dataclasses.replace(
        config,
        attribution=dataclasses.replace(config.attribution, n_steps=N_STEPS),
        selection=dataclasses.replace(config.selection, threshold=THRESHOLD),
        topology=dataclasses.replace(config.topology, end_value=QUANTILE),
        filter=dataclasses.replace(
            config.filter,
            require_rank_1=False,
            min_probability=0.0,
            released_max_drop=MAX_DROP,
            n_random=0,
            n_unrelated=0,
            **filters,
        ),
    )


def as_sets(found: list[Cluster]) -> list[frozenset[tuple[int, int]]]:
    return [c.neurons for c in found]


def test_scores_are_those_of_the_published_loop(case: Case) -> None:
    asked, config = case.asked(), released()
    found = dkn.attribute(
        asked.model, asked.tokenizer, [case.fact], config.attribution, facts_config=config.facts
    )
    expected = published_scores(case)
    assert expected.shape == (N_LAYERS, WIDTH)
    np.testing.assert_allclose(found.scores[0], expected, rtol=2e-6, atol=1e-6 * expected.max())


def test_suppressed_models_go_on_with_their_own_tokens(case: Case) -> None:
    asked, config = case.asked(), released()
    rng = np.random.default_rng(3)
    for n in (0, 1, 20, 60):
        flat = rng.choice(N_LAYERS * WIDTH, n, replace=False)
        neurons = np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1)
        (found,) = dkn.answer_probability(
            asked.model, asked.tokenizer, [case.fact], suppress=neurons, facts_config=config.facts
        )
        expected = asked.probability(case.prompt, case.answer, list(map(tuple, neurons.tolist())))
        assert found == pytest.approx(expected, rel=1e-9)


def test_neurons_clusters_and_families_are_the_published_ones(case: Case) -> None:
    asked = case.asked()
    (result,) = dkn.find_dkns(asked.model, asked.tokenizer, [case.fact], released())
    assert result.status == "ok"
    neurons = located(published_scores(case), THRESHOLD)
    assert [tuple(n) for n in result.neurons.tolist()] == neurons
    expected, kept = published_families(case)
    found = [frozenset(map(tuple, c.neurons.tolist())) for c in result.components]
    assert set(found) == set(as_sets(expected))
    assert {found[i] for i in result.dkn} == set(as_sets(kept))
    clean = asked.probability(case.prompt, case.answer, [])
    assert result.probability == pytest.approx(clean, rel=1e-9)
    for i, one in enumerate(found):
        at = int(np.flatnonzero(result.subset_masks == 1 << i)[0])
        left = asked.probability(case.prompt, case.answer, sorted(one))
        assert result.subset_probabilities[at] == pytest.approx(left, rel=1e-9)


def test_the_cases_have_something_to_compare() -> None:
    """Several clusters, families that are neither empty nor everything, and glued tokens."""
    kept, glued = [], 0
    for case in CASES:
        asked, (every, family) = case.asked(), published_families(case)
        kept.append((len(family), len(every)))
        free = encode_sequence(
            asked.model, asked.tokenizer, case.prompt, case.answer, config=released().facts
        )
        glued += any(ids != free.ids[: len(ids)] for ids in free.steps)
    assert sum(all_of >= 2 for _, all_of in kept) > len(kept) / 2
    assert any(0 < some < all_of for some, all_of in kept)
    assert glued >= 8


LONG = Case("gpt2", "piece", True, "ka el be")


@pytest.mark.parametrize(
    "change",
    [
        {"multiply_by": "activation"},
        {"masked_tokens": "prompt"},
        {"mask_token": "auto"},
        {"answer_tokens": "mean"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_scores_need_every_option_of_attribution(change: dict[str, Any]) -> None:
    asked, config = LONG.asked(), released()
    attribution = dataclasses.replace(config.attribution, **change)
    found = dkn.attribute(
        asked.model, asked.tokenizer, [LONG.fact], attribution, facts_config=config.facts
    )
    expected = published_scores(LONG)
    assert np.abs(found.scores[0] - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    "change", [{"repeat_first_token": False}, {"continuation": "edited"}, {"teacher_forced": True}]
)
def test_scores_need_every_option_of_the_continuation(change: dict[str, Any]) -> None:
    asked, config = LONG.asked(), released()
    found = dkn.attribute(
        asked.model,
        asked.tokenizer,
        [LONG.fact],
        config.attribution,
        facts_config=dataclasses.replace(config.facts, **change),
    )
    expected = published_scores(LONG)
    assert np.abs(found.scores[0] - expected).max() > 1e-3 * np.abs(expected).max()


def test_the_probability_beside_the_scores_is_the_answers() -> None:
    asked, config = LONG.asked(), released()
    found = dkn.attribute(
        asked.model, asked.tokenizer, [LONG.fact], config.attribution, facts_config=config.facts
    )
    expected = asked.probability(LONG.prompt, LONG.answer, [])
    assert found.probability[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "opt"])
@pytest.mark.parametrize("masked", ["prompt", "all"])
def test_one_activation_and_masked_answer_tokens_behind_the_answers_own(
    name: str, masked: Any
) -> None:
    """The options by themselves, teacher-forced, by rows (GPT-2) and in full (OPT)."""
    model, some = tiny(name), sequences()
    config = dkn.AttributionConfig(
        site="pre",
        masked_tokens=masked,
        multiply_by="first_activation",
        quadrature="riemann_left",
        n_steps=3,
        answer_tokens="sum",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = attribute_chunk(model, find_layout(model), some, config, mask_id=MASK_ID)
    brute = BruteForce(name, model, "pre")
    rule = (np.arange(3) / 3, np.full(3, 1 / 3))
    for b, one in enumerate(some):
        first = brute.activations(one.ids, one.n_prompt - 1)
        total = torch.zeros_like(first)
        for i, target in enumerate(one.targets):
            ids = one.ids[: one.n_prompt + i]
            n_masked = len(ids) if masked == "all" else one.n_prompt
            start = brute.masked_baseline(AnswerSequence(ids, n_masked, (target,)), len(ids) - 1)
            value = brute.activations(ids, len(ids) - 1)
            (scores,) = brute.scores(
                AnswerSequence(ids, len(ids), (target,)), rule, baseline=start
            ) / (value - start)
            total += scores * first
        assert relative_error(found.scores[b], total) < 1e-9


@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_edited_models_that_go_on_by_id_equal_plain_loops(name: str, positions: Any) -> None:
    model, words = tiny(name), words_tokenizer()
    config = dkn.FactsConfig(teacher_forced=False, continuation="edited")
    some = sequences()
    facts = [
        dkn.Fact(f"f{b}", text(one.ids[: one.n_prompt]), text(one.targets))
        for b, one in enumerate(some)
    ]
    off = np.array([[0, i] for i in range(25)] + [[2, i] for i in range(12)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # OPT runs in full.
        found, other = (
            dkn.answer_probability(
                model, words, facts, suppress=off, positions=positions, facts_config=c
            )
            for c in (config, dkn.FactsConfig(teacher_forced=False))
        )
    edit = suppress(off)
    for b, one in enumerate(some):
        own = greedy_tokens(name, model, one, edit, positions)
        ids, expected = (*one.ids[: one.n_prompt], *own[:-1]), 1.0
        for i, target in enumerate(one.targets):
            end = one.n_prompt + i
            step = AnswerSequence(ids[:end], one.n_prompt, (target,))
            first = {"answer": end - 1, "answer_all": one.n_prompt - 1, "all": 0}[positions]
            with edited(name, model, edit, range(first, end)), torch.no_grad():
                logits = model(input_ids=torch.tensor([step.ids])).logits[0, -1]
            expected *= float(torch.softmax(logits, dim=-1)[target])
        assert found[b] == pytest.approx(expected, rel=1e-9)
    assert not np.allclose(found, other, rtol=1e-3)


def test_a_written_token_may_be_cut_off_again_only_where_a_blank_has_stayed() -> None:
    coder = tokenizer("byte", bos=False)
    (space,) = coder.convert_tokens_to_ids(["\u0120"])
    for prompt, n in (("co du", 3), ("_X_ co", None)):
        behind = ByText(coder, prompt, None, "")
        assert (behind((space,)) == behind(())) is (n is None)
        if n is not None:
            assert len(behind((space,))) == n


def test_a_continuation_longer_than_the_context_is_refused() -> None:
    coder = tokenizer("byte", bos=False)
    behind = ByText(coder, "co du fi", 3, "fact 'f': ")
    assert len(behind(())) == 3
    with pytest.raises(FactError, match=r"fact 'f': prompt and continuation need 4 positions"):
        behind(tuple(coder(" go")["input_ids"]))


TOO_LONG, FITS = dkn.Fact("long", "co du fi", "ka el be"), dkn.Fact("short", "co du", "hu jo")


def in_context_of(n: int, seed: int) -> list[dkn.FactResult]:
    """Both facts by a model with so many positions."""
    coder = tokenizer("byte", bos=False)
    model = tiny("gpt2", vocab_size=len(coder), n_positions=n, seed=seed)
    return list(dkn.find_dkns(model, coder, [TOO_LONG, FITS], released()))


def test_a_suppressed_text_that_outgrows_the_context_is_an_error_of_its_fact() -> None:
    long, short = in_context_of(7, seed=0)
    assert (long.status, short.status) == ("error", "ok")
    assert long.reason.startswith("fact 'long': prompt and continuation need 8 positions")


def test_an_own_text_that_outgrows_the_context_is_left_out_by_itself() -> None:
    """Prompt and answer fit, and so does the first token repeated, but not the tokens that follow.

    As the published code repeats the first one where the model is unchanged, only the edited
    models' tokens show it.
    """
    long, short = in_context_of(6, seed=1)
    assert (long.status, short.status) == ("skipped", "ok")
    assert long.reason == (
        "fact 'long': prompt and continuation need 7 positions; the model's context has 6"
    )


OTHER = dkn.Fact("other", "hu", "el", relation="c")


def own_texts(seed: int, n: int) -> tuple[Any, Any, Config]:
    """A model of n positions with its tokenizer, and how its own text is gone on with."""
    coder = tokenizer("byte", bos=False)
    model = tiny("gpt2", vocab_size=len(coder), n_positions=n, seed=seed)
    topology = {"clustering": "ntc", "spans": "shortest_path", "end_value": 0.9}
    topology |= {"direction": "forward", "max_span": None}
    config = released(method="degenerate", min_alone=0.0, max_none=1.0).set(
        {"filter.n_unrelated": 3, "filter.n_regrouped": 1}
        | {f"topology.{name}": value for name, value in topology.items()}
    )
    return model, coder, config


@pytest.mark.parametrize(("seed", "n"), [(4, 6), (7, 7), (11, 6)])
def test_the_text_of_another_fact_that_outgrows_the_context_is_no_error_of_this_one(
    seed: int, n: int
) -> None:
    """An unrelated fact of which a suppressed model's own text is too long is left out."""
    model, coder, config = own_texts(seed, n)
    alone = dkn.find_dkns(model, coder, [FITS, OTHER], config)
    found = dkn.find_dkns(model, coder, [TOO_LONG, FITS, OTHER], config)
    assert [r.status for r in alone] == ["ok", "ok"]
    assert [r.status for r in found[1:]] == ["ok", "ok"], [r.reason for r in found]
    for one, expected in zip(found[1:], alone, strict=True):
        np.testing.assert_allclose(
            one.subset_probabilities, expected.subset_probabilities, rtol=1e-5
        )


def test_analyses_leave_out_facts_whose_own_text_outgrows_the_context() -> None:
    """Where it does so by what an analysis does to the model, of a fact that a run could use."""
    whole = [dataclasses.replace(TOO_LONG, relation="a"), dataclasses.replace(FITS, relation="b")]
    whole.append(OTHER)
    model, coder, config = own_texts(2, 6)
    results = list(dkn.find_dkns(model, coder, whole, config))
    assert [r.status for r in results] == ["ok"] * 3
    table = analysis.robustness(model, coder, whole, results, config=config)
    assert {s.unit for s in table.samples} == {"short", "other"}
    (note,) = [note for note in table.notes if "cannot be asked" in note]
    assert note.startswith("1 more are known, but cannot be asked and are left out: fact 'long'")
    model, coder, config = own_texts(6, 5)
    results = list(dkn.find_dkns(model, coder, whole, config))
    assert [r.status for r in results] == ["skipped", "ok", "ok"]
    compared = analysis.compare_clusterers(model, coder, whole, config, n_draws=1)
    assert (compared.n_known, compared.n_unusable) == (1, 2)
    with pytest.raises(UserError, match=r"cannot be used: .*prompt and continuation need"):
        analysis.compare_clusterers(model, coder, whole[1:], config, strict=True)
