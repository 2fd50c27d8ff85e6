"""Facts given as a path, one fact, dicts or a generator, at every public entry that takes facts."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine import analysis
from dkn_engine.analysis.experiments.evolvability.finetune import finetuned
from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError
from dkn_engine.facts import write_facts
from dkn_engine.facts.given import fact_list, facts_from
from dkn_engine.facts.ids import made_id
from tests.run.test_pipeline import CONFIG, facts
from tests.support.known_chunks import computed_once
from tests.support.saved import save_tiny
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

FULL = dkn.Fact("a", "w5 w6", "w7", ("w8",), "w5", "r", ("w6 w5",), ("w9",), "2012")


def plain(fact: dkn.Fact) -> dict[str, Any]:
    """The fact as a caller's dict, lists instead of tuples."""
    values = dataclasses.asdict(fact).items()
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values}


def as_path(some: list[dkn.Fact], folder: Path) -> str:
    write_facts(folder / "facts.jsonl", some)
    return str(folder / "facts.jsonl")


def as_packed(some: list[dkn.Fact], folder: Path) -> Path:
    (folder / "facts.gz").write_bytes(gzip.compress(Path(as_path(some, folder)).read_bytes()))
    return folder / "facts.gz"


def as_generator(some: list[dkn.Fact], _folder: Path) -> Iterator[dkn.Fact]:
    return (fact for fact in some)


def as_dicts(some: list[dkn.Fact], _folder: Path) -> tuple[dict[str, Any], ...]:
    return tuple(map(plain, some))


def as_mixture(some: list[dkn.Fact], _folder: Path) -> Iterator[Any]:
    return (plain(fact) if i % 2 else fact for i, fact in enumerate(some))


WAYS = pytest.mark.parametrize("way", [as_path, as_packed, as_generator, as_dicts, as_mixture])


@WAYS
def test_every_form_makes_the_same_facts(
    way: Callable[[list[dkn.Fact], Path], Any], tmp_path: Path
) -> None:
    some = [FULL, dkn.Fact("b", "w5\n", "w6")]
    assert fact_list(way(some, tmp_path)) == some


def test_pairs_are_prompts_and_answers() -> None:
    expected = [dkn.Fact(made_id("w5 w6", "w7"), "w5 w6", "w7")]
    forms: tuple[Any, ...] = ((" w5 w6", "w7"), [("w5 w6", "w7")], iter([["w5 w6", " w7"]]))
    for given in forms:
        assert fact_list(given) == expected


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_rows_of_data_frames_are_facts(library: str) -> None:
    module = pytest.importorskip(library)
    rows: list[dict[str, Any]] = [
        {"prompt": "w5 w6", "answer": "w7", "relation": "r", "aliases": ["w8"]},
        {"prompt": "w5", "answer": "w6", "relation": None, "aliases": None},
    ]
    frame = module.Table.from_pylist(rows) if library == "pyarrow" else module.DataFrame(rows)
    assert fact_list(frame) == fact_list(rows)
    assert [f.relation for f in fact_list(frame)] == ["r", None]


def test_made_ids_follow_from_the_text_alone() -> None:
    ids = [
        made_id("The capital of Italy is", "Rome"),
        made_id("The capital of Italy is", "rome"),
        made_id("the capital of Italy: is", "Rome"),
        made_id("The capital of Italy is", "Rome", "2012"),
        made_id("意大利的首都是", "罗马"),
        made_id("w " * 100, "x"),
        made_id("?", "!"),
    ]
    assert ids[0] == "the-capital-of-italy-is-rome-" + ids[0][-6:]
    assert len(set(ids)) == len(ids)
    assert all(len(i) <= 47 and re.fullmatch(r"[\w-]+", i) for i in ids)
    # Computed once, so that a run directory of an older version is continued.
    digest = hashlib.sha256(b"The capital of Italy is\nRome").hexdigest()
    assert ids[0].endswith(digest[:6])


@pytest.mark.parametrize("given", [FULL, plain(FULL)], ids=["fact", "dict"])
def test_one_fact_is_a_list_of_one(given: Any) -> None:
    assert fact_list(given) == [FULL]


def test_what_can_be_read_twice_stays_so_and_is_not_held() -> None:
    class Endless:
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return (plain(FULL) | {"id": str(i)} for i in range(10**12))

    for _ in range(2):
        found = facts_from(Endless())
        assert [next(iter(found)).id, next(iter(found)).id] == ["0", "0"]
    lazy = facts_from(iter(Endless()))
    assert [next(iter(lazy)).id, next(iter(lazy)).id] == ["0", "1"]


def test_settings_of_facts_hold_for_paths_and_dicts(tmp_path: Path) -> None:
    blank = dataclasses.replace(FULL, prompt="The capital is [MASK]")
    literal = FactsConfig(blank="literal", dates="prompt")
    for given in (as_path([blank], tmp_path), [plain(blank)]):
        (fact,) = fact_list(given, literal)
        assert (fact.prompt, *fact.paraphrases) == (
            "In 2012, The capital is [MASK]",
            "In 2012, w6 w5",
        )
    with pytest.raises(FactError, match=r"^fact 'a': the blank \[MASK\] would be asked as text"):
        fact_list([plain(blank)])
    assert fact_list([blank], literal) == [blank]  # A program's own facts are as it made them.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([plain(FULL), {"prompt": "w5"}], r"^facts\[1\]: missing key 'answer'$"),
        ({"id": "x", "prompt": "w5", "answer": 7}, r"^fact 'x': 'answer' must be text; got int$"),
        ([{"id": "x", "prompt": "w5", "answer": "a", "alias": []}], "unknown key 'alias'; known"),
        ([{1: 2, "x": 3}], r"^facts\[0\]: unknown key 1; known"),
        ("no_such_file.jsonl", "no_such_file.jsonl: there is no such file"),
    ],
    ids=["absent", "answer", "key", "number", "path"],
)
def test_a_mapping_that_makes_no_fact_is_named(given: Any, message: str) -> None:
    with pytest.raises(FactError, match=message):
        fact_list(given)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (5, "int"),
        (None, "NoneType"),
        ([("w5", "w6", "r")], "tuple"),
        ([FULL, "a.jsonl"], "str"),
        (["w5", "w6"], "str"),  # A list of texts may be anything, a tuple of two is a pair.
    ],
    ids=["int", "none", "triples", "paths", "texts"],
)
def test_what_is_no_fact_is_refused(given: Any, kind: str) -> None:
    message = rf"^facts must be a path, a data frame, or facts.*dkn_engine\.Fact.*; got {kind}$"
    with pytest.raises(TypeError, match=message):
        fact_list(given)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module", autouse=True)
