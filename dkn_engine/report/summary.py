"""The headline figures of a list of results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from dkn_engine.report.records import plain
from dkn_engine.report.statistics import Estimate, bootstrap_mean, wilson_share
from dkn_engine.store.schema import CONTROLS
from dkn_engine.types import Drops, FactResult, Status


@dataclass(frozen=True, slots=True)
class DropSummary:
    """Partial drop, full drop and redundancy over facts (definitions: ``types.Drops``)."""

    partial_drop: Estimate
    full_drop: Estimate
    redundancy: Estimate


@dataclass(frozen=True, slots=True)
class FamilySummary:
    """A group of facts: what suppressing their family does, and what the controls do.

    Attributes:
        n: number of facts in the group.
        drops: of the family itself.
        controls: of its controls, by name, over the same facts; each control's own ``n`` says
            on how many facts it was measured.
    """

    n: int
    drops: DropSummary
    controls: Mapping[str, DropSummary]


@dataclass(frozen=True, slots=True)
class RelationSummary:
    """One relation's row; means over its known facts, drops over its degenerate ones."""

    relation: str
    n_facts: int
    n_known: int
    n_degenerate: int
    neurons: float
    components: float
    partial_drop: float
    full_drop: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Headline figures of a run. Known facts are those with status ``ok``.

    Attributes:
        n_facts: number of results.
        by_status: number of results of each status.
        n_degenerate: known facts with a degenerate family.
        degenerate: their share among known facts (Wilson interval).
        n_with_candidates: known facts with two or more candidate components, without which
            there is no family.
        with_candidates: their share among known facts (Wilson interval).
        neurons, components: knowledge neurons and candidate components a known fact.
        dkn: facts with a DKN; their controls match the DKN.
        no_dkn: known facts with candidates but no DKN; their controls match all candidates.
        candidates: all candidates of a fact, whether or not it has a DKN; no controls.
        mean_abs_convergence_delta, max_abs_convergence_delta: over facts and layers.
        points_per_layer: mean number of path points paid for, over facts and layers.
        n_not_converged: facts in which some layer stopped at ``max_points``.
        by_path: number of facts attributed by each path (``sweep``, ``general``).
        by_relation: most facts first; facts without a relation under the empty name.
        seconds: wall-clock time of the run, if known.
    """

    n_facts: int
    by_status: Mapping[str, int]
    n_degenerate: int
    degenerate: Estimate
    n_with_candidates: int
    with_candidates: Estimate
    neurons: Estimate
    components: Estimate
    dkn: FamilySummary
    no_dkn: FamilySummary
    candidates: FamilySummary
    mean_abs_convergence_delta: float
    max_abs_convergence_delta: float
    points_per_layer: float
    n_not_converged: int
    by_path: Mapping[str, int]
    by_relation: tuple[RelationSummary, ...]
    seconds: float | None = None

    @property
    def n_known(self) -> int:
        """Number of facts the model knows: the denominator of the shares."""
        return self.by_status["ok"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not finite is None."""
        data: dict[str, Any] = plain(self)
        return data


def summarize(
    results: Iterable[FactResult], *, seed: int = 0, seconds: float | None = None
) -> Summary:
    """The headline figures of results, with 95 % intervals.

    Args:
        results: of any status, also none at all.
        seed: of the bootstrap.
        seconds: wall-clock time to be reported with them.
    """
    results = list(results)
    known = [r for r in results if r.status == "ok"]
    degenerate = [r for r in known if r.is_degenerate]
    with_candidates = [r for r in known if len(r.components) >= 2]
    statuses = Counter(r.status for r in results)
    return Summary(
        n_facts=len(results),
        by_status={status: statuses[status] for status in get_args(Status)},
        n_degenerate=len(degenerate),
        degenerate=wilson_share(len(degenerate), len(known)),
        n_with_candidates=len(with_candidates),
        with_candidates=wilson_share(len(with_candidates), len(known)),
        neurons=bootstrap_mean((len(r.neurons) for r in known), seed=seed),
        components=bootstrap_mean((len(r.components) for r in known), seed=seed),
        dkn=_family(degenerate, _own, seed, CONTROLS),
        no_dkn=_family(
            [r for r in known if r.components and not r.is_degenerate], _own, seed, CONTROLS
        ),
        candidates=_family([r for r in known if r.components], lambda r: r.candidates, seed, ()),
        **_attribution_quality(results),
        by_relation=_by_relation(results),
        seconds=seconds,
    )


def _own(result: FactResult) -> Drops:
    """The figures of a fact's family: its DKN, or all candidates if it has none."""
    return Drops(result.partial_drop, result.full_drop, result.redundancy)


def _family(
    results: Sequence[FactResult],
    drops_of: Callable[[FactResult], Drops | None],
    seed: int,
    controls: Sequence[str],
) -> FamilySummary:
    measured = {name: [r.controls.get(name) for r in results] for name in controls}
    return FamilySummary(
        n=len(results),
        drops=_drops([drops_of(r) for r in results], seed),
        controls={
            name: _drops(drops, seed)
            for name, drops in measured.items()
            if any(d is not None for d in drops)
        },
    )


def _drops(drops: Sequence[Drops | None], seed: int) -> DropSummary:
    there = [d for d in drops if d is not None]
    return DropSummary(
        partial_drop=bootstrap_mean((d.partial_drop for d in there), seed=seed),
        full_drop=bootstrap_mean((d.full_drop for d in there), seed=seed),
        redundancy=bootstrap_mean((d.redundancy for d in there), seed=seed),
    )


def _attribution_quality(results: Sequence[FactResult]) -> dict[str, Any]:
    attributed = [r for r in results if len(r.n_points)]
    deltas = [np.abs(r.convergence_delta[np.isfinite(r.convergence_delta)]) for r in attributed]
    delta = np.concatenate([*deltas, np.empty(0)])
    points = np.concatenate([*(r.n_points for r in attributed), np.empty(0)])
    return {
        "mean_abs_convergence_delta": float(delta.mean()) if delta.size else math.nan,
        "max_abs_convergence_delta": float(delta.max()) if delta.size else math.nan,
        "points_per_layer": float(points.mean()) if points.size else math.nan,
        "n_not_converged": sum(not r.converged for r in attributed),
        "by_path": dict(sorted(Counter(r.path for r in attributed if r.path).items())),
    }


def _by_relation(results: Sequence[FactResult]) -> tuple[RelationSummary, ...]:
    groups: dict[str, list[FactResult]] = {}
    for result in results:
        groups.setdefault(result.relation or "", []).append(result)
    rows = [_relation(name, group) for name, group in groups.items()]
    return tuple(sorted(rows, key=lambda row: (-row.n_facts, row.relation)))


def _relation(name: str, results: Sequence[FactResult]) -> RelationSummary:
    known = [r for r in results if r.status == "ok"]
    degenerate = [r for r in known if r.is_degenerate]
    return RelationSummary(
        relation=name,
        n_facts=len(results),
        n_known=len(known),
        n_degenerate=len(degenerate),
        neurons=_mean([len(r.neurons) for r in known]),
        components=_mean([len(r.components) for r in known]),
        partial_drop=_mean([r.partial_drop for r in degenerate]),
        full_drop=_mean([r.full_drop for r in degenerate]),
    )


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan
