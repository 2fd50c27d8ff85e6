"""``find_dkns`` as a whole: figures by brute force, order, statuses, run directories, guests."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig, Config, FilterConfig, SelectionConfig
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, members_of
from dkn_engine.degeneracy.null_draws import n_draws
from dkn_engine.degeneracy.reference_facts import build_reference
from dkn_engine.errors import UserError
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.report import render_markdown, render_report, summarize, write_summary
from dkn_engine.run import stages
from dkn_engine.topology.clustering import find_candidates
from tests.support.brute_force_edits import answer_probability
from tests.support.guests import Boom, broken, mixed_model, state
from tests.support.saved import many_facts
from tests.support.tiny import MASK_ID, N_LAYERS, WIDTH, down_of, sequence, tiny
from tests.support.words import text, words_tokenizer

CONFIG = Config(
    facts_per_chunk=2,
    # Random models are neither sure of anything nor redundant; so everything counts as degenerate
    # that can, and every stage has something to do.
    filter=FilterConfig(
        min_probability=0.02, min_alone=0.0, max_none=1.0, n_random=3, n_regrouped=3
    ),
)
# For tests whose point is not what is found: few passes, and each kind of control once.
CHEAP = dataclasses.replace(
    CONFIG,
    attribution=AttributionConfig(baseline="zero", quadrature="riemann_left", n_steps=2),
    filter=dataclasses.replace(CONFIG.filter, n_random=1, n_regrouped=1),
)


def answered(model: Any, seed: int, n_answer: int = 1) -> dkn.Fact:
    """A fact that the model knows: what it says itself."""
    prompt = sequence(4 + seed % 3, 1, seed=seed).ids
    ids = list(prompt)
    for _ in range(n_answer):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    answer = text(ids[len(prompt) :])
    return dkn.Fact(f"f{seed}", text(prompt), answer, relation=f"r{seed % 2}", subject=f"s{seed}")


def facts(model: Any) -> list[dkn.Fact]:
    """Five that are known (one of two tokens), in three chunks."""
    return [answered(model, seed, 2 if seed == 4 else 1) for seed in (1, 2, 4, 6, 7)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def results(model: Any) -> dkn.Results:
    return run(model, facts(model))


def run(
    model: Any, some: list[dkn.Fact], config: Config = CONFIG, out: Path | None = None, **more: Any
) -> dkn.Results:
    return dkn.find_dkns(model, words_tokenizer(), some, config, out, **more)


def assert_equal(found: Any, expected: Any, where: str = "result") -> None:
    """Bit for bit, NaN equal to NaN, types included; results are a list of them."""
    found, expected = (list(x) if isinstance(x, dkn.Results) else x for x in (found, expected))
    assert type(found) is type(expected), where
    if dataclasses.is_dataclass(expected):
        for f in dataclasses.fields(expected):
            assert_equal(getattr(found, f.name), getattr(expected, f.name), f"{where}.{f.name}")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, where
        assert found.shape == expected.shape, where
        assert found.tobytes() == expected.tobytes(), where
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_equal(*pair, f"{where}[{i}]")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}[{key!r}]")
    else:
        assert found == expected or (found != found and expected != expected), where


def test_a_run_says_which_token_masked(model: Any, tmp_path: Path) -> None:
    """The tokenizer's, or one that was asked for; each is another baseline, so other scores."""
    found = {}
    for token in ("auto", "w7"):
        config = dataclasses.replace(CONFIG, attribution=AttributionConfig(mask_token=token))
        (found[token],) = run(model, facts(model)[:1], config, tmp_path / token)
        shown = "<mask>" if token == "auto" else token
        assert json.loads((tmp_path / token / "manifest.json").read_text())["mask_token"] == shown
        write_summary(tmp_path / token, [found[token]], summarize([found[token]]))
        said = (tmp_path / token / "summary.md").read_text().replace("\\", "")
        assert f"prompt tokens masked by {shown}" in said
    tokenizer = words_tokenizer()
    tokenizer.mask_token = "w7"
    (expected,) = dkn.find_dkns(model, tokenizer, facts(model)[:1], CONFIG)
    np.testing.assert_array_equal(found["w7"].scores, expected.scores)
    assert not np.array_equal(found["auto"].scores, expected.scores)
    zero = dataclasses.replace(CONFIG, attribution=AttributionConfig(baseline="zero"))
    run(model, facts(model)[:1], zero, tmp_path / "zero")
    assert json.loads((tmp_path / "zero" / "manifest.json").read_text())["mask_token"] is None