def _computed_once() -> Iterator[None]:
    """Of facts that read the same, which is what is to be shown, results are the same."""
    with computed_once({}):
        yield


@pytest.fixture(scope="module")
def results(model: Any) -> dkn.Results:
    return dkn.find_dkns(model, words_tokenizer(), facts(model), CONFIG)


def _attribute(model: Any, given: Any, _results: Any) -> Any:
    found = dkn.attribute(model, words_tokenizer(), given)
    return found.fact_ids, found.scores.tolist()


def _iter_attribute(model: Any, given: Any, _results: Any) -> Any:
    found = dkn.iter_attribute(model, words_tokenizer(), given, keep="none")
    return [(f.fact_id, f.probability) for f in found]


def _probability(model: Any, given: Any, _results: Any) -> Any:
    return dkn.answer_probability(model, words_tokenizer(), given).tolist()


def _find(model: Any, given: Any, _results: Any) -> Any:
    found = dkn.find_dkns(model, words_tokenizer(), given, CONFIG)
    return [(r.fact_id, r.probability, r.dkn, r.neurons.tolist()) for r in found]


def _iter_dkns(model: Any, given: Any, _results: Any) -> Any:
    found = dkn.iter_dkns(model, words_tokenizer(), given, CONFIG)
    return [(r.fact_id, r.relation, r.full_drop) for r in found]


def _robustness(model: Any, given: Any, results: Any) -> Any:
    return analysis.robustness(
        model, words_tokenizer(), given, results, n_random=1, values=("zero",), config=CONFIG
    )


def _fact_check(model: Any, given: Any, results: Any) -> Any:
    return analysis.fact_check(
        model, words_tokenizer(), given, results, n_random=1, queries=("short",), config=CONFIG
    )


def _complexity(model: Any, given: Any, results: Any) -> Any:
    forms = ("paraphrase",)
    return analysis.complexity(model, words_tokenizer(), given, results, forms=forms, config=CONFIG)


def _of_models(model: Any, given: Any, results: Any) -> Any:
    size = analysis.model_size(model)
    both = {"a": results, "b": results}
    return analysis.complexity_of_models(given, both, dict.fromkeys(both, size))


def _clusterers(model: Any, given: Any, _results: Any) -> Any:
    return analysis.compare_clusterers(
        model, words_tokenizer(), given, CONFIG, methods=("ntc", "dbscan"), n_draws=1
    )


def _sharing(model: Any, given: Any, results: Any) -> Any:
    return analysis.sharing(model, words_tokenizer(), given, results)


def _finetuned(model: Any, given: Any, _results: Any) -> Any:
    with finetuned(model, words_tokenizer(), given, "mlp", steps=1, lr=0.1) as trained:
        return trained.losses


ENTRIES = [_attribute, _iter_attribute, _probability, _find, _iter_dkns, _robustness, _fact_check]
ENTRIES += [_complexity, _of_models, _clusterers, _sharing, _finetuned]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.__name__)
def test_every_entry_takes_every_form(
    model: Any,
    results: dkn.Results,
    entry: Callable[[Any, Any, Any], Any],
    tmp_path: Path,
) -> None:
    some = facts(model)
    expected = repr(entry(model, some, results))
    for way in (as_path, as_generator, as_dicts):
        assert repr(entry(model, way(some, tmp_path), results)) == expected


def test_new_facts_are_taken_in_every_form(
    model: Any, results: dkn.Results, tmp_path: Path
) -> None:
    new = [dkn.Fact(f"new{i}", f"w{5 + i} w30 w31", f"w{40 + i}") for i in range(3)]
    options: dict[str, Any] = {"steps": 1, "lr": 0.1, "n_random": 1}
    tables = [
        analysis.evolvability(
            model,
            words_tokenizer(),
            way(facts(model), tmp_path),
            results,
            new_facts=given,
            **options,
        )
        for way, given in ((list_of, new), (as_path, as_dicts(new, tmp_path)))
    ]
    assert repr(tables[0]) == repr(tables[1])


def list_of(some: list[dkn.Fact], _folder: Path) -> list[dkn.Fact]:
    return some


@pytest.mark.usefixtures("forked_workers")
def test_workers_take_dicts(model: Any, tmp_path: Path) -> None:
    spec = dkn.ModelSpec(str(save_tiny(tmp_path / "model")), device="cpu")
    given = as_dicts(facts(model)[:2], tmp_path)
    found = list(dkn.iter_dkns_in_workers(spec, given, CONFIG, out=tmp_path / "run", workers=1))
    assert [r.fact_id for r in found] == [f.id for f in facts(model)[:2]]
