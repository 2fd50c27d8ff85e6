"""Facts from every format, and what becomes of entries that are no facts."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkn_engine.errors import FactError, UserError
from dkn_engine.facts import FactProblem, iter_facts, load_facts, write_facts
from dkn_engine.facts.scan import FactFile, scan
from dkn_engine.types import Fact

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the full datasets are not beside the repository"
)


def templama(**changes: Any) -> dict[str, Any]:
    entry = {
        "query": "Ada plays for _X_.",
        "answer": [{"wikidata_id": "Q1", "name": "Northtown"}],
        "date": "2010",
        "id": "Q1_P54_2010",
        "relation": "P54",
    }
    return {k: v for k, v in (entry | changes).items() if v is not ...}


def write_lines(path: Path, *entries: Any) -> Path:
    lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path, format: str = "auto", **options: Any) -> tuple[list[Fact], list[FactProblem]]:
    problems: list[FactProblem] = []
    return list(iter_facts(path, format, problems=problems, **options)), problems


# TempLAMA


def test_templama_first_answer_counts_and_the_others_become_aliases(tmp_path: Path) -> None:
    names = [{"name": n} for n in ("Northtown", "Southtown", "Northtown", "Easttown")]
    facts = load_facts(write_lines(tmp_path / "f.jsonl", templama(answer=names)))
    assert facts == [
        Fact(
            id="Q1_P54_2010",
            prompt="In 2010, Ada plays for",
            answer="Northtown",
            aliases=("Southtown", "Easttown"),
            relation="P54",
            date="2010",
        )
    ]


@pytest.mark.parametrize(
    "query", ["Ada plays for _X_.", "Ada plays for _X_", "Ada plays for _X_ . ", "Ada plays for_X_"]
)
def test_templama_blank_at_the_end_is_removed(tmp_path: Path, query: str) -> None:
    (fact,) = load_facts(write_lines(tmp_path / "f.jsonl", templama(query=query)), dates="omit")
    assert fact.prompt == "Ada plays for"


@pytest.mark.parametrize(
    ("dates", "prompts"),
    [
        ("auto", ["In 2010, Ada plays for", "Bob works for"]),
        ("prompt", ["In 2010, Ada plays for", "Bob works for"]),
        ("omit", ["Ada plays for", "Bob works for"]),
    ],
)
@pytest.mark.parametrize("format", ["auto", "templama"])
def test_the_date_of_templama_goes_in_front_unless_it_is_left_out(
    tmp_path: Path, dates: str, prompts: list[str], format: str
) -> None:
    other = templama(query="Bob works for _X_.", date=..., id="b")
    path = write_lines(tmp_path / "f.jsonl", templama(), other)
    facts = load_facts(path, format, dates=dates)
    assert [f.prompt for f in facts] == prompts
    assert [f.date for f in facts] == ["2010", None]


@pytest.mark.parametrize(
    ("dates", "prompts"),
    [
        ("auto", ["Ada is", "In 2012, Ada is", "Ada was"]),
        ("prompt", ["In 2012, Ada is", "In 2012, Ada is", "In 2012, Ada was"]),
        ("omit", ["Ada is", "In 2012, Ada is", "Ada was"]),
    ],
)
def test_dates_of_other_files_go_in_front_if_asked_for_and_never_twice(
    tmp_path: Path, dates: str, prompts: list[str]
) -> None:
    entry = {"prompt": "Ada is", "answer": "b", "date": 2012, "paraphrases": ["Ada was"]}
    again = entry | {"id": "2", "prompt": "In 2012, Ada is"}
    path = write_lines(tmp_path / "f.jsonl", entry | {"id": "1"}, again)
    one, two = load_facts(path, dates=dates)
    assert [one.prompt, two.prompt, *one.paraphrases] == prompts


def test_one_prompt_with_several_answers_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [
        templama(id=f"{name}{year}", query=f"{name} plays for _X_.", date=year, answer=answer)
        for name, changes in (("Ada", (0, 0, 1)), ("Bob", (0, 0, 0)), ("Cleo", (0, 1, 2)))
        for year, change in zip((2010, 2011, 2012), changes, strict=True)
        for answer in [[{"name": f"Club {change}"}]]
    ]
    path = write_lines(tmp_path / "f.jsonl", *entries)
    load_facts(path)
    assert caplog.records == []
    load_facts(path, dates="omit")
    repeated, shared = (record.message for record in caplog.records)
    assert "6 facts ask 2 questions" in shared
    assert "(fact 'Ada2012': 'Ada plays for'); facts.dates=prompt" in shared
    # Ada's second, and Bob's second and third.
    assert repeated.startswith("3 facts have prompt and answer of another and are computed again")
    assert repeated.endswith("(the first: 'Ada2011': 'Ada plays for')")
    scan(FactFile(path, dates="omit"), 4)
    assert [r.message for r in caplog.records] == [repeated, shared] * 2


def test_templama_blank_elsewhere_is_skipped_and_counted_even_if_strict(tmp_path: Path) -> None:
    query = "_X_ is the chair of bp."
    path = write_lines(tmp_path / "f.jsonl", templama(query=query, id="a"), templama(id="b"))
    for strict in (False, True):
        facts, problems = read(path, strict=strict)
        assert [f.id for f in facts] == ["b"]
        assert [(p.line, p.id, p.kind) for p in problems] == [(1, "a", "blank")]
        assert query in problems[0].reason


def test_templama_literal_blank_stays_except_at_the_end(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "f.jsonl", templama(query="_X_ is the chair of bp.", id="a"), templama(id="b")
    )
    facts, problems = read(path, blank="literal")
    assert [f.prompt for f in facts] == [
        "In 2010, _X_ is the chair of bp.",
        "In 2010, Ada plays for",
    ]
    assert problems == []


@pytest.mark.parametrize("query", ["Ada plays for _X_.", "_X_ is Ada's club.", "Ada, of _X_, won"])
def test_templama_blanks_are_kept_where_they_are(tmp_path: Path, query: str) -> None:
    path = write_lines(tmp_path / "f.jsonl", templama(query=query, id="a"))
    facts, problems = read(path, blank="keep")
    assert [f.prompt for f in facts] == ["In 2010, " + query.replace("_X_", "[MASK]")]
    assert problems == []


def test_a_sentence_that_is_a_blank_alone_is_broken(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", templama(query="_X_.", id="a"), templama(id="b"))
    facts, problems = read(path, blank="keep")
    assert [f.id for f in facts] == ["b"]
    assert "nothing beside the blank _X_ in '_X_.'" in problems[0].reason


@needs_shared
@pytest.mark.parametrize(
    ("name", "blank", "n_facts", "n_skipped"),
    [
        ("templama_train.jsonl", "skip", 7861, 2832),
        ("templama_train.jsonl", "literal", 10693, 0),
        ("templama_train.jsonl", "keep", 10693, 0),
        ("templama_new.jsonl", "skip", 407, 0),
    ],
)
def test_templama_full_files(name: str, blank: str, n_facts: int, n_skipped: int) -> None:
    facts, problems = read(SHARED / name, blank=blank)
    assert (len(facts), len(problems)) == (n_facts, n_skipped)
    assert len({f.id for f in facts}) == n_facts
    assert all(f.prompt == f.prompt.strip() and f.answer for f in facts)


# ParaRel


def bag(city: str, country: str) -> list[list[str]]:
    prompts = [
        f"[MASK] is the capital of {country}.",
        f"The capital of {country} is [MASK] .",
        f"{country}'s capital, [MASK].",
    ]
    return [[p, city, "P36(capital)"] for p in prompts]


def test_pararel_bag_becomes_a_fact_with_paraphrases(tmp_path: Path) -> None:
    path = tmp_path / "bags.json"
    path.write_text(json.dumps([bag("Oslo", "Norway"), bag("Rome", "Italy")], indent=0))
    facts = load_facts(path)
    assert facts[0] == Fact(
        id="P36(capital)_0",
        prompt="The capital of Norway is",
        answer="Oslo",
        relation="P36(capital)",
        paraphrases=("Norway's capital,",),
    )
    assert [f.id for f in facts] == ["P36(capital)_0", "P36(capital)_1"]


def test_pararel_bad_bags_name_line_and_id(tmp_path: Path) -> None:
    mixed = bag("Oslo", "Norway")
    mixed[2][1] = "Bergen"
    start_only = [["[MASK] is a town.", "Oslo", "P1"]]
    bags = [mixed, [["only", "two"]], start_only, bag("Rome", "Italy")]
    path = tmp_path / "bags.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, bags)) + "\n]")
    facts, problems = read(path)
    assert [f.id for f in facts] == ["P36(capital)_3"]
    assert [(p.line, p.id, p.kind) for p in problems] == [
        (2, "P36(capital)_0", "broken"),
        (3, None, "broken"),
        (4, "P1_2", "blank"),
    ]
    assert "Bergen" in problems[0].reason


@needs_shared
def test_pararel_full_bags_file() -> None:
    facts, problems = read(SHARED / "pararel_capitals.json")
    assert (len(facts), problems) == (468, [])
    assert facts[0].prompt == "The capital of Russia is"
    assert len(facts[0].paraphrases) == 7
    assert not any("[MASK]" in p for f in facts for p in (f.prompt, *f.paraphrases))


LAYOUTS = {
    "plain": ("patterns", "vocab"),
    "pararel": ("pattern_data/graphs_json", "trex_lms_vocab"),
    "repository": ("data/pattern_data/graphs_json", "data/trex_lms_vocab"),
}


def pararel_folder(root: Path, layout: str = "plain") -> tuple[Path, Path]:
    patterns, vocab = (root / name for name in LAYOUTS[layout])
    patterns.mkdir(parents=True)
    vocab.mkdir(parents=True)
    write_lines(
        patterns / "P36.jsonl",
        {"pattern": "[Y] is the capital of [X]."},
        {"pattern": "The capital of [X] is [Y] ."},
        {"pattern": "[X]'s capital is [Y]."},
    )
    write_lines(
        vocab / "P36.jsonl",
        {"sub_label": "Norway", "obj_label": "Oslo", "uuid": "u1"},
        {"sub_label": "[Y] Land", "obj_label": "Rome"},
    )
    return patterns, vocab


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pararel_patterns_are_filled_from_the_vocabulary(tmp_path: Path, layout: str) -> None:
    pararel_folder(tmp_path, layout)
    facts = load_facts(tmp_path)
    assert facts[0] == Fact(
        id="u1",
        prompt="The capital of Norway is",
        answer="Oslo",
        subject="Norway",
        relation="P36",
        paraphrases=("Norway's capital is",),
    )
    # A subject that looks like a blank stays a subject.
    assert (facts[1].id, facts[1].prompt) == ("P36_2", "The capital of [Y] Land is")


def test_pararel_folder_problems_do_not_stop_the_other_relations(tmp_path: Path) -> None:
    patterns, vocab = pararel_folder(tmp_path)
    write_lines(patterns / "P1.jsonl", {"pattern": "[X] in [Y]"})  # no vocabulary
    write_lines(patterns / "P2.jsonl", {"pattern": "[X] in [Y]"}, {"pattern": "no slots"}, "{")
    (vocab / "P2.jsonl").write_text("")
    write_lines(patterns / "P3.jsonl", {"pattern": "[Y] has [X]"})
    write_lines(vocab / "P3.jsonl", *[{"sub_label": s, "obj_label": "o"} for s in "ab"])
    facts, problems = read(tmp_path)
    assert [f.answer for f in facts] == ["Oslo", "Rome"]
    found = [(Path(p.file).parent.name, Path(p.file).name, p.line, p.kind) for p in problems]
    assert found == [
        ("vocab", "P1.jsonl", None, "broken"),
        ("patterns", "P2.jsonl", 2, "broken"),
        ("patterns", "P2.jsonl", 3, "broken"),
        ("vocab", "P2.jsonl", None, "broken"),
        ("vocab", "P3.jsonl", None, "blank"),
    ]


@needs_shared
def test_pararel_patterns_of_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "patterns").symlink_to(SHARED / "pararel_patterns")
    (tmp_path / "vocab").mkdir()
    for file in (SHARED / "pararel_patterns").glob("*.jsonl"):
        write_lines(tmp_path / "vocab" / file.name, {"sub_label": "Ada", "obj_label": "Oslo"})
    facts, problems = read(tmp_path)
    assert {p.kind for p in problems} <= {"blank"}
    assert len(facts) + len(problems) == 18
    assert not any(mark in f.prompt for f in facts for mark in ("[X]", "[Y]"))


def test_pararel_patterns_without_vocabulary_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "patterns").mkdir()
    with pytest.raises(FactError, match=r"must hold a folder vocab or trex_lms_vocab"):
        load_facts(tmp_path, "pararel")


# LAMA


def lama(**changes: Any) -> dict[str, Any]:
    entry = {
        "uuid": "u1",
        "predicate_id": "P19",
        "sub_label": "Ada",
        "obj_label": "Oslo",
        "masked_sentences": ["In [MASK] Ada lived .", "Ada was born in [MASK] ."],
    }
    return {k: v for k, v in (entry | changes).items() if v is not ...}


def test_lama_masked_sentences(tmp_path: Path) -> None:
    assert load_facts(write_lines(tmp_path / "f.jsonl", lama())) == [
        Fact("u1", "Ada was born in", "Oslo", subject="Ada", relation="P19")
    ]


@pytest.mark.parametrize("where", ["entry", "beside", "above", "folder"])
def test_lama_template(tmp_path: Path, where: str) -> None:
    template = "[X] comes from [Y] ."
    folder = tmp_path / "TREx"
    folder.mkdir()
    entry = lama(template=template) if where == "entry" else lama()
    path = write_lines(folder / "P19.jsonl", entry)
    if where != "entry":
        beside = folder if where == "beside" else tmp_path
        write_lines(beside / "relations.jsonl", {"relation": "P19", "template": template})
    facts = load_facts(tmp_path if where == "folder" else path)
    assert facts == [Fact("u1", "Ada comes from", "Oslo", subject="Ada", relation="P19")]


# CounterFact


def counterfact(**changes: Any) -> dict[str, Any]:
    rewrite = {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_true": {"str": "French", "id": "Q150"},
        "target_new": {"str": "English", "id": "Q1860"},
        "subject": "Ada",
    }
    rewrite = {k: v for k, v in (rewrite | changes).items() if v is not ...}
    paraphrases = ["Some other text. Ada, a native ", "Ada spoke the language"]
    return {"case_id": 0, "requested_rewrite": rewrite, "paraphrase_prompts": paraphrases}


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "lines"])
def test_counterfact(tmp_path: Path, as_list: bool) -> None:
    path = write_lines(tmp_path / "f.json", [counterfact()] if as_list else counterfact())
    assert load_facts(path) == [
        Fact(
            id="0",
            prompt="The mother tongue of Ada is",
            answer="French",
            subject="Ada",
            relation="P103",
            paraphrases=("Some other text. Ada, a native", "Ada spoke the language"),
            wrong_answers=("English",),
        )
    ]


# The engine's own format

FULL = Fact(
    id="f-1",
    prompt="Où est",
    answer="Zürich 🙂",
    aliases=("ZH",),
    subject="two\u2028lines",
    relation="r",
    paraphrases=("a", "b"),
    wrong_answers=("c",),
    date="1999",
)


def test_jsonl_round_trip(tmp_path: Path) -> None:
    facts = [FULL, Fact("f-2", "The sky is", "blue")]
    write_facts(tmp_path / "f.jsonl", facts)
    assert load_facts(tmp_path / "f.jsonl") == facts
    assert [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]


@pytest.mark.parametrize(
    "form",
    [
        lambda fact, _: fact,
        lambda fact, _: [dataclasses.asdict(fact)],
        lambda fact, _: (one for one in [fact]),
        lambda _, source: source,
        lambda _, source: str(source),
    ],
    ids=["fact", "dicts", "generator", "path", "text"],
)
def test_write_facts_takes_every_form_of_facts(form: Any, tmp_path: Path) -> None:
    write_facts(tmp_path / "source.jsonl", [FULL])
    write_facts(tmp_path / "f.jsonl", form(FULL, tmp_path / "source.jsonl"))
    assert load_facts(tmp_path / "f.jsonl") == [FULL]


def test_a_file_can_be_written_over_itself(tmp_path: Path) -> None:
    facts = [FULL, Fact("f-2", "The sky is", "blue")]
    write_facts(tmp_path / "f.jsonl", facts)
    write_facts(tmp_path / "f.jsonl", tmp_path / "f.jsonl")
    assert load_facts(tmp_path / "f.jsonl") == facts


@pytest.mark.parametrize("nothing", [[], (), iter(())], ids=["list", "tuple", "iterator"])
def test_a_file_without_facts_is_not_written(nothing: Any, tmp_path: Path) -> None:
    with pytest.raises(FactError, match=r"^facts must hold at least one fact.*; got none"):
        write_facts(tmp_path / "f.jsonl", nothing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("integer", [int, np.int64, np.uint8])
def test_a_limit_is_any_integer(integer: Any) -> None:
    assert load_facts("demo", limit=integer(2)) == load_facts("demo")[:2]


@pytest.mark.parametrize("limit", [True, np.bool_(True), np.float64(2), "2", -1, np.int8(-1)])
def test_a_limit_that_is_no_count_is_refused(limit: Any) -> None:
    with pytest.raises(UserError, match=r"^limit must be None or an integer of 0 or more; got "):
        load_facts("demo", limit=limit)


def test_write_facts_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_facts(path, [FULL])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_facts(path, [FULL, None])  # type: ignore[list-item]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.jsonl"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_a_new_file_of_facts_has_the_permissions_that_the_umask_leaves(
    tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        write_facts(tmp_path / "f.jsonl", [FULL])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f.jsonl").stat().st_mode) == 0o666 & ~mask


def test_a_file_of_facts_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.touch()
    path.chmod(0o600)
    write_facts(path, [FULL])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ([Fact("a", "p", "")], "fact 'a' cannot be written: 'answer' is empty"),
        ([Fact("a", "\n", "b")], "fact 'a' cannot be written: 'prompt' is empty"),
        ([Fact("", "p", "b")], "fact '' cannot be written: 'id' is empty"),
        ([Fact("a", "p", "b", subject="")], "fact 'a' cannot be written: 'subject' is empty"),
        ([Fact("a", "p", "\ud800")], "'answer' is not valid Unicode"),
        ([Fact("a", "p", "b"), Fact("a ", "q", "c")], "ids must be unique; got 'a' twice"),
    ],
    ids=["answer", "prompt", "id", "subject", "surrogate", "twice"],
)
def test_facts_that_would_not_come_back_are_not_written(
    tmp_path: Path, facts: list[Fact], reason: str
) -> None:
    with pytest.raises(FactError, match=re.escape(reason)):
        write_facts(tmp_path / "f.jsonl", facts)
    assert list(tmp_path.iterdir()) == []


def test_jsonl_null_is_a_list_without_texts(tmp_path: Path) -> None:
    entry = {"id": "a", "prompt": "p", "answer": "b"}
    nothing = dict.fromkeys(["aliases", "paraphrases", "wrong_answers", "subject", "date"])
    assert load_facts(write_lines(tmp_path / "f.jsonl", entry | nothing)) == [Fact("a", "p", "b")]


MARKS = [
    "__",
    "___",
    "______",
    "[MASK]",
    "[mask]",
    "[Mask]",
    "<mask>",
    "[BLANK]",
    "{}",
    "[Y]",
    "_X_",
]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("where", ["prompt", "paraphrase"])
def test_jsonl_blank_of_another_format_is_counted_not_asked(
    tmp_path: Path, mark: str, where: str
) -> None:
    prompts = [f"The capital of Peru is {mark}", f"{mark} is a capital"]
    plain = {"answer": "Lima", "prompt": "Peru's capital, Lima__of__Peru, is"}
    bad = [plain | ({"prompt": p} if where == "prompt" else {"paraphrases": [p]}) for p in prompts]
    entries = [e | {"id": str(i)} for i, e in enumerate([*bad, plain])]
    path = write_lines(tmp_path / "f.jsonl", *entries)
    for strict in (False, True):
        facts, problems = read(path, strict=strict)
        assert [f.id for f in facts] == ["2"]
        assert [(p.line, p.id, p.kind) for p in problems] == [(1, "0", "blank"), (2, "1", "blank")]
        assert f"the blank {mark} would be asked as text in '{prompts[0]}'" in problems[0].reason
    facts, problems = read(path, blank="literal")
    assert (len(facts), problems) == (3, [])
    asked = [f.prompt if where == "prompt" else f.paraphrases[0] for f in facts[:2]]
    assert asked == prompts


@pytest.mark.parametrize(
    "prompt", ['The capital is "__".', "In __, Lima is the capital of", "The __-based firm is"]
)
def test_jsonl_two_underscores_alone_are_a_blank(tmp_path: Path, prompt: str) -> None:
    entry = {"id": "a", "prompt": prompt, "answer": "b"}
    _, (problem,) = read(write_lines(tmp_path / "f.jsonl", entry))
    assert problem.kind == "blank"
    assert "the blank __ would be asked as text" in problem.reason


@pytest.mark.parametrize(
    "prompt",
    [
        "Python calls __init__ after",
        "x.__ is",
        "a__b",
        "The call __('a') gives",
        "The capital is …",
        "{x} is",
        "mask",
        "[X] and <masks> are",
        "x_y _z_ is",
        "_ is",
    ],
)
def test_jsonl_what_is_no_blank_is_asked(tmp_path: Path, prompt: str) -> None:
    entry = {"id": "a", "prompt": prompt, "answer": "b"}
    facts = load_facts(write_lines(tmp_path / "f.jsonl", entry))
    assert [f.prompt for f in facts] == [prompt]


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.jsonl"])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_file_packed_by_gzip_is_read(tmp_path: Path, name: str, as_list: bool) -> None:
    lines = [json.dumps(templama(id=str(i))) for i in range(3)]
    text = f"[{', '.join(lines)}]" if as_list else "\n".join(lines)
    (tmp_path / "plain").write_text(text)
    (tmp_path / name).write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert load_facts(tmp_path / name) == load_facts(tmp_path / "plain")


def test_a_packed_file_cut_short_is_an_error_not_a_shorter_file(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(templama(id=str(i))) for i in range(3000))
    packed = gzip.compress(lines.encode())
    for data in (packed[: len(packed) // 2], packed[:-20] + b"12345678901234567890"):
        (tmp_path / "f.gz").write_bytes(data)
        with pytest.raises(FactError, match=r"f\.gz: cannot be read: "):
            load_facts(tmp_path / "f.gz")


def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/f.jsonl", Path("~/f.jsonl")):
        write_facts(path, [FULL])
        assert load_facts(path) == [FULL]
        (tmp_path / "f.jsonl").unlink()
    with pytest.raises(FactError, match=r"~nobody_of_this_name/f: (cannot be read|there is no)"):
        load_facts("~nobody_of_this_name/f")


def test_jsonl_misspelt_key_is_a_problem(tmp_path: Path) -> None:
    entry = {"id": "a", "prompt": "p", "answer": "a", "paraphrase": ["q"]}
    facts, (problem,) = read(write_lines(tmp_path / "f.jsonl", entry))
    assert facts == []
    assert "'paraphrase'" in problem.reason
    assert "paraphrases" in problem.reason


# Packaged facts


def test_demo_facts_have_paraphrases_and_several_relations() -> None:
    facts = load_facts("demo")
    assert len(facts) >= 24
    assert len({f.relation for f in facts}) >= 5
    assert all(len(f.paraphrases) >= 3 and f.prompt not in f.paraphrases for f in facts)
    assert all(f.wrong_answers and f.answer not in f.wrong_answers for f in facts)
    assert len(load_facts("demo-unselected")) == 24


# Entries that are no facts

BAD = {
    "truncated": ('{"query": "Ada plays', "broken JSON", None),
    "not-an-object": ("17", "must be an object; got int", None),
    "nested-too-deeply": ("[" * 100_000, "nested too deeply", None),
    "no-query": (templama(query=..., id="x"), "missing key 'query'", "x"),
    "no-id": (templama(id=...), "missing key 'id'", None),
    "query-is-a-number": (templama(query=3, id="x"), "'query' must be text; got int", "x"),
    "empty-query": (templama(query=" ", id="x"), "'query' is empty", "x"),
    "no-answer": (templama(answer=..., id="x"), "missing key 'answer'", "x"),
    "empty-answers": (templama(answer=[], id="x"), "'answer' is empty", "x"),
    "empty-name": (templama(answer=[{"name": " "}], id="x"), "'name' is empty", "x"),
    "answer-is-text": (templama(answer="Oslo", id="x"), "'answer' must be a list", "x"),
    "name-is-null": (templama(answer=[{"name": None}], id="x"), "'name' must be text", "x"),
    "no-blank": (templama(query="Ada plays.", id="x"), "expected one blank _X_; got 0", "x"),
    "two-blanks": (templama(query="_X_ is _X_.", id="x"), "expected one blank _X_; got 2", "x"),
    "only-a-blank": (templama(query="_X_.", id="x"), "nothing in front", "x"),
    "lone-surrogate": (templama(query="\ud800 is _X_.", id="x"), "not valid Unicode", "x"),
    "same-id": (templama(), "duplicate id; first at", "Q1_P54_2010"),
    "date-is-a-list": (templama(date=[1], id="x"), "'date' must be text; got list", "x"),
}


@pytest.mark.parametrize(("entry", "reason", "name"), BAD.values(), ids=BAD.keys())
def test_bad_entry_names_file_line_and_id(
    tmp_path: Path, entry: Any, reason: str, name: str | None
) -> None:
    path = write_lines(tmp_path / "f.jsonl", templama(), "", entry, templama(id="last"))
    facts, problems = read(path)
    assert [f.id for f in facts] == ["Q1_P54_2010", "last"]
    (problem,) = problems
    assert (problem.file, problem.line, problem.id) == (str(path), 3, name)
    assert reason in problem.reason
    with pytest.raises(FactError) as caught:
        load_facts(path, strict=True)
    assert str(caught.value).startswith(f"{path}:3:{name}: " if name else f"{path}:3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"obj_label": ...}, "missing key 'obj_label'"),
        ({"masked_sentences": ...}, "missing key 'masked_sentences'"),
        ({"masked_sentences": "x [MASK]"}, "must be a list of texts; got str"),
        ({"masked_sentences": [1]}, "got int in it"),
        ({"masked_sentences": []}, "(0 given)"),
        ({"template": "no slots"}, "must hold [X] and one [Y]"),
        ({"template": "[X] in [Y]", "sub_label": ...}, "missing key 'sub_label'"),
    ],
)
def test_bad_lama_entry(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    facts, (problem,) = read(write_lines(tmp_path / "f.jsonl", lama(**changes)), "lama")
    assert facts == []
    assert (problem.line, problem.id, problem.kind) == (1, "u1", "broken")
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "no slot"}, "must hold one {}"),
        ({"target_true": ...}, "missing key 'target_true'"),
        ({"target_true": {"str": ""}}, "'str' is empty"),
        ({"target_new": "English"}, "'target_new' must be an object; got str"),
    ],
)
def test_bad_counterfact_entry(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    entries = [counterfact(**changes), counterfact()]
    facts, (problem,) = read(write_lines(tmp_path / "f.json", entries))
    assert len(facts) == 1
    assert (problem.line, problem.id) == (1, "0")
    assert reason in problem.reason


def test_broken_first_line_does_not_hide_the_format(tmp_path: Path) -> None:
    facts, problems = read(write_lines(tmp_path / "f.jsonl", "{oops", templama()))
    assert (len(facts), [p.line for p in problems]) == (1, [1])


@pytest.mark.parametrize("cut", [1, 40], ids=["bracket", "entry"])
def test_truncated_list_keeps_what_came_before(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "bags.json"
    path.write_text(json.dumps([bag("Oslo", "Norway"), bag("Rome", "Italy")])[:-cut])
    facts, problems = read(path)
    assert facts[0].answer == "Oslo"
    assert (len(facts), len(problems)) == ((2, 1) if cut == 1 else (1, 1))
    assert "broken JSON" in problems[0].reason


def test_line_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    latin = json.dumps(templama(query="Zoë is _X_.", id="z"), ensure_ascii=False).encode("latin-1")
    path.write_bytes(latin + b"\n" + json.dumps(templama()).encode() + b"\n")
    facts, (problem,) = read(path)
    assert len(facts) == 1
    assert problem.line == 1
    assert "not UTF-8: byte 0xeb" in problem.reason


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(templama()).encode())
    assert len(load_facts(path)) == 1


# Sources that cannot be used at all


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"], ids=["0", "space", "mark"])
@pytest.mark.parametrize("format", ["auto", "templama", "pararel", "lama", "counterfact", "jsonl"])
def test_empty_file_is_an_error(tmp_path: Path, content: bytes, format: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(FactError, match=r"f\.jsonl: the file is empty"):
        load_facts(path, format)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"foo": 1}', r"unknown format: line 1 holds an object with the keys foo"),
        ("hello", r"unknown format: line 1: broken JSON"),
        ("[]", r"unknown format: it holds no entry"),
        ("[1]", r"unknown format: line 1 holds a int"),
    ],
)
def test_unknown_format_says_what_was_seen(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(content)
    with pytest.raises(FactError, match=message):
        load_facts(path)


def test_missing_file_and_strange_folder(tmp_path: Path) -> None:
    with pytest.raises(FactError, match=r"nothing\.jsonl: there is no such file or folder"):
        load_facts(tmp_path / "nothing.jsonl")
    with pytest.raises(FactError, match=r"must hold 'patterns' and 'vocab'"):
        load_facts(tmp_path)
    with pytest.raises(FactError, match=r"cannot be read|no such file"):
        load_facts("\0")


@pytest.mark.parametrize("format", ["templama", "counterfact", "jsonl"])
def test_folder_for_a_format_of_files_is_an_error(tmp_path: Path, format: str) -> None:
    with pytest.raises(FactError, match="cannot be read"):
        load_facts(tmp_path, format)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"blank": "kept"},
        {"dates": "year"},
        {"limit": -1},
        {"limit": True},
        {"limit": 1.5},
    ],
    ids=str,
)
def test_wrong_argument_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"^{name} must be"):
        iter_facts("demo", **options)


# Streaming and problems


def test_limit_counts_usable_facts_and_reads_no_further(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", *[templama(id=str(i)) for i in range(3)], "{oops")
    facts, problems = read(path, limit=2)
    assert ([f.id for f in facts], problems) == (["0", "1"], [])
    assert load_facts(path, limit=0) == []


def test_load_facts_warns_when_nobody_takes_the_problems(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "f.jsonl", templama(), "{oops")
    with caplog.at_level(logging.WARNING, "dkn_engine"):
        load_facts(path, problems=[])
        assert caplog.records == []
        load_facts(path)
    assert "entries left out: 1" in caplog.text
    assert f"{path}:2: broken JSON" in caplog.text


def test_load_facts_without_a_usable_fact_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", templama(answer=[], id="x"))
    with pytest.raises(FactError, match=r"no fact can be used; the problem: .*:1:x: 'answer' is"):
        load_facts(path)
