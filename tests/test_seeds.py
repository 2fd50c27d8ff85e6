"""Random numbers by seed and name: all of the package's, and no two of them under one name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dkn_engine.seeds import generator

PACKAGE = Path(__file__).parents[1] / "dkn_engine"
# Random clusters, whose seeds are drawn by name; probes of a model's parts, the same for all runs.
OTHER_SOURCES = {
    "topology/other_clusterers.py": {"default_rng"},
    "models/affine.py": {"Generator"},
    "models/projections.py": {"Generator"},
    "models/norms.py": {"Generator"},
}
SOURCES = {"default_rng", "RandomState", "SeedSequence", "Generator", "manual_seed", "Random"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, name of what is called, and the call."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else ""
                name = called.id if isinstance(called, ast.Name) else name
                yield path.relative_to(PACKAGE).as_posix(), name, node


def test_nothing_but_seeds_makes_random_numbers() -> None:
    found: dict[str, set[str]] = {}
    for file, name, _ in calls():
        if name in SOURCES - {"manual_seed"}:
            found.setdefault(file, set()).add(name)
    assert found.pop("seeds.py") == {"default_rng"}
    assert found == OTHER_SOURCES


def test_no_two_draws_share_a_name() -> None:
    """Two that did would draw the same numbers, and one more draw of either would tell."""
    names: dict[tuple[object, ...], str] = {}
    for file, name, call in calls():
        if name not in {"generator", "draws"}:
            continue
        written = tuple(a.value for a in call.args if isinstance(a, ast.Constant))
        if written:  # The others take their name as an argument.
            assert written not in names, (written, file, names[written])
            names[written] = file
    assert {("random neurons",), ("control subsets",), ("unrelated facts",), ("lattice",)} <= set(
        names
    )
    assert len(names) >= 12


def test_numbers_depend_on_seed_and_names_alone() -> None:
    def first(*names: str, seed: int = 0) -> float:
        return float(generator(seed, *names).random())

    distinct = [first(), first("a"), first("b"), first("a", "b"), first("b", "a"), first("ab")]
    distinct += [first("a", seed=1), first("a", seed=-1)]
    assert len(set(distinct)) == len(distinct)
    assert first("a", "b") == first("a", "b")
    # Seeds of further draws follow the same ones (random clusters take theirs this way).
    few, more = (generator(0, "f", "random").integers(1 << 32, size=n) for n in (3, 50))
    np.testing.assert_array_equal(few, more[:3])
