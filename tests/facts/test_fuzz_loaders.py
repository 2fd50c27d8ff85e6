"""Loaders on arbitrary bytes and JSON: facts or problems, settings or one line, nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts import FactProblem, iter_facts, load_facts, write_facts
from dkn_engine.files.visible_text import without_space
from dkn_engine.interchange import read_eleuther, read_released, write_eleuther, write_released
from dkn_engine.interchange.neuron_records import FactNeurons, same_set
from dkn_engine.types import Fact

FORMATS = ["auto", "templama", "pararel", "lama", "counterfact", "jsonl", "csv"]
# The same examples every time, so that a failure is a change of the code, not of luck.
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

# Keys and texts that the formats look at, so that values get past the first check.
FACT_KEYS = ("id", "prompt", "answer", "aliases", "paraphrases", "date", "query", "name", "uuid")
MORE_KEYS = ("case_id", "requested_rewrite", "target_true", "target_new", "str", "subject")
LAMA_KEYS = ("sub_label", "obj_label", "masked_sentences", "template", "predicate_id", "relation")
KEYS = st.sampled_from(FACT_KEYS + MORE_KEYS + LAMA_KEYS)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["a _X_.", "_X_", "a [MASK].", "[MASK]", "[X] is [Y]", "{} is", "{}", " "]),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, TEXTS), inner, max_size=6)
    ),
    max_leaves=12,
)
ENTRIES = st.one_of(VALUES, st.dictionaries(KEYS, st.one_of(TEXTS, VALUES), max_size=8))
BYTES = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet='[]{}",:\\ \n\r\tab01.-eE\ufeff', max_size=80).map(str.encode),
)


def on_file(data: bytes, name: str, read: Callable[[Path], Any]) -> Any:
    """What ``read`` makes of a file, or the one line it says."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            return read(path)
        except UserError as error:
            message = str(error)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return message


def check_facts(data: bytes, format: str) -> None:
    problems: list[FactProblem] = []
    found = on_file(data, "facts", lambda path: list(iter_facts(path, format, problems=problems)))
    for problem in problems:
        assert problem.reason
        str(problem).encode("utf-8")  # it can be printed
        assert len(str(problem).splitlines()) == 1
    if isinstance(found, str):
        return
    assert len({fact.id for fact in found}) == len(found)
    for fact in found:
        assert isinstance(fact, Fact)
        assert fact.prompt.strip()
        assert fact.answer.strip()
        (fact.id + fact.prompt + fact.answer).encode("utf-8")
    with TemporaryDirectory() as folder:
        if found:
            write_facts(Path(folder) / "again", found)
            again = load_facts(Path(folder) / "again", "jsonl", blank="literal")
            assert again == found


@pytest.mark.parametrize("format", FORMATS)
@FUZZ
@given(data=BYTES)
@example(data=b"[" * 100_000)
@example(data=b'{"id":' * 100_000)
@example(data=b"\xff\xfe[\x00]\x00")
def test_any_bytes_give_facts_or_problems(format: str, data: bytes) -> None:
    check_facts(data, format)


@pytest.mark.parametrize("format", FORMATS)
@FUZZ
@given(entries=st.lists(ENTRIES, max_size=4), as_list=st.booleans())
def test_any_json_gives_facts_or_problems(format: str, entries: list[Any], as_list: bool) -> None:
    text = json.dumps(entries) if as_list else "\n".join(map(json.dumps, entries))
    check_facts(text.encode("utf-8"), format)


# Also with space at the ends, the line break of a chat template, and what cannot be written.
ENDS = st.sampled_from(
    ["", "", " ", "\n", "\t", "\u00a0", "\u200b", "\ud800", "\r\n", "\0", "\u200d"]
)
SPACED = st.builds(lambda before, text, end: before + text + end, ENDS, TEXTS, ENDS)
LISTS = st.lists(SPACED, max_size=3).map(tuple)
FACTS = st.builds(
    Fact,
    id=st.one_of(SPACED, st.integers(0, 99).map(str)),
    prompt=SPACED,
    answer=SPACED,
    aliases=LISTS,
    subject=st.none() | SPACED,
    relation=st.none() | SPACED,
    paraphrases=LISTS,
    wrong_answers=LISTS,
    date=st.none() | SPACED,
)


