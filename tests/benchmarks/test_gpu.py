"""``make gpu``: refused without a card, dry-run on the CPU, limits that keep what was measured."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import part, run
from benchmarks.gpu.rows import Recorder
from tests.packaging.test_rooms import PACKAGE

ROOT = PACKAGE.parent


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"gpu_{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run"])
    assert run.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"make gpu: needs a CUDA device; torch {torch.__version__} sees none\n"


def test_everything_runs_at_tiny_sizes(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton has no wheel for this system")
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    measured = {name: rows(tmp_path, name) for name in part.NAMES}
    failed = [(r["case"], r["note"]) for some in measured.values() for r in some]
    failed = [(case, note) for case, note in failed if note not in {"", "PASSED"}]
    assert failed == []
    assert len(measured["tests"]) > 0
    kernels = {(r["case"], r["metric"]): float(r["median"]) for r in measured["kernels"]}
    apart = {case: v for (case, metric), v in kernels.items() if metric == "apart_from_reference"}
    assert len(apart) == 6
    # bfloat16 has 8 bits; the interpreter cuts off instead of rounding.
    assert max(apart.values()) < 2**-6, apart
    for name in ("demo", "llama"):
        figures = {(r["provider"], r["metric"]): float(r["median"]) for r in measured[name]}
        assert figures["dkn_engine", "known"] >= 1
        assert figures["dkn_engine", "components_per_known_fact"] >= 1
    for peer in ("captum", "released"):
        assert figures[peer, "scores_apart_from_engine"] < 1e-3
        assert figures[peer, "attribution_seconds"] > 0
    assert figures["published", "find_seconds"] > 0


def test_a_slow_part_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    touch = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w').close()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {touch!r}])"
    start = time.perf_counter()
    assert run.limited([sys.executable, "-c", code], 0.5) == "stopped after 0.5 s"
    assert time.perf_counter() - start < 2
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_a_part_that_fails_leaves_its_rows_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(command: list[str], _limit: float) -> str | None:
        name = command[3]
        Recorder(name, tmp_path)("a case", "dkn_engine", "seconds", [1.0, 2.0, 4.0])
        return "ended with 1" if name == "kernels" else None

    monkeypatch.setattr(run, "limited", limited)
    assert run.prove(["kernels", "demo"], tmp_path) == 1
    first, second = rows(tmp_path, "kernels"), rows(tmp_path, "demo")
    assert [r["metric"] for r in first] == ["seconds", "seconds", "failed"]
    assert (first[0]["median"], first[0]["least"], first[0]["most"]) == ("2.0", "1.0", "4.0")
    assert first[-1]["note"] == "ended with 1"
    assert [r["metric"] for r in second] == ["seconds", "seconds"]
    assert run.prove(["demo"], tmp_path) == 0
    assert "torch" in first[0]["versions"]


def test_a_measurement_that_fails_is_a_row(tmp_path: Path) -> None:
    record = Recorder("kernels", tmp_path)
    with record.surviving("a case", "triton"):
        raise RuntimeError("no such\nkernel")
    (row,) = rows(tmp_path, "kernels")
    assert (row["metric"], row["note"]) == ("failed", "RuntimeError: no such")
    assert math.isnan(float(row["median"]))


def test_outcomes_are_read_as_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Without workers and with them; the summary at the end is not read a second time."""
    lines = [
        "[gw3] [  2%] PASSED tests/ops/test_a.py::test_three[a b] \n",
        "tests/ops/test_a.py::test_one[x=1-dtype=float32] PASSED   [ 50%]\n",
        "tests/ops/test_a.py::test_two[a b] FAILED                 [100%]\n",
        "E   assert 1 == 2\n",
        "FAILED tests/ops/test_a.py::test_two[a b] - assert 1 == 2\n",
    ]
    assert list(part.outcomes(lines)) == [
        ("tests/ops/test_a.py::test_three[a b]", "PASSED"),
        ("tests/ops/test_a.py::test_one[x=1-dtype=float32]", "PASSED"),
        ("tests/ops/test_a.py::test_two[a b]", "FAILED"),
    ]
    assert capsys.readouterr().out == "".join(lines[3:])


def test_parts_together_take_less_than_eight_minutes() -> None:
    assert sum(run.LIMITS.values()) < 8 * 60
    assert tuple(run.LIMITS) == part.NAMES
