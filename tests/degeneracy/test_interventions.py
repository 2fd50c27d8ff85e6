"""Answer probabilities under edits against brute force, on layouts with rows and without."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, combine, enhance, nothing, suppress
from dkn_engine.degeneracy.edits_by_forwards import forward_log_probabilities
from dkn_engine.degeneracy.interventions import intervene
from dkn_engine.forward.contexts import AnswerSequence, build_contexts
from dkn_engine.models.layout import find_layout
from tests.support.brute_force_edits import (
    answer_probabilities,
    answer_probability,
    greedy_answers,
    greedy_tokens,
)
from tests.support.tiny import N_LAYERS, WIDTH, sequence, sequences, tiny

POSITIONS = ("answer", "answer_all", "all")
FAMILIES = ("gpt2", "llama", "gemma3", "opt", "gptj")
GENERAL = ("opt", "gptj")
# A window of 3: rows and answers see less than the whole prompt.
CHANGES: dict[str, dict[str, Any]] = {"gemma3": {"sliding_window": 3}}
# Both sides compute the same in float64, in another order; GPT-J multiplies queries with keys in
# float32, so a batch of other shape rounds otherwise.
FLOAT64 = {"gptj": 1e-5}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> Any:
    return tiny(name, dtype, **CHANGES.get(name, {}))


def random_neurons(n: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    flat = random.choice(N_LAYERS * WIDTH, n, replace=False)
    return np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)


def some_edits() -> list[Edit]:
    """Nothing, one neuron, all layers, patterns that part late, means, enhancing, both at once."""
    means = np.random.default_rng(5).standard_normal((N_LAYERS, WIDTH))
    many = random_neurons(30, seed=1)
    early = many[many[:, 0] == 0]
    last = np.array([[N_LAYERS - 1, 3]], dtype=np.int32)
    return [
        nothing(),
        suppress([[1, 7]]),
        suppress(many),
        suppress(early),
        suppress(np.concatenate([early, last])),
        suppress(many, means),
        enhance(many[::2], 2.5),
        combine(suppress(many[::2]), enhance(many[1::2], -1.0)),
        suppress(many[::-1]),
    ]


def prompts_of(
    name: str, model: Any, positions: str, some: list[AnswerSequence] | None = None
) -> Prompts:
    """The family's usual way; where no rows can run, with one warning."""
    some = sequences() if some is None else some
    # Full forwards that were asked for need no excuse.
    falls_back = name in GENERAL and (
        positions == "answer" or (all(len(s.targets) == 1 for s in some) and positions != "all")
    )
    warns = pytest.warns(UserWarning, match="full forward passes")
    silent: contextlib.AbstractContextManager[Any] = contextlib.nullcontext([])
    with warns if falls_back else silent as caught:
        found = Prompts(model, find_layout(model), some, positions=positions)
    assert len(caught) == falls_back
    return found


def brute_force(name: str, model: Any, edits: list[Edit], positions: str) -> np.ndarray:
    found = [answer_probabilities(name, model, one, edits, positions) for one in sequences()]
    return np.array(found).T


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_edited_probabilities_equal_brute_force(name: str, positions: str) -> None:
    model, edits = model_of(name), some_edits()
    found = prompts_of(name, model, positions).probabilities(edits)
    expected = brute_force(name, model, edits, positions)
    assert found.shape == expected.shape == (len(edits), 3)
    np.testing.assert_allclose(found, expected, rtol=FLOAT64.get(name, 1e-10))
    # The edits matter, and patterns differ from each other.
    assert len(np.unique(expected.round(12)[:8], axis=0)) == 8


def continued(name: str, model: Any) -> list[AnswerSequence]:
    """The prompts, each with what the model itself goes on with."""
    found = []
    for one in sequences():
        answer = greedy_tokens(name, model, one, nothing())
        ids = (*one.ids[: one.n_prompt], *answer[:-1])
        found.append(AnswerSequence(ids, one.n_prompt, answer))
    return found


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_exact_matches_are_those_of_greedy_decoding(name: str, positions: str) -> None:
    model, edits = model_of(name), some_edits()
    some = [*continued(name, model), sequences()[2]]
    found = prompts_of(name, model, positions, some)
    probability, exact = found.outcomes(edits)
    for b, one in enumerate(some):
        own = greedy_answers(name, model, one, edits, positions)
        assert exact[:, b].tolist() == [tokens == one.targets for tokens in own]
    np.testing.assert_allclose(probability, found.probabilities(edits), rtol=1e-12)
    assert exact[0].tolist() == [True, True, True, False]
    assert not exact[1:, :3].all()  # some edits make the model go on otherwise
    np.testing.assert_array_equal(found.outcomes(edits, [0, 2])[1], exact[:, [0, 2]])