@settings(FUZZ, max_examples=300)
@given(facts=st.lists(FACTS, min_size=1, max_size=4))
@example(facts=[Fact("chat", "<user>\nQ?\n<model>\n", "a", paraphrases=("<user>\n",))])
def test_facts_that_can_be_written_come_back_as_they_were(facts: list[Fact]) -> None:
    values = [v for fact in facts for v in dataclasses.astuple(fact) if v is not None]
    texts = [t for v in values for t in ([v] if isinstance(v, str) else v)]
    writable = all(without_space(t) and "\ud800" not in t for t in texts)
    writable &= len({f.id for f in facts}) == len(facts)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "facts.jsonl"
        if writable:
            write_facts(path, facts)
            assert load_facts(path, "jsonl", blank="literal") == facts
        else:
            with pytest.raises(FactError) as caught:
                write_facts(path, facts)
            assert len(str(caught.value).splitlines()) == 1
            assert not path.exists()


@pytest.mark.parametrize("name", ["config.json", "config.toml"])
@FUZZ
@given(data=BYTES)
@example(data=b"[" * 100_000)
def test_any_bytes_are_settings_or_one_line(name: str, data: bytes) -> None:
    assert isinstance(on_file(data, name, Config.load), Config | str)


SECTIONS = Config().to_dict()
SETTINGS = st.dictionaries(
    st.sampled_from(sorted(SECTIONS)),
    st.one_of(
        VALUES,
        st.sampled_from(sorted({k for s in SECTIONS.values() if isinstance(s, dict) for k in s}))
        .flatmap(lambda key: st.tuples(st.just(key), VALUES))
        .map(lambda pair: {pair[0]: pair[1]}),
    ),
    max_size=3,
)


@FUZZ
@given(data=SETTINGS)
def test_any_values_are_settings_or_one_line(data: dict[str, Any]) -> None:
    found = on_file(json.dumps(data).encode("utf-8"), "config.json", Config.load)
    if isinstance(found, Config):
        assert Config.from_dict(json.loads(json.dumps(found.to_dict()))) == found
        assert found.hash == Config.from_dict(found.to_dict()).hash


@FUZZ
@given(
    changes=st.lists(st.text(alphabet='abcselection.threshold=01-[]{}" ', max_size=30), max_size=2)
)
def test_any_change_of_a_setting_is_one_or_a_refusal(changes: list[str]) -> None:
    try:
        config_from_options(changes=changes)
    except UserError as error:
        said = str(error)
    else:
        said = "accepted"
    assert len(said.splitlines()) == 1


NEURONS = st.lists(st.lists(st.integers(-2, 2**33), min_size=1, max_size=3), max_size=4)
TABLES = st.dictionaries(
    st.text(max_size=4),
    st.one_of(
        VALUES,
        NEURONS,
        st.fixed_dictionaries(
            {
                "neurons": NEURONS,
                "dkn_cluster_2": st.lists(NEURONS, max_size=2),
                "dkn_cluster_1": st.lists(NEURONS, max_size=2),
            }
        ),
    ),
    max_size=3,
)


@pytest.mark.parametrize("read", [read_eleuther, read_released])
@FUZZ
@given(data=st.one_of(BYTES, TABLES.map(lambda t: json.dumps(t).encode("utf-8"))))
def test_any_file_of_neurons_is_read_or_refused(
    read: Callable[[Path], list[FactNeurons]], data: bytes
) -> None:
    found = on_file(data, "neurons.json", read)
    if isinstance(found, str):
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "again.json"
        (write_eleuther if read is read_eleuther else write_released)(path, found)
        again = read(path)
    assert len(again) == len(found)
    for one, other in zip(again, found, strict=True):
        assert one.neurons.tolist() == other.neurons.tolist()
        assert all(map(same_set, one.clusters, other.clusters))
