"""``dkn-engine report`` holds one window of results, and the large arrays of no other."""

from __future__ import annotations

import dataclasses
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkn_engine.cli import main as cli
from dkn_engine.store import Snapshot, tables
from dkn_engine.store.tables import chunk_files
from dkn_engine.types import Fact, FactResult
from tests.store.test_store import CONFIG, open_run, result_for

WINDOWS, CARDS = 4, 2
CHUNK, CHUNKS = CONFIG.facts_per_chunk, 4
WINDOW = CHUNK * CHUNKS
FACTS = [Fact(f"f{i}", f"Prompt {i} is", "so") for i in range(WINDOWS * WINDOW)]


def known(fact: Fact) -> FactResult:
    """A result with as many layers as its neurons need, and figures that have a mean."""
    layers = np.zeros(4)
    return dataclasses.replace(
        result_for(fact),
        redundancy=1.0,
        convergence_delta=layers.astype(np.float32),
        n_points=layers.astype(np.int32),
    )


def write(path: Path, n: int) -> None:
    """The first ``n`` facts of the run."""
    with open_run(path, facts=FACTS, chunks_per_window=CHUNKS) as run:
        for chunk in range(n // CHUNK):
            if chunk not in run.done_chunks():
                positions = range(CHUNK * chunk, CHUNK * (chunk + 1))
                results = [known(FACTS[i]) for i in positions]
                run.write_chunk(chunk, chunk_files(results, positions, CONFIG.hash))


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many results' arrays were there after each window was read."""
    found: list[int] = []
    now: set[int] = set()
    decode = tables.decode

    def counted(of_chunks: Any) -> Any:
        results = decode(of_chunks)
        for result in results:
            array = result.subset_probabilities
            now.add(id(array))
            weakref.finalize(array, now.discard, id(array))
        found.append(len(now))
        return results

    monkeypatch.setattr(tables, "decode", counted)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    write(path, len(FACTS))
    return path


@pytest.mark.parametrize("more", [[], ["--all"], ["--json"]])
def test_a_report_holds_one_window(
    more: list[str],
    whole: Path,
    tmp_path: Path,
    alive: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    asked = ["report", str(run), "--cards", str(CARDS), "--fact-figures", "0", "--quiet"]
    assert cli.main([*asked, *more]) == 0
    assert f"Prompt {len(FACTS) - 1} is" in capsys.readouterr().out or more == []
    assert len(alive) == WINDOWS * (3 if more == ["--json"] else 2)
    # The window before, whose last result is the loop's variable, and the cards of the page.
    assert max(alive) <= WINDOW + 1 + CARDS < len(FACTS)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="card"') == CARDS


def test_a_snapshot_is_the_same_twice_while_the_run_goes_on(tmp_path: Path) -> None:
    write(tmp_path, 4)
    snapshot = Snapshot(tmp_path)
    first = [r.fact_id for r in snapshot]
    write(tmp_path, 8)
    assert [r.fact_id for r in snapshot] == first == ["f0", "f1", "f2", "f3"]
    assert len(list(Snapshot(tmp_path))) == 8
