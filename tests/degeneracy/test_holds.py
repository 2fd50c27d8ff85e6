"""Whether a DKN shows on held-out paraphrases, from the figures that are kept of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dkn_engine.degeneracy.lattice import Lattice, drops
from dkn_engine.types import Degeneracy, Drops
from tests.degeneracy.test_controls import subsets_of


def of(single: float, full: float, **fields: Any) -> bool | None:
    held_out = Drops(0.3, full, n=2, single_drop=single)
    values: dict[str, Any] = {
        "dkn": (0, 1),
        "controls": {"paraphrases": held_out},
        "n_paraphrases_known": 2,
    }
    return Degeneracy(**(values | fields)).holds


@pytest.mark.parametrize(
    ("single", "full", "expected"),
    [
        (0.35, 0.5, True),
        (-0.2, 1.0, True),
        (0.36, 0.9, False),
        (0.1, 0.49, False),
        (math.nan, 0.9, None),
        (0.1, math.nan, None),
    ],
)
def test_a_family_holds_by_what_one_and_all_cost(
    single: float, full: float, expected: bool | None
) -> None:
    assert of(single, full) is expected


def test_no_family_does_not_hold() -> None:
    assert of(0.1, 0.9, dkn=()) is False
    # Also where there are no candidates, of which nothing is measured.
    assert of(0.1, 0.9, dkn=(), controls={}) is False


def test_without_paraphrases_that_the_model_knows_nothing_is_said() -> None:
    assert of(0.1, 0.9, n_paraphrases_known=0) is None
    assert of(0.1, 0.9, n_paraphrases_known=None, controls={}) is None
    assert of(0.1, 0.9, n_paraphrases_known=None, dkn=()) is False


@pytest.mark.parametrize("precision", [0.0, 0.05])
def test_the_single_drop_is_the_mean_over_members(precision: float) -> None:
    p = np.array([0.5, 0.4, 0.3, 0.2, 0.45, 0.1, 0.2, 0.05])
    found = subsets_of(3, precision).drops(Lattice(3, np.arange(8), p))
    assert found.single_drop == pytest.approx((0.2 + 0.4 + 0.1) / 3)


def test_a_single_drop_needs_every_member_alone() -> None:
    assert math.isnan(drops(Lattice(2, np.array([0, 1, 3]), np.array([0.5, 0.4, 0.1]))).single_drop)