def test_what_overflowed_is_suppressed_like_anything_else() -> None:
    """To 0, or to its mean, and not to so many times infinity."""
    model, one = tiny("llama"), [sequence(5, 2)]
    means = np.full((N_LAYERS, WIDTH), 0.3)
    edits = [nothing(), suppress([[1, 3]]), suppress([[1, 3]], means)]

    def found() -> np.ndarray:
        prompts = Prompts(model, find_layout(model), one, positions="all", warn=False)
        return prompts.probabilities(edits)[:, 0]

    def logits() -> torch.Tensor:
        with torch.no_grad(), intervene(model, [[1, 3]]):
            whole: torch.Tensor = model(input_ids=torch.tensor([one[0].ids])).logits
            return whole

    expected, whole = found(), logits()
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight[3] *= 1e200
    np.testing.assert_allclose(found()[1:], expected[1:], rtol=1e-10)
    assert np.isnan(found()[0])
    torch.testing.assert_close(logits(), whole)


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_a_model_that_gives_nan_matches_nothing(positions: str) -> None:
    prompts = prompts_of("llama", model_of("llama"), positions)
    broken = enhance([[0, 1]], float("nan"))
    assert not prompts.outcomes([broken])[1].any()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_float32_is_as_near_to_float64_as_plain_float32(name: str, positions: str) -> None:
    edits = some_edits()
    exact = np.log(brute_force(name, model_of(name), edits, positions))
    plain = np.log(brute_force(name, model_of(name, torch.float32), edits, positions))
    prompts = prompts_of(name, model_of(name, torch.float32), positions)
    error = np.abs(np.log(prompts.probabilities(edits)) - exact)
    # Twice plain float32's own error, and one rounding of the log-probability on its way out.
    rounding = np.finfo(np.float32).eps * np.abs(exact).max()
    assert error.max() <= 2 * np.abs(plain - exact).max() + rounding
    assert error.max() < 1e-5


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_full_forwards_equal_brute_force(name: str, positions: str) -> None:
    """Where rows can run, too: the two implementations answer to one oracle."""
    model, edits = model_of(name), some_edits()
    contexts = build_contexts(sequences(), torch.device("cpu"))
    n = len(contexts)
    edit, context = np.repeat(np.arange(len(edits)), n), np.tile(np.arange(n), len(edits))
    # 30 positions a forward: fewer than the edits have, so batches are cut.
    log_p, first, _ = forward_log_probabilities(
        find_layout(model), contexts, edits, (edit, context), positions, 30
    )
    assert log_p.shape == first.shape == (len(edits) * n,)
    log_p = log_p.view(len(edits), n)
    per_sequence = [log_p[:, contexts.sequence == b].sum(1) for b in range(3)]
    found = torch.stack(per_sequence, dim=1).exp()
    np.testing.assert_allclose(found, brute_force(name, model, edits, positions), rtol=1e-10)


def test_three_positions_are_three_things() -> None:
    model = model_of("llama")
    edit = suppress(random_neurons(30, seed=1))
    three = [sequences()[2]]
    found = [prompts_of("llama", model, p, three).probabilities([edit])[0, 0] for p in POSITIONS]
    assert len({round(float(p), 12) for p in found}) == 3


