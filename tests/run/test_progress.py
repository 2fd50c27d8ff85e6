"""What is shown while a run goes on: a bar that moves by stages and seconds, lines in a log."""

from __future__ import annotations

import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.run.progress import Bar, Log, Watch, showing
from dkn_engine.run.stages import Stages
from tests.run.test_pipeline import CHEAP, CONFIG, assert_equal, facts
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


def drawn(text: str) -> list[str]:
    """What a terminal was shown, one drawing after the other."""
    return [part.strip() for part in re.split(r"[\r\n]", text) if part.strip()]


def test_a_bar_moves_with_stages_and_with_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(16, console=True) as bar:
        bar.stage("attributing 8 facts", 8 / 3)
        bar.stage("suppressing in 8 facts", 16 / 3)
        time.sleep(2.2)
        bar(8, 16)
    shown = drawn(capsys.readouterr().err)
    attributing = [line for line in shown if "attributing 8 facts" in line]
    suppressing = [line for line in shown if "suppressing in 8 facts" in line]
    assert re.match(r"17%\|.*\| 0/16 \[00:00<", attributing[0])
    assert re.match(r"33%\|.*\| 0/16 \[", suppressing[0])
    # Nothing happened for two seconds, but the clock.
    assert len({re.search(r"\[(\d\d:\d\d)<", line)[1] for line in suppressing}) >= 3  # type: ignore[index]
    assert re.match(r"50%\|.*\| 8/16 \[00:02<.*fact/s", shown[-1])


@pytest.mark.parametrize("raises", [False, True])
def test_the_clock_of_a_bar_ends_with_it(raises: bool) -> None:
    bar = Bar(2, console=True)
    try:
        with bar:
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not bar._clock.is_alive()


def test_a_notebook_without_widgets_is_not_warned_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "tqdm.auto", raising=False)
    with warnings.catch_warnings(), Bar(2) as bar:
        warnings.simplefilter("error")
        bar(2, 2)
    assert "2/2" in capsys.readouterr().err
    assert "tqdm.auto" not in sys.modules


def test_a_log_says_stages_too_but_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    lines: list[str] = []
    log = Log(lines.append)
    log(0, 16)
    for _ in range(24):
        clock[0] += 1.0
        log.stage("attributing 8 facts", 1.0)
    assert lines == ["  0/16 facts, attributing 8 facts"] * 2
    log(16, 16)
    assert lines[-1] == "  16/16 facts, 0.667 facts/s, 0 s left"


def test_every_stage_of_every_chunk_is_told(model: Any) -> None:
    told: list[tuple[str, float]] = []
    stages = Stages(
        model, words_tokenizer(), facts(model), CONFIG, lambda w, n: told.append((w, n))
    )
    n = len(facts(model))
    results = stages.results(facts(model))
    known = sum(r.status == "ok" for r in results)
    assert told[0] == (f"asking {n} facts", 0)
    words = [w.rpartition(" facts")[0] for w, _ in told]
    assert words[1:] == [f"attributing {known}", f"suppressing in {known}"]
    assert [n for _, n in told] == pytest.approx([0, known / 3, 2 * known / 3])


@pytest.fixture(scope="module")
def expected(model: Any) -> dkn.Results:
    return dkn.find_dkns(model, words_tokenizer(), facts(model), CHEAP)


@pytest.mark.parametrize("terminal", [False, True])
def test_true_shows_progress_and_changes_no_result(
    model: Any,
    expected: Any,
    terminal: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    some = facts(model)
    dkn.find_dkns(model, words_tokenizer(), some[:1], CHEAP)
    assert capsys.readouterr().err == ""
    for _ in range(2):  # the second time, all is there
        found = dkn.find_dkns(
            model, words_tokenizer(), some, CHEAP, tmp_path / "run", progress=True
        )
        err = capsys.readouterr().err
        assert f"{len(some)}/{len(some)}" in err
        assert ("\r" in err) == terminal
        assert_equal(found, expected)


def test_progress_that_is_none_is_refused_before_anything_is_computed(model: Any) -> None:
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="progress must be True, False or a callable"):
        dkn.iter_dkns(model, words_tokenizer(), facts(model), CONFIG, progress=wrong)


def test_both_watches_take_stages() -> None:
    assert isinstance(Bar(1), Watch)
    assert isinstance(Log(print), Watch)
    assert not isinstance(lambda done, total: None, Watch)


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_counted_is_named_and_its_total_comes_with_it(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with showing(True, "step") as tell:
        assert tell is not None
        for done in range(1, 5):
            tell(done, 4)
    last = drawn(capsys.readouterr().err)[-1]
    assert "4/4" in last
    assert "step" in last
    assert last.startswith("100%") == terminal


def test_a_callable_is_told_and_what_is_none_is_refused() -> None:
    told: list[tuple[int, int]] = []
    with showing(lambda *of: told.append(of)) as tell:
        assert tell is not None
        tell(1, 2)
    assert told == [(1, 2)]
    for nobody in (None, False):
        with showing(nobody) as tell:
            assert tell is None
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="progress must be True, False or a callable"):
        showing(wrong).__enter__()
