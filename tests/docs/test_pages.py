"""Python on the pages runs as it stands, and messages that are quoted are in the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.cli.main import main
from tests.support.demo import demo_model, loading_and_asking_once, loading_copies

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", DOCS / "start.md", *sorted((DOCS / "howto").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M)


def with_python() -> list[Path]:
    # Those of some pages load a model from a path that only their reader has.
    elsewhere = {"gpu", "encoders"}
    found = [page for page in PAGES if blocks(page, "python") and page.stem not in elsewhere]
    assert len(found) >= 6
    return found


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What docs/howto/index.md says is there."""
    model, tokenizer = demo_model()
    return {"dkn": dkn, "model": model, "tokenizer": tokenizer}


@pytest.fixture
def _without_a_screen() -> Iterator[None]:
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


@pytest.mark.usefixtures("_without_a_screen")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # in peft
@pytest.mark.filterwarnings("ignore:.*are offloaded")
@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.stem)
def test_python_runs(
    page: Path,
    names: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one namespace a page; what a block of text behind it shows is what it printed."""
    monkeypatch.chdir(tmp_path)
    if page.stem == "your_model":
        pytest.importorskip("bitsandbytes")
    changes_the_model = page.stem in {"split", "your_model"}
    with loading_copies() if changes_the_model else loading_and_asking_once():
        if page.stem == "compare":
            for command in re.findall(r"^dkn-engine (find .*)$", page.read_text("utf-8"), re.M):
                assert main([*command.split(), "--quiet", "--no-report"]) == 0
        capsys.readouterr()
        own = dict(names)
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), own)
    printed = capsys.readouterr().out
    if page.stem in {"baseline", "generate", "positions", "thresholds", "your_model"}:
        assert printed == "".join(blocks(page, "text"))


def test_the_concepts_are_shown_with_the_facts_own_figures(names: dict[str, Any]) -> None:
    page = " ".join((DOCS / "concepts.md").read_text("utf-8").split())
    fact = ("The capital of France is", "Paris")
    model, tokenizer = names["model"], names["tokenizer"]
    with loading_and_asking_once():
        r = dkn.find(*fact, model=model, tokenizer=tokenizer)
    n_layers, width = r.n_points.size, model.config.intermediate_size
    best = ", ".join(map(str, r.neurons[0].tolist()))
    assert f"{len(r.neurons)} of {n_layers * width:,} here, ({best})" in page
    *most, last = (len(c.neurons) for c in r.components)
    assert f"of {', '.join(map(str, most))} and {last} neurons" in page
    first = r.components[0]
    assert ", ".join(f"({a}, {b})" for a, b in first.neurons.tolist()) in page
    assert f"born at {first.birth:.2f}, merged at {first.death:.2f}" in page
    sets = {f"C{i + 1}": r.components[i].neurons for i in r.dkn}
    every: dict[str, Any] = {"none": [], **sets, "both": np.concatenate(list(sets.values()))}
    for name, neurons in every.items():
        (p,) = dkn.answer_probability(model, tokenizer, fact, suppress=neurons)
        assert f"| {name} | {p:.2f} | {p / r.probability:.0%}".replace("%", " %") in page
    assert f"on average ({r.partial_drop:.2f})" in page
    assert f"with all ({r.full_drop:.2f})" in page
    assert f"of those of each, {r.redundancy:.2f} here" in page


SOURCE = re.sub(
    r'"\s*\n\s*f?"',
    "",
    "\n".join(p.read_text("utf-8") for p in (ROOT / "dkn_engine").rglob("*.py")),
)


def messages() -> list[str]:
    """What stands in backticks in the first column of the tables of errors."""
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "errors.md").read_text("utf-8"), re.M)
    return [part for row in rows for part in re.findall(r"`([^`]+)`", row)]


def test_errors_are_quoted() -> None:
    assert len(messages()) > 25


@pytest.mark.parametrize("message", messages())
def test_a_quoted_error_is_in_the_code(message: str) -> None:
    assert all(part.strip() in SOURCE for part in message.split("…") if part.strip())