# --- what a result says, by brute force ---


def test_results_are_in_the_order_of_the_facts(model: Any, results: Any) -> None:
    assert [r.fact_id for r in results] == [f.id for f in facts(model)]
    assert {r.status for r in results} == {"ok"}
    for fact, result in zip(facts(model), results, strict=True):
        assert (result.prompt, result.answer) == (fact.prompt, fact.answer)
        assert (result.relation, result.reason, result.path) == (fact.relation, "", "sweep")


def test_fields_have_the_shapes_and_types_of_the_contract(results: Any) -> None:
    for r in results:
        n, q = len(r.neurons), len(r.components)
        assert n > 0
        arrays = {
            "neurons": (r.neurons, np.int32, (n, 2)),
            "scores": (r.scores, np.float32, (n,)),
            "borderline": (r.borderline, np.int32, (len(r.borderline), 2)),
            "subset_probabilities": (r.subset_probabilities, np.float64, (1 << q,)),
            "subset_masks": (r.subset_masks, np.int64, (1 << q,)),
            "convergence_delta": (r.convergence_delta, np.float32, (N_LAYERS,)),
            "n_points": (r.n_points, np.int32, (N_LAYERS,)),
            "rest_suppressed": (
                r.rest_suppressed,
                np.float64,
                (len(r.dkn) + 1 if r.dkn else 0,),
            ),
        }
        for name, (array, dtype, shape) in arrays.items():
            assert (array.dtype, array.shape) == (dtype, shape), name
        assert isinstance(r.probability, float)
        assert isinstance(r.rank, int)
        assert isinstance(r.converged, bool)
        null = ("regrouped", n_draws(CONFIG.filter, r.is_degenerate)) if q >= 2 else (None, None)
        assert (r.null, r.null_draws) == null
        assert math.isfinite(r.null_p) == (q >= 2)
        assert isinstance(r.components, tuple)
        assert (np.diff(r.scores) <= 0).all()
        assert r.rank == 1
        assert r.is_degenerate == (len(r.dkn) >= 2)
        for c in r.components:
            assert c.neurons.dtype == np.int32
            assert c.neurons.tolist() == sorted(c.neurons.tolist())
            assert c.persistence == c.death - c.birth
    # Not all of it is empty.
    assert any(len(r.components) >= 2 for r in results)
    assert any(r.is_degenerate for r in results)


def test_neurons_are_those_of_the_public_attribution(model: Any, results: Any) -> None:
    scores = dkn.attribute(model, words_tokenizer(), facts(model), CONFIG.attribution).scores
    for table, result in zip(scores, results, strict=True):
        chosen = {(l, i) for l, i in np.argwhere(table > 0.1 * table.max()).tolist()}
        borderline = {(l, i) for l, i in result.borderline.tolist()}
        assert chosen ^ {(l, i) for l, i in result.neurons.tolist()} <= borderline
        expected = table[result.neurons[:, 0], result.neurons[:, 1]]
        np.testing.assert_allclose(result.scores, expected, atol=1e-5 * table.max())


