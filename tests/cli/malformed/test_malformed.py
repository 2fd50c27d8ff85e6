"""Every malformed input of the corpus gives its one message, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.malformed.cases import CASES
from tests.cli.malformed.kinds import KINDS, Case, messages

_LONGEST = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("malformed")


def test_the_corpus_is_large_and_of_every_kind() -> None:
    counts = Counter(case.kind for case in CASES)
    assert set(counts) == set(KINDS)
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kind}: {c.name}")
def test_a_malformed_input_is_told_in_its_one_message(case: Case, folder: Path) -> None:
    own = folder / re.sub(r"\W", "-", f"{case.kind}-{case.name}")
    own.mkdir()
    found = messages(case, own)
    assert all("\n" not in text and len(text) < _LONGEST for text in found)
    expected = case.message.replace("{file}", "{folder}/facts.json")
    told = "\n".join(text.replace("{file}", "{folder}/facts.json") for text in found if text)
    assert re.fullmatch(".*".join(map(re.escape, expected.split("..."))), told), told