def test_one_answer_token_makes_answer_and_answer_all_equal_by_rows() -> None:
    model = model_of("llama")
    edit, some = suppress(random_neurons(30, seed=1)), [sequence(5, 1, seed=1), sequence(3, 1)]
    one, other = (
        prompts_of("llama", model, p, some).probabilities([edit]) for p in ("answer", "answer_all")
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_edit_is_the_clean_model(positions: str) -> None:
    model = model_of("llama")
    prompts = prompts_of("llama", model, positions)
    clean = [answer_probability("llama", model, one, nothing()) for one in sequences()]
    np.testing.assert_allclose(prompts.probability, clean, rtol=1e-10)
    np.testing.assert_allclose(prompts.probabilities([nothing()])[0], clean, rtol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_clean_rank_is_that_of_the_first_answer_token(name: str) -> None:
    model = model_of(name)
    prompts = prompts_of(name, model, "answer")
    for one, rank in zip(sequences(), prompts.rank, strict=True):
        logits = model(input_ids=torch.tensor([one.ids])).logits[0, one.n_prompt - 1]
        ordered = logits.argsort(descending=True).tolist()
        assert rank == ordered.index(one.targets[0]) + 1


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_first_activations_are_those_at_the_last_prompt_token(name: str) -> None:
    model = model_of(name)
    found = prompts_of(name, model, "answer").first_activations()
    assert found.shape == (3, N_LAYERS, WIDTH)
    # Offsets equal to the clean activations change nothing; zeros would.
    for b in range(3):
        whole = np.array([[l, i] for l in range(N_LAYERS) for i in range(WIDTH)])
        one = sequences()[b]
        short = AnswerSequence(one.ids[: one.n_prompt], one.n_prompt, one.targets[:1])
        p = answer_probability(name, model, short, suppress(whole, found[b]))
        assert p == pytest.approx(answer_probability(name, model, short, nothing()), rel=1e-10)
        assert p != pytest.approx(answer_probability(name, model, short, suppress(whole)), rel=1e-3)


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 2]])
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_some_sequences_are_columns_of_all(positions: str, chosen: list[int]) -> None:
    prompts, edits = prompts_of("llama", model_of("llama"), positions), some_edits()
    whole = prompts.probabilities(edits)
    np.testing.assert_allclose(prompts.probabilities(edits, chosen), whole[:, chosen], rtol=1e-10)


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_batches_of_edits_do_not_matter(rows: int) -> None:
    model, edits = model_of("gpt2"), some_edits()
    whole = prompts_of("gpt2", model, "answer").probabilities(edits)
    prompts = Prompts(model, find_layout(model), sequences(), max_rows=rows)
    np.testing.assert_allclose(prompts.probabilities(edits), whole, rtol=1e-10)


def test_edits_that_agree_share_their_rows() -> None:
    prompts = prompts_of("llama", model_of("llama"), "answer")
    engine = prompts._batches[0][1].rows
    assert engine is not None
    before, last = engine.row_layers, N_LAYERS - 1
    prompts.probabilities([nothing(), suppress([[0, 1]]), suppress([[0, 1], [last, 2]])], [1])
    # One sequence of one answer token: two rows below the last layer, three in it.
    assert engine.row_layers - before == 2 * last + 3


def test_no_edits_and_no_sequences_give_empty_tables() -> None:
    prompts = prompts_of("llama", model_of("llama"), "answer")
    assert prompts.probabilities([]).shape == (0, 3)
    assert prompts.probabilities([nothing()], []).shape == (1, 0)
    assert [table.shape for table in prompts.outcomes([], [0])] == [(0, 1), (0, 1)]
    assert [table.shape for table in prompts.outcomes([nothing()], [])] == [(1, 0), (1, 0)]


def test_neurons_outside_the_model_are_refused() -> None:
    prompts = prompts_of("llama", model_of("llama"), "answer")
    for neuron in ([N_LAYERS, 0], [0, WIDTH]):
        with pytest.raises(ValueError, match=rf"got \({neuron[0]}, {neuron[1]}\)"):
            prompts.probabilities([nothing(), suppress([neuron])])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: suppress([[0, 1], [1, 1], [0, 1]]), ValueError, r"got \(0, 1\) twice"),
        (lambda: suppress([[0.0, 1.0]]), TypeError, "integers"),
        (lambda: suppress([[0, -1]]), ValueError, "negative"),
        (lambda: suppress([0, 1]), ValueError, r"\[n, 2\]"),
        (lambda: combine(suppress([[0, 1]]), enhance([[0, 1]], 2)), ValueError, "twice"),
    ],
    ids=["duplicate", "float", "negative", "flat", "suppressed-and-enhanced"],
)
def test_neurons_of_the_wrong_form_are_refused(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_prompts_that_were_read_for_other_positions_give_the_same(
    name: str, positions: str
) -> None:
    model, edits = model_of(name), some_edits()
    read = prompts_of(name, model, positions)
    for other in POSITIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of full forwards, now or then
            prompts = Prompts(model, find_layout(model), sequences(), positions=other)
            again = prompts.acting_at(positions)
        for found, expected in zip(again.outcomes(edits), read.outcomes(edits), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert again.stands_in == read.stands_in