def lattice_by_force(
    model: Any, fact: dkn.Fact, r: dkn.FactResult, positions: str = "answer", means: Any = None
) -> list[float]:
    """The answer's probability with every subset of a result's components suppressed."""
    one = encode_sequence(model, words_tokenizer(), fact.prompt, fact.answer, config=CONFIG.facts)
    p = []
    for mask in range(1 << len(r.components)):
        off = [r.components[i].neurons for i in members_of(mask)]
        edit = suppress(np.concatenate([np.empty((0, 2), np.int32), *off]), means)
        p.append(answer_probability("llama", model, one, edit, positions))
    return p


def test_components_and_lattice_by_brute_force(model: Any, results: Any) -> None:
    layout = find_layout(model)
    for fact, r in zip(facts(model), results, strict=True):
        rows = connection_rows(layout, r.neurons, CONFIG.topology)
        expected = find_candidates(r.neurons, *rows, CONFIG.topology)
        assert [c.neurons.tolist() for c in r.components] == [c.neurons.tolist() for c in expected]
        p = lattice_by_force(model, fact, r)
        np.testing.assert_allclose(r.subset_probabilities, p, rtol=1e-5)
        assert r.probability == pytest.approx(p[0], rel=1e-5)
        lattice = Lattice(len(r.components), r.subset_masks, r.subset_probabilities)
        persistence = [c.persistence for c in r.components]
        assert r.dkn == degenerate_family(lattice, persistence, 0.0, 1.0)
        own = drops(lattice.restrict(r.dkn or range(len(r.components))))
        assert_equal(
            (r.partial_drop, r.full_drop, r.redundancy),
            (own.partial_drop, own.full_drop, own.redundancy),
        )


@pytest.mark.parametrize("positions", ["answer_all", "all"])
def test_suppression_acts_where_the_filter_says(model: Any, positions: Any) -> None:
    config = dataclasses.replace(
        CONFIG, filter=dataclasses.replace(CONFIG.filter, positions=positions)
    )
    some = facts(model)[1:4]  # The one of two answer tokens among them.
    for fact, r in zip(some, run(model, some, config), strict=True):
        expected = lattice_by_force(model, fact, r, positions)
        np.testing.assert_allclose(r.subset_probabilities, expected, rtol=1e-5)
        assert len(r.components) >= 2


def test_suppressing_to_means_takes_those_of_the_runs_facts(model: Any) -> None:
    config = dataclasses.replace(
        CONFIG,
        filter=dataclasses.replace(CONFIG.filter, suppress_value="mean", n_random=0, n_unrelated=0),
    )
    some = [answered(model, seed) for seed in range(8)]  # Enough to need no packaged ones.
    reference = build_reference(model, words_tokenizer(), find_layout(model), some, config)
    assert reference is not None
    assert {f.id for f in reference.facts} == {f.id for f in some}
    for fact, r in zip(some, run(model, some, config), strict=True):
        expected = lattice_by_force(model, fact, r, means=reference.means)
        np.testing.assert_allclose(r.subset_probabilities, expected, rtol=1e-5)
        # What is not asked for is not there.
        assert set(r.controls) == ({"mean_ablation"} if r.components else set())


def test_a_fact_of_no_numbers_spoils_no_means() -> None:
    """It is in no control on other facts, whatever is suppressed."""
    model, bad = tiny("llama", torch.float32), 5
    some = [answered(model, seed) for seed in range(9)]
    some = [f for f in some if f"w{bad}" not in f"{f.prompt} {f.answer}".split()]
    assert len(some) >= 8
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = torch.nan
    spoilt = dkn.Fact("bad", f"w7 w{bad} w9", "w11", relation="r0")
    for suppressed in ("zero", "mean"):
        config = CHEAP.set({"filter.suppress_value": suppressed, "facts_per_chunk": 8})
        alone = run(model, some, config)
        bad_fact, *found = run(model, [spoilt, *some], config)
        assert (bad_fact.status, "probability nan" in bad_fact.reason) == ("error", True)
        for fact, expected in zip(found, alone, strict=True):
            # They are drawn from as many facts in another order.
            assert fact.n_reference == expected.n_reference == len(some)
            if expected.components:
                assert math.isfinite(fact.controls["mean_ablation"].full_drop)
                assert fact.controls["unrelated"].n == expected.controls["unrelated"].n
                np.testing.assert_allclose(
                    fact.subset_probabilities, expected.subset_probabilities, rtol=1e-4
                )


