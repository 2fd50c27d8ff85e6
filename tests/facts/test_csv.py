"""Tables of facts with a header, in every shape that spreadsheets save."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkn_engine.errors import FactError
from dkn_engine.facts import FactProblem, load_facts
from dkn_engine.facts.ids import made_id
from dkn_engine.types import Fact

ROWS = [
    ["id", "prompt", "answer", "aliases", "relation"],
    ["it", "The capital of Italy, is", "Rome", "Roma|La capitale", "capital"],
    ["", 'The "capital" of Peru is', "Lima", "", ""],
]
FACTS = [
    Fact("it", "The capital of Italy, is", "Rome", ("Roma", "La capitale"), relation="capital"),
    Fact(made_id('The "capital" of Peru is', "Lima"), 'The "capital" of Peru is', "Lima"),
]


def table(rows: list[list[str]], separator: str = ",", end: str = "\n") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_tables_are_told_by_their_header(
    separator: str, end: str, mark: bytes, tmp_path: Path
) -> None:
    contents = mark + table(ROWS, separator, end).encode()
    for name, data in (("facts.csv", contents), ("facts.gz", gzip.compress(contents))):
        (tmp_path / name).write_bytes(data)
        assert load_facts(tmp_path / name) == load_facts(tmp_path / name, "csv") == FACTS


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prompt,answer\nw5,w6\nw7\n", ":3: expected 2 cells, as the header has; got 1"),
        ("prompt,answer,id\nw5,w6,a\nw7,,b\n", ":3:b: 'answer' is empty"),
        ('prompt,answer\nw5,w6\n"w7\nw8",w6\n,w6\n', ":5: 'prompt' is empty"),
        ('prompt,answer\nw5,w6\nw8,"w9\n', ":3: broken row: unexpected end of data"),
        ("prompt,answer,id\nw5,w6,a\nw7,w8,a\n", ":3:a: duplicate id; first at {file}:2"),
        ("prompt;answer\nw5;w6\nis ___;w8\n", "the blank ___ would be asked as text"),
    ],
    ids=["cells", "empty", "two lines", "quote", "twice", "blank"],
)
def test_a_row_that_is_no_fact_is_told_by_its_line(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "facts.csv"
    file.write_text(text, encoding="utf-8")
    problems: list[FactProblem] = []
    assert load_facts(file, problems=problems)[0].answer == "w6"
    (told,) = map(str, problems)
    assert problem.format(file=file) in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"question,answer\na,b\n", "must have prompt and answer; got"),
        (b"prompt,answer,alias\na,b,c\n", "unknown column 'alias'; known: id, prompt"),
        (b"prompt,answer,prompt\na,b,c\n", "the column 'prompt' is there twice"),
        (b"prompt,answer\n\xfc,b\n", r"is not UTF-8 \(invalid start byte\); save it as UTF-8"),
        (b"prompt,answer\n", "no fact|empty"),
    ],
    ids=["absent", "unknown", "twice", "latin-1", "no row"],
)
def test_a_table_that_cannot_be_read_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "facts.csv"
    file.write_bytes(text)
    if text == b"prompt,answer\n":
        assert load_facts(file) == []
        return
    with pytest.raises(FactError, match=message):
        load_facts(file)


CELLS = st.text('ab1,;|"é漢', min_size=1)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, unique=True))
def test_a_written_table_reads_back(rows: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "facts.csv"
        written = table([["prompt", "answer"], *map(list, rows)])
        file.write_text(written, encoding="utf-8", newline="")
        facts = load_facts(file, blank="literal")
    assert [(f.prompt, f.answer) for f in facts] == list(rows)
