"""Neurons of several facts: counts by hand."""

from __future__ import annotations

import numpy as np

from dkn_engine.report.shared_neurons import shared_neurons
from dkn_engine.types import Component, FactResult


def fact(name: str, neurons: list[list[int]], members: list[list[int]]) -> FactResult:
    arrays = [np.array(n, np.int32).reshape(-1, 2) for n in (neurons, members[:1], members[1:])]
    components = tuple(Component(a, 0.0, 1.0, 1.0) for a in arrays[1:])
    dkn = (0, 1) if members else ()
    return FactResult(name, "ok", neurons=arrays[0], components=components, dkn=dkn)


def test_neurons_of_the_most_facts_come_first() -> None:
    results = [
        fact("a", [[3, 1], [2, 9], [0, 0]], [[3, 1], [2, 9]]),
        fact("b", [[2, 9], [3, 1]], []),
        fact("c", [[3, 1], [5, 5]], [[3, 1], [5, 5]]),
        FactResult("d", "not_known"),
    ]
    table = shared_neurons(results)
    assert table is not None
    assert list(table.rows) == [("L3:1", 3, 2, "a, b, c"), ("L2:9", 2, 1, "a, b")]
    assert table.caption.startswith("The 2 of 4 knowledge neurons, layer:index, that most")
    first = shared_neurons(results, most=1)
    assert first is not None
    assert len(first.rows) == 1


def test_many_facts_are_counted_and_none_in_common_is_no_table() -> None:
    table = shared_neurons([fact(f"f{i}", [[1, 1]], []) for i in range(9)])
    assert table is not None
    assert list(table.rows) == [("L1:1", 9, 0, "f0, f1, f2, f3, f4, f5 and 3 more")]
    assert shared_neurons([fact("a", [[1, 1]], []), fact("b", [[1, 2]], [])]) is None