def test_packaged_facts_in_the_controls_of_a_small_run_are_said_and_can_be_left_out(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody expects English facts in the controls of a run that was given none."""
    some = [answered(model, seed) for seed in range(8)]
    few = some[:5]
    # The tiny model's tokenizer knows none of the words of the packaged ones.
    packaged = [answered(model, seed) for seed in range(20, 30)]
    monkeypatch.setattr(stages, "load_facts", {"demo": packaged}.__getitem__)
    filled = run(model, few, out=tmp_path)
    assert {(r.n_reference, r.n_reference_packaged) for r in filled if r.components} == {(8, 3)}
    said = "come from 8 facts, of which 3 are packaged English ones"
    for text_of in (render_report, render_markdown):
        assert said in " ".join(text_of(filled, summarize(filled)).split())
    again = dkn.load_results(tmp_path)
    assert [r.n_reference_packaged for r in again] == [r.n_reference_packaged for r in filled]

    own = dataclasses.replace(CONFIG.filter, fill_reference=False)
    for r in run(model, few, dataclasses.replace(CONFIG, filter=own)):
        if r.components:
            assert (r.n_reference, r.n_reference_packaged) == (5, 0)
            # The mean over so few would be close to the fact's own activations.
            assert "mean_ablation" not in r.controls
            assert r.controls["unrelated"].n <= 3
    enough = run(model, some)
    assert {(r.n_reference, r.n_reference_packaged) for r in enough if r.components} == {(8, 0)}
    assert "packaged" not in render_report(enough, summarize(enough))


def test_means_without_a_fact_to_take_them_over_are_refused(model: Any) -> None:
    own = dataclasses.replace(CONFIG.filter, fill_reference=False, suppress_value="mean")
    config = dataclasses.replace(CONFIG, filter=own)
    without = stages.Stages(model, words_tokenizer(), [dkn.Fact("f", "w5", " ")], config)
    with pytest.raises(UserError, match=r"needs a fact that can be encoded.*the 1 tried is one"):
        _ = without.reference


def test_more_components_than_a_mask_has_bits_are_cut_and_said(model: Any) -> None:
    """Each of the model's neurons is a component."""
    neurons = np.stack(np.divmod(np.arange(N_LAYERS * WIDTH), WIDTH), axis=1).astype(np.int32)
    few = {"min_component_size": 1, "condense": False, "max_candidates": len(neurons)}
    config = CONFIG.set({f"topology.{name}": value for name, value in few.items()})
    (found,) = dkn.examine(model, words_tokenizer(), facts(model)[:1], neurons, config)
    rows = connection_rows(find_layout(model), neurons, config.topology)
    every = find_candidates(neurons, *rows, config.topology)
    assert len(every) > 62
    assert (found.status, found.reason) == ("ok", f"the first 62 of {len(every)} components")
    assert [c.neurons.tolist() for c in found.components] == [
        c.neurons.tolist() for c in every[:62]
    ]


# --- statuses ---


def test_facts_that_cannot_be_used_are_results_with_a_reason(model: Any, results: Any) -> None:
    known = facts(model)
    mixed = [
        known[0],
        dkn.Fact("empty", "w5 w6", " "),
        dkn.Fact("unknown", known[1].prompt, "w3", relation="r"),
        known[1],
        dkn.Fact("long", text([5] * 70), "w9"),
        known[2],
    ]
    found = run(model, mixed)
    assert [r.fact_id for r in found] == [f.id for f in mixed]
    statuses = [r.status for r in found]
    assert statuses == ["ok", "skipped", "not_known", "ok", "skipped", "ok"]
    assert "'empty'" in found[1].reason
    assert "answer is empty" in found[1].reason
    assert "'long'" in found[4].reason
    assert "64" in found[4].reason
    unknown = found[2]
    assert unknown.rank > 1
    assert f"rank {unknown.rank}" in unknown.reason
    assert 0 < unknown.probability < 1
    assert (unknown.prompt, unknown.answer, unknown.relation) == (known[1].prompt, "w3", "r")
    for r in (found[1], unknown, found[4]):
        assert len(r.neurons) == len(r.components) == len(r.dkn) == 0
    # What stands beside a fact does not matter.
    for i, j in ((0, 0), (3, 1), (5, 2)):
        assert found[i].neurons.tolist() == results[j].neurons.tolist()


def test_a_known_fact_without_components_says_so(model: Any) -> None:
    config = dataclasses.replace(CONFIG, selection=SelectionConfig(max_neurons=1))
    (found,) = run(model, facts(model)[:1], config)
    assert (found.status, found.components, found.dkn) == ("ok", (), ())
    assert len(found.neurons) == 1
    assert found.subset_masks.tolist() == [0]
    assert found.subset_probabilities[0] == pytest.approx(found.probability, rel=1e-5)


def poisoned() -> Any:
    """A model that gives NaN for every prompt with the word w50 in it."""
    model = tiny("llama", torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    return model


def test_a_prompt_that_gives_nan_is_an_error_of_its_own(model: Any, results: Any) -> None:
    known = facts(model)
    some = [known[0], dkn.Fact("nan", "w5 w50 w6", "w9"), known[1]]
    found = run(poisoned(), some)
    assert [r.status for r in found] == ["ok", "error", "ok"]
    assert "'nan'" in found[1].reason
    assert "probability nan" in found[1].reason
    for i, j in ((0, 0), (2, 1)):
        assert found[i].neurons.tolist() == results[j].neurons.tolist()
        np.testing.assert_allclose(found[i].scores, results[j].scores, rtol=1e-4)


def test_nan_in_a_layer_makes_every_fact_an_error(tmp_path: Path) -> None:
    model = tiny("llama", torch.float32)
    some = facts(model)
    with torch.no_grad():
        down: Any = down_of("llama", model, 1)
        down.weight[3, 4] = float("nan")
    found = run(model, some, out=tmp_path)
    assert {r.status for r in found} == {"error"}
    assert all(repr(r.fact_id) in r.reason for r in found)


def test_scores_that_are_not_finite_are_an_error() -> None:
    """The answer has a probability, but the masked baseline has none."""
    model = tiny("llama", torch.float32)
    some = facts(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[MASK_ID] = float("nan")
    found = run(model, some)
    assert {r.status for r in found} == {"error"}
    assert all(f"{r.fact_id!r}: attribution" in r.reason for r in found)
    zero = dataclasses.replace(CONFIG, attribution=AttributionConfig(baseline="zero"))
    assert {r.status for r in run(model, some, zero)} == {"ok"}


def test_no_facts_are_no_results(model: Any, tmp_path: Path) -> None:
    assert run(model, []) == []
    assert run(model, [], out=tmp_path) == []
    assert dkn.read_results(tmp_path) == []


@pytest.mark.parametrize("out", [False, True])
def test_ids_must_be_unique(model: Any, out: bool, tmp_path: Path) -> None:
    fact = facts(model)[0]
    with pytest.raises(dkn.UserError, match="unique; got 'f1' twice"):
        run(model, [fact, fact], out=tmp_path if out else None)


def test_facts_must_be_facts(model: Any) -> None:
    with pytest.raises(TypeError, match=r"dkn_engine\.Fact, .*mappings.*; got tuple"):
        run(model, [("w5", "w6", "w7")])  # type: ignore[list-item]


def test_baselines_cannot_be_given(model: Any) -> None:
    config = Config(attribution=AttributionConfig(baseline="given"))
    with pytest.raises(dkn.UserError, match="'masked' or 'zero'"):
        run(model, facts(model), config)


def test_a_model_of_another_kind_is_refused_before_anything_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(dkn.UnsupportedModelError):
        dkn.iter_dkns(torch.nn.Linear(2, 2), words_tokenizer(), [], out=out)
    assert not out.exists()


# --- aliases and paraphrases ---


def test_an_alias_is_taken_where_it_is_more_probable(model: Any) -> None:
    fact = facts(model)[0]
    renamed = dataclasses.replace(fact, answer="w3", aliases=("w4", fact.answer, "w5"))
    plain = run(model, [renamed])[0]
    assert (plain.status, plain.answer) == ("not_known", "w3")
    config = dataclasses.replace(CONFIG, facts=dkn.FactsConfig(aliases=True))
    found = run(model, [renamed], config)[0]
    assert (found.status, found.answer) == ("ok", fact.answer)
    assert found.neurons.tolist() == run(model, [fact])[0].neurons.tolist()
    same = run(model, [dataclasses.replace(fact, aliases=("w3",))], config)[0]
    assert same.answer == fact.answer


def test_an_alias_without_a_probability_is_left_out() -> None:
    """Nor is a fact lost whose answer has none, while an alias has one."""
    model, bad = tiny("llama", torch.float32), 5
    fact = facts(model)[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = torch.nan
    config = dataclasses.replace(CHEAP, facts=dkn.FactsConfig(aliases=True))
    (plain,) = run(model, [fact], config)
    broken_alias = text([bad, 6])
    (found,) = run(model, [dataclasses.replace(fact, aliases=(broken_alias,))], config)
    assert_equal(found, plain)
    other = dataclasses.replace(fact, answer=broken_alias, aliases=(fact.answer,))
    (found,) = run(model, [other], config)
    assert (found.status, found.answer) == ("ok", fact.answer)
    (found,) = run(model, [dataclasses.replace(fact, answer=broken_alias)], config)
    assert (found.status, "probability nan" in found.reason) == ("error", True)


def test_an_alias_that_cannot_be_encoded_is_left_out(model: Any) -> None:
    fact = dataclasses.replace(facts(model)[0], aliases=(" ",))
    config = dataclasses.replace(CONFIG, facts=dkn.FactsConfig(aliases=True))
    assert run(model, [fact], config)[0].status == "ok"
    broken_fact = dataclasses.replace(fact, answer=" ", aliases=(fact.answer,))
    found = run(model, [broken_fact], config)[0]
    assert (found.status, "answer is empty" in found.reason) == ("skipped", True)


def test_paraphrases_help_to_find_neurons_and_the_rest_is_held_out(model: Any) -> None:
    """Of two facts in one chunk, one has two paraphrases to be used, the other one."""
    first, second = facts(model)[:2]
    others = [answered(model, seed).prompt for seed in (8, 9, 10)]
    some = [
        dataclasses.replace(first, paraphrases=(*others[:2], "w5")),
        dataclasses.replace(second, paraphrases=(others[2],)),
    ]
    config = dataclasses.replace(
        CONFIG,
        # So coarse a rule that no two convergence deltas are alike.
        attribution=AttributionConfig(quadrature="riemann_left", n_steps=2),
        selection=SelectionConfig(n_paraphrases=2, paraphrase_share=0.3),
        filter=dataclasses.replace(CONFIG.filter, min_probability=0.0, require_rank_1=False),
    )
    results = run(model, some, config)
    for fact, found in zip(some, results, strict=True):
        prompts = (fact.prompt, *fact.paraphrases[:2])
        asked = [dkn.Fact(p, p, fact.answer) for p in prompts]
        scores = dkn.attribute(model, words_tokenizer(), asked, config.attribution)
        times = (scores.scores > 0.1 * scores.scores.max((1, 2), keepdims=True)).sum(0)
        expected = {(l, i) for l, i in np.argwhere(times > 0.3 * len(prompts)).tolist()}
        borderline = {(l, i) for l, i in found.borderline.tolist()}
        assert expected ^ {(l, i) for l, i in found.neurons.tolist()} <= borderline
        assert len(expected) > 1
        assert found.n_points.tolist() == scores.n_points.sum(0).tolist()
        # The delta is that of the prompt itself.
        np.testing.assert_allclose(found.convergence_delta, scores.convergence_delta[0], atol=1e-6)
        assert np.abs(scores.convergence_delta).max() > 1e-3
    # Only the third paraphrase of the first is left for the control.
    assert results[0].controls["paraphrases"].n == 1
    assert "paraphrases" not in results[1].controls


# --- batching ---


def same_up_to_rounding(found: dkn.FactResult, expected: dkn.FactResult) -> None:
    close = {(l, i) for l, i in found.borderline.tolist()}
    close |= {(l, i) for l, i in expected.borderline.tolist()}
    sets = [{(l, i) for l, i in r.neurons.tolist()} for r in (found, expected)]
    assert sets[0] ^ sets[1] <= close
    assert found.probability == pytest.approx(expected.probability, rel=1e-5)
    highest = float(expected.scores.max())
    by_neuron = [
        dict(zip(map(tuple, r.neurons.tolist()), r.scores.tolist(), strict=True))
        for r in (found, expected)
    ]
    for neuron in sets[0] & sets[1]:
        assert by_neuron[0][neuron] == pytest.approx(by_neuron[1][neuron], abs=1e-5 * highest)
    np.testing.assert_allclose(found.subset_probabilities, expected.subset_probabilities, rtol=1e-5)
    for name, control in expected.controls.items():
        for figure in ("partial_drop", "full_drop"):
            want = getattr(control, figure)
            assert getattr(found.controls[name], figure) == pytest.approx(
                want, abs=2e-5, nan_ok=True
            )


@pytest.mark.parametrize("size", [1, 3, 8])
def test_results_do_not_depend_on_the_chunk_size(model: Any, results: Any, size: int) -> None:
    config = dataclasses.replace(CONFIG, facts_per_chunk=size)
    for found, expected in zip(run(model, facts(model), config), results, strict=True):
        same_up_to_rounding(found, expected)


def test_the_same_run_twice_is_bit_equal(model: Any, results: Any) -> None:
    assert_equal(run(model, facts(model)), results)


def test_the_seed_moves_the_controls_only(model: Any, results: Any) -> None:
    for found, expected in zip(
        run(model, facts(model), dataclasses.replace(CONFIG, seed=1)), results, strict=True
    ):
        assert_equal(found.neurons, expected.neurons)
        assert_equal(found.subset_probabilities, expected.subset_probabilities)
        if expected.components:
            assert found.controls["random"] != expected.controls["random"]


def test_results_come_window_by_window(model: Any) -> None:
    """A window is 16 chunks."""
    seen: list[tuple[int, int]] = []
    stream = dkn.iter_dkns(
        model,
        words_tokenizer(),
        many_facts(model, 18),
        dataclasses.replace(CHEAP, facts_per_chunk=1),
        progress=lambda done, of: seen.append((done, of)),
    )
    assert isinstance(stream, Iterator)
    assert next(stream).fact_id == "f0"
    assert len(seen) <= 16  # The second window has not begun.
    rest = list(stream)
    assert len(rest) == 17
    assert seen == [(n, 18) for n in range(1, 19)]


def test_models_without_rows_are_done_in_blocks_and_by_full_forwards() -> None:
    model = tiny("opt", torch.float32)
    with pytest.warns(UserWarning, match="full forward passes") as caught:
        found = run(model, facts(model))
    assert [(r.status, r.path) for r in found] == [("ok", "blocks")] * 5
    # Interventions warn once in three chunks.
    assert sum("stages" in w.filename for w in caught) == 1


# --- run directories ---


def parquet(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.glob("*.parquet"))}


@pytest.fixture(scope="module")
def whole(model: Any, results: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that has been looked at."""
    seen: list[tuple[int, int]] = []
    out = tmp_path_factory.mktemp("whole") / "run"
    found = run(model, facts(model), out=out, progress=lambda *x: seen.append(x))
    assert_equal(found, results)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert len(parquet(out)) == 4 * 3
    return out


def test_results_on_disk_are_those_in_memory(whole: Path, results: Any) -> None:
    assert_equal(dkn.read_results(whole), results)


def test_a_complete_run_is_read_not_computed(model: Any, results: Any, whole: Path) -> None:
    some, before = facts(model), parquet(whole)
    with broken(down_of("llama", model, 0)):
        assert_equal(run(model, some, out=whole), results)
    assert parquet(whole) == before


def test_a_run_that_was_stopped_goes_on(
    model: Any, results: Any, whole: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"

    def stop(done: int, _of: int) -> None:
        if done == 2:
            raise Boom

    with pytest.raises(Boom):
        run(model, facts(model), out=stopped, progress=stop)
    assert len(dkn.read_results(stopped)) == 2
    seen: list[int] = []
    found = run(model, facts(model), out=stopped, progress=lambda done, _: seen.append(done))
    assert_equal(found, results)
    assert parquet(stopped) == parquet(whole)
    assert seen == [2, 4, 5]


@pytest.mark.parametrize("other", ["config", "model", "facts"])
def test_another_run_cannot_continue_a_directory(other: str, tmp_path: Path) -> None:
    model = tiny("llama", torch.float32)
    some = facts(model)
    run(model, some[:2], CHEAP, out=tmp_path)
    before = parquet(tmp_path)
    config = dataclasses.replace(CHEAP, seed=1) if other == "config" else CHEAP
    if other == "model":
        model = tiny("llama", torch.float32, seed=1)
    with pytest.raises(dkn.RunDirectoryError):
        run(model, some[1:] if other == "facts" else some[:2], config, out=tmp_path)
    assert parquet(tmp_path) == before


def test_an_error_lets_the_directory_go(model: Any, tmp_path: Path) -> None:
    """The lock of a run that failed does not keep the next one out."""
    some = facts(model)
    with broken(down_of("llama", model, 0)), pytest.raises(Boom):
        run(model, some, out=tmp_path)
    assert len(run(model, some, out=tmp_path)) == 5


# --- the model is a guest ---


@pytest.fixture(scope="module")
def of_mixed() -> dkn.Results:
    model = mixed_model("llama")
    return run(model, facts(model))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_and_the_process_are_left_alone(mode: Any, of_mixed: Any, tmp_path: Path) -> None:
    model = mixed_model("llama")
    some = facts(model)
    before = state(model)
    with mode():
        found = run(model, some, out=tmp_path)
    assert state(model) == before
    assert {r.status for r in found} == {"ok"}
    assert_equal(found, of_mixed)


@pytest.mark.parametrize("layer", [0, N_LAYERS - 1])
def test_an_error_inside_a_layer_leaves_the_model_alone(layer: int) -> None:
    model = mixed_model("llama")
    some = facts(model)
    before = state(model)
    with broken(down_of("llama", model, layer)), pytest.raises(Boom):
        run(model, some)
    assert state(model) == before


def test_stopping_a_stream_leaves_the_model_alone(tmp_path: Path) -> None:
    model = mixed_model("llama")
    some = facts(model)
    before = state(model)
    stream = dkn.iter_dkns(model, words_tokenizer(), some, CONFIG, tmp_path)
    next(stream)
    assert state(model) == before  # Also between results, when the caller has the model.
    stream.close()  # type: ignore[attr-defined]
    assert state(model) == before
    assert len(run(model, some, out=tmp_path)) == 5


def test_widths_of_the_tiny_models_are_what_the_tests_assume(model: Any) -> None:
    layout = find_layout(model)
    assert (layout.n_layers, layout.width) == (N_LAYERS, WIDTH)
