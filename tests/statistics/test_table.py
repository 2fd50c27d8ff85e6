"""Tables of analyses against values counted by hand, p-values against all sign flips."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dkn_engine.analysis.neuron_groups import neuron_groups, with_dkn
from dkn_engine.errors import UserError
from dkn_engine.neurons import sort_neurons, union
from dkn_engine.statistics.intervals import ALL_EQUAL, MEDIAN, TOO_FEW, Estimate, mean_interval
from dkn_engine.statistics.paired_tests import holm, paired_p_value
from dkn_engine.statistics.table import Comparison, Row, Sample, tabulate
from dkn_engine.types import Component, Fact, FactResult

UNDER = (("edit", "suppress"),)


def flips(x: np.ndarray) -> float:
    """All sign flips, one by one: how often the mean is at least as far from 0."""
    means = [
        abs(np.mean(x * s)) >= abs(x.mean()) - 1e-12
        for s in itertools.product((1, -1), repeat=len(x))
    ]
    return float(np.mean(means))


@pytest.mark.parametrize("n", [6, 7, 10])
@pytest.mark.parametrize("shift", [0.0, 0.4, 2.0])
def test_p_value_of_few_pairs_is_that_of_all_sign_flips(n: int, shift: float) -> None:
    x = np.random.default_rng(n).normal(shift, 1, n)
    assert paired_p_value(x) == pytest.approx(flips(x), abs=1e-12)


def test_p_value_of_many_pairs_is_near_the_t_test_and_seeded() -> None:
    x = np.random.default_rng(1).normal(0.25, 1, 60)
    p = paired_p_value(x, seed=3)
    # Of 9,999 flips the standard error is below 0.002 at p = 0.05.
    assert p == pytest.approx(stats.ttest_1samp(x, 0).pvalue, abs=0.01)
    assert p == paired_p_value(x, seed=3)


def test_p_value_says_nothing_of_too_few_pairs_and_1_of_none_that_differ() -> None:
    assert math.isnan(paired_p_value([1.0] * 5))
    assert math.isnan(paired_p_value([1.0] * 5 + [math.nan] * 9))
    assert paired_p_value([0.0] * 8) == 1.0
    assert paired_p_value([1.0] * 6) == pytest.approx(2 / 64)


def test_holm_by_hand() -> None:
    # 0.01 * 4, 0.02 * 3, then never below what came before; NaN is no test.
    found = holm([0.04, 0.01, math.nan, 0.02, 0.03])
    np.testing.assert_allclose(found, [0.06, 0.04, math.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])
    assert holm([]).shape == (0,)


def samples(values: dict[str, list[float]], figure: str = "drop") -> list[Sample]:
    return [
        Sample(f"f{i}", group, figure, v, UNDER)
        for group, xs in values.items()
        for i, v in enumerate(xs)
    ]


def test_rows_are_means_over_units_and_leave_out_what_is_not_defined() -> None:
    table = tabulate("a", samples({"D": [0.5, 0.7, math.nan], "Rnd": [0.1, 0.3, 0.2]}), seed=0)
    row = table.row("drop", "D", edit="suppress")
    assert row.mean == pytest.approx(0.6)
    assert (row.n, row.control) == (2, False)
    assert math.isnan(row.ci_low)
    assert math.isnan(row.ci_high)
    assert row.reason == row.shown.reason == TOO_FEW
    assert table.row("drop", "Rnd", edit="suppress").control
    with pytest.raises(KeyError, match="no row 'drop' of 'N'"):
        table.row("drop", "N", edit="suppress")


def test_rows_of_zeros_and_ones_are_shares_with_wilsons_interval() -> None:
    table = tabulate("a", samples({"D": [1.0, 1.0, 1.0, 0.0]}), seed=0)
    row = table.row("drop", "D", edit="suppress")
    low, high = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert (row.ci_low, row.ci_high) == pytest.approx((low, high))


def test_rows_and_comparisons_have_intervals_or_the_reason() -> None:
    d, rnd = np.random.default_rng(0).random((2, 9))
    table = tabulate("a", samples({"D": list(d), "N": [0.3] * 9, "Rnd": list(rnd)}), seed=0)
    row = table.row("drop", "D", edit="suppress")
    assert (row.ci_low, row.ci_high) == (row.shown.ci_low, row.shown.ci_high) == mean_interval(d)
    assert row.reason == ""
    assert table.row("drop", "N", edit="suppress").shown.reason == ALL_EQUAL
    c = table.comparison("drop", "D", "Rnd", edit="suppress")
    assert (c.ci_low, c.ci_high) == pytest.approx(mean_interval(d - rnd))
    equal = tabulate("a", samples({"D": [0.3] * 9, "N": [0.2] * 9}), seed=0).comparisons[0]
    assert equal.shown.reason == ALL_EQUAL
    assert equal.verdict == "higher"
    median = tabulate("a", samples({"D": list(d)}, "redundancy"), seed=0).rows[0].shown
    assert (median.mean, median.reason) == (np.median(d), MEDIAN)


def test_groups_are_compared_over_the_units_of_both() -> None:
    d = [0.9, 0.8, 0.85, 0.95, 0.7, 0.75, 0.8]
    table = tabulate("a", samples({"N": [0.9], "D": d, "Rnd": [0.1] * 6}), seed=0)
    c = table.comparison("drop", "D", "Rnd", edit="suppress")
    assert c.n == 6
    assert c.mean == pytest.approx(np.mean(d[:6]) - 0.1)
    assert c.p_value == pytest.approx(2 / 64)
    # The other comparison has one pair, so no p-value and no part in the correction.
    assert c.p_corrected == c.p_value
    assert c.verdict == "higher"
    assert table.comparison("drop", "D", "N", edit="suppress").verdict == "too few to say"


def test_correction_counts_all_comparisons_also_those_handed_in() -> None:
    own = samples({"D": [1.0] * 6, "Rnd": [0.0] * 6})
    other = Comparison("auroc", "D", "N", (), 0.1, 0.0, 0.2, 9, 0.5)
    table = tabulate("a", own, seed=0, others=[other])
    first, second = table.comparisons
    assert first.p_corrected == pytest.approx(4 / 64)
    assert first.verdict == second.verdict == "no difference found"


def test_only_what_is_named_is_tested() -> None:
    both = [s for f in ("drop", "p") for s in samples({"D": [1.0] * 6, "Rnd": [0.0] * 6}, f)]
    table = tabulate(
        "a", both, seed=0, tested=lambda figure, under: (figure, under) == ("p", UNDER)
    )
    assert [c.figure for c in table.comparisons] == ["p"]
    assert table.comparisons[0].p_corrected == pytest.approx(2 / 64)
    assert {r.figure for r in table.rows} == {"drop", "p"}


def test_a_unit_has_one_value() -> None:
    twice = samples({"D": [1.0]}) * 2
    with pytest.raises(ValueError, match=r"drop of D \(edit=suppress\) has two values for 'f0'"):
        tabulate("a", twice, seed=0)


def test_table_of_nothing() -> None:
    table = tabulate("a", [], seed=0, others=[Row.of("f", "D", (), Estimate(1, 0, 2, 3))])
    assert table.comparisons == ()
    assert table.row("f", "D").n == 3


WIDTH = 40


def result(name: str, components: list[list[tuple[int, int]]], dkn: tuple[int, ...]) -> FactResult:
    sets = [np.array(c, dtype=np.int32) for c in components]
    extra = np.array([[3, 1], [0, 7]], dtype=np.int32)
    return FactResult(
        name,
        "ok",
        neurons=np.concatenate([extra, *sets]),
        components=tuple(Component(s, 0, 1, 1) for s in sets),
        dkn=dkn,
    )


def test_groups_are_of_the_dkn_of_all_neurons_and_of_as_many_others() -> None:
    facts = [Fact(n, "p", "a") for n in ("with", "without", "unknown")]
    results = [
        result("with", [[(2, 5), (1, 0)], [(1, 4)], [(0, 1), (0, 2)]], (0, 1)),
        result("without", [[(2, 5)]], ()),
        FactResult("unknown", "not_known"),
    ]
    first, second = neuron_groups(facts, results, WIDTH, n_random=30, seed=1)
    assert first.d.tolist() == [[1, 0], [1, 4], [2, 5]]
    assert first.n.tolist() == [[0, 1], [0, 2], [0, 7], [1, 0], [1, 4], [2, 5], [3, 1]]
    assert len(first.rnd) == 30
    located = {tuple(x) for x in first.n.tolist()}
    for draw in first.rnd:
        assert draw[:, 0].tolist() == [1, 1, 2]
        assert len({tuple(x) for x in draw.tolist()} - located) == 3
    assert not second.has_dkn
    assert second.rnd == ()
    assert [g.fact.id for g in with_dkn([first, second])] == ["with"]
    assert union([first.d, first.d]).tolist() == first.d.tolist()
    assert union([]).shape == (0, 2)


def test_draws_depend_on_seed_and_fact_alone() -> None:
    facts = [Fact(n, "p", "a") for n in ("a", "b")]
    results = [result(n, [[(2, 5), (1, 0)]], (0,)) for n in ("a", "b")]
    both = neuron_groups(facts, results, WIDTH, n_random=2, seed=1)
    alone = neuron_groups(facts[1:], results[1:], WIDTH, n_random=2, seed=1)
    np.testing.assert_array_equal(both[1].rnd, alone[0].rnd)
    assert not np.array_equal(both[0].rnd, both[1].rnd)
    more = neuron_groups(facts, results, WIDTH, n_random=5, seed=1)
    np.testing.assert_array_equal(more[1].rnd[:2], both[1].rnd)


def test_results_must_be_of_the_facts() -> None:
    facts = [Fact(n, "p", "a") for n in ("a", "b")]
    swapped = [FactResult(n, "ok") for n in ("b", "a")]
    with pytest.raises(UserError, match=r"2 results for 2 facts, 'b' where 'a' is expected"):
        neuron_groups(facts, swapped, WIDTH, n_random=1, seed=0)
    with pytest.raises(UserError, match=r"0 results for 2 facts$"):
        neuron_groups(facts, [], WIDTH, n_random=1, seed=0)


def test_neurons_are_sorted_by_layer_then_index() -> None:
    drawn = np.array([[2, 1], [0, 9], [2, 0], [0, 3]], dtype=np.int32)
    assert sort_neurons(drawn).tolist() == [[0, 3], [0, 9], [2, 0], [2, 1]]
