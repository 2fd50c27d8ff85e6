"""What every analysis returns: figures with intervals, compared groups, and the values behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dkn_engine.showing import shown
from dkn_engine.showing.tables import data_frame
from dkn_engine.statistics.intervals import MEDIAN, Estimate, mean_estimate, wilson_share
from dkn_engine.statistics.paired_tests import ALPHA, holm, paired_p_value

if TYPE_CHECKING:
    import pandas as pd

Conditions = tuple[tuple[str, str], ...]
# D: neurons of the DKN; N: all knowledge neurons; Rnd: random ones, as many as D in each layer.
CONTROLS = frozenset({"Rnd", "none"})
COMPARED = (("D", "Rnd"), ("D", "N"))
# Figures that are shown by their median: a few ratios of small numbers can dominate a mean.
MEDIANS = frozenset({"redundancy"})
TREND = "rho with parameters"  # The group of rank correlations, which no median replaces.
TOO_FEW = "too few to say"  # Verdict of a comparison of fewer pairs than a test needs.


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured value.

    Attributes:
        unit: what means are taken over and pairs are formed by, most often a fact's id. One value
            a unit, group, figure and conditions; the mean over draws of a random group is one.
        group: ``D``, ``N``, ``Rnd``, ``none`` or a name of the analysis's own.
        figure: what was measured.
        value: NaN where it is not defined.
        conditions: names and values of what it was measured under.
    """

    unit: str
    group: str
    figure: str
    value: float
    conditions: Conditions = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of one group under some conditions: mean over units with its 95 % interval.

    Attributes:
        figure, group, conditions: of what.
        mean, ci_low, ci_high, n, median, reason: see :class:`Estimate`.
        control: whether the group is one that a finding is held against.
    """

    figure: str
    group: str
    conditions: Conditions
    mean: float
    ci_low: float
    ci_high: float
    n: int
    median: float
    control: bool
    reason: str = ""

    @property
    def shown(self) -> Estimate:
        """What tables and figures show: the mean, or the median where a mean would mislead."""
        if self.figure in MEDIANS and self.group != TREND:
            return Estimate.alone(self.median, self.n, MEDIAN, self.median)
        return Estimate(self.mean, self.ci_low, self.ci_high, self.n, self.median, self.reason)

    @classmethod
    def of(
        cls,
        figure: str,
        group: str,
        conditions: Conditions,
        estimate: Estimate,
        *,
        control: bool | None = None,
    ) -> Row:
        """A row of an estimate; ``control`` None: whether the group is in :data:`CONTROLS`."""
        is_control = group in CONTROLS if control is None else control
        return cls(figure, group, conditions, control=is_control, **dataclasses.asdict(estimate))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One group minus another, paired over the units that have both.

    Attributes:
        figure, conditions, group, against: of what.
        mean, ci_low, ci_high, reason: of the difference over units, see :class:`Estimate`.
        n: pairs.
        p_value: two-sided, of a sign-flip permutation test; NaN with fewer than six pairs.
        p_corrected: Holm's correction over all comparisons of the table.
    """

    figure: str
    group: str
    against: str
    conditions: Conditions
    mean: float
    ci_low: float
    ci_high: float
    n: int
    p_value: float
    p_corrected: float = float("nan")
    reason: str = ""

    @classmethod
    def of(
        cls,
        figure: str,
        groups: tuple[str, str],
        conditions: Conditions,
        estimate: Estimate,
        p_value: float,
    ) -> Comparison:
        """A comparison of two groups by the estimate of their difference."""
        e = estimate
        return cls(
            figure, *groups, conditions, e.mean, e.ci_low, e.ci_high, e.n, p_value, reason=e.reason
        )

    @property
    def shown(self) -> Estimate:
        """The mean difference with its interval."""
        return Estimate(self.mean, self.ci_low, self.ci_high, self.n, reason=self.reason)

    @property
    def different(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_corrected < ALPHA

    @property
    def verdict(self) -> str:
        """In words: ``higher``, ``lower``, ``no difference found`` or ``too few to say``."""
        if not np.isfinite(self.p_value):
            return TOO_FEW
        if not self.different:
            return "no difference found"
        return "higher" if self.mean > 0 else "lower"


@dataclass(frozen=True, slots=True)
class Table:
    """The outcome of an analysis.

    Attributes:
        analysis: its name.
        rows, comparisons: see there; comparisons carry corrected p-values.
        samples: the values behind the rows (empty for figures that are not means over units).
        seed: of every draw.
        settings: what it was made with, by name, as plain data.
        notes: what a reader must know, one sentence each.
    """

    analysis: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    samples: tuple[Sample, ...] = ()
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def row(self, figure: str, group: str, **conditions: str) -> Row:
        """The row of a figure and group under exactly these conditions, in any order.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.figure, row.group, dict(row.conditions)) == (figure, group, conditions):
                return row
        raise KeyError(f"no row {figure!r} of {group!r} under {conditions}")

    def comparison(self, figure: str, group: str, against: str, **conditions: str) -> Comparison:
        """The comparison of two groups under exactly these conditions, in any order.

        Raises:
            KeyError: there is none.
        """
        wanted = (figure, group, against, conditions)
        for c in self.comparisons:
            if (c.figure, c.group, c.against, dict(c.conditions)) == wanted:
                return c
        raise KeyError(f"no comparison {figure!r} of {group!r} and {against!r} under {conditions}")

    def to_pandas(self) -> pd.DataFrame:
        """A row each: figure, a column for each condition, group, mean, ci_low, ci_high, n, median.

        Raises:
            UserError: pandas is not installed.
        """
        names = tuple(dict.fromkeys(name for row in self.rows for name, _ in row.conditions))
        rows = [
            (
                *(row.figure, *(dict(row.conditions).get(name, "") for name in names), row.group),
                *(row.mean, row.ci_low, row.ci_high, row.n, row.median),
            )
            for row in self.rows
        ]
        behind = ("group", "mean", "ci_low", "ci_high", "n", "median")
        return data_frame(rows, ("figure", *names, *behind))

    def _repr_html_(self) -> str:
        return str(shown("analysis_html", self))


def tabulate(
    analysis: str,
    samples: Iterable[Sample],
    *,
    seed: int,
    compared: Sequence[tuple[str, str]] = COMPARED,
    tested: Callable[[str, Conditions], bool] = lambda _figure, _conditions: True,
    others: Iterable[Row | Comparison] = (),
    settings: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Table:
    """Means of the samples with intervals, and the compared groups with corrected p-values.

    Rows are in the order in which the samples' figures, conditions and groups first appear. Values
    that are all 0 or 1 are shares and get Wilson's interval, others that of :func:`mean_estimate`.

    Args:
        analysis: name.
        samples: see :class:`Sample`.
        seed: of the flips of signs.
        compared: pairs of groups; a pair is compared wherever both groups were measured.
        tested: of which figures and conditions pairs are compared. Each test makes the correction
            of all the others stronger, so those of interest are best named beforehand.
        others: figures that are not means over units, put behind the rest; the p-values of
            comparisons are corrected together with the rest.
        settings, notes: see :class:`Table`.

    Raises:
        ValueError: a unit has two values of one figure, group and conditions.
    """
    samples, others = tuple(samples), tuple(others)
    cells = _cells(samples)
    rows = [
        Row.of(figure, group, conditions, estimate(values.values()))
        for (figure, conditions), groups in cells.items()
        for group, values in groups.items()
    ]
    pairs = [
        compare(figure, conditions, (a, groups[a]), (b, groups[b]), seed)
        for (figure, conditions), groups in cells.items()
        if tested(figure, conditions)
        for a, b in compared
        if a in groups and b in groups
    ]
    return Table(
        analysis,
        (*rows, *(row for row in others if isinstance(row, Row))),
        corrected([*pairs, *(c for c in others if isinstance(c, Comparison))]),
        samples,
        seed,
        dict(settings or {}),
        tuple(notes),
    )


def estimate(values: Iterable[float]) -> Estimate:
    """A share if all finite values are 0 or 1, else a mean; with its 95 % interval."""
    x = np.fromiter(values, dtype=np.float64)
    finite = x[np.isfinite(x)]
    if len(finite) and np.isin(finite, (0.0, 1.0)).all():
        return wilson_share(int(finite.sum()), len(finite))
    return mean_estimate(finite)


def compare(
    figure: str,
    conditions: Conditions,
    first: tuple[str, Mapping[str, float]],
    second: tuple[str, Mapping[str, float]],
    seed: int,
) -> Comparison:
    """The first group minus the second over the units of both; values are by unit."""
    (group, a), (against, b) = first, second
    both = [unit for unit in a if unit in b]
    difference = np.array([a[unit] - b[unit] for unit in both], dtype=np.float64)
    p = paired_p_value(difference, seed=seed)
    return Comparison.of(figure, (group, against), conditions, mean_estimate(difference), p)


def corrected(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same comparisons with their p-values corrected for their number (Holm)."""
    values = holm([c.p_value for c in comparisons])
    return tuple(
        dataclasses.replace(c, p_corrected=float(p))
        for c, p in zip(comparisons, values, strict=True)
    )


_Groups = dict[str, dict[str, float]]


def _cells(samples: Sequence[Sample]) -> dict[tuple[str, Conditions], _Groups]:
    """Values by unit, of each group, of each figure under its conditions."""
    cells: dict[tuple[str, Conditions], _Groups] = {}
    for s in samples:
        units = cells.setdefault((s.figure, s.conditions), {}).setdefault(s.group, {})
        if s.unit in units:
            where = ", ".join(f"{k}={v}" for k, v in s.conditions)
            raise ValueError(f"{s.figure} of {s.group} ({where}) has two values for {s.unit!r}")
        units[s.unit] = s.value
    return cells
