"""The headline figures of a list of results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import CONTROL_EXACT
from dkn_engine.files.plain_json import plain
from dkn_engine.report.columns import CONTROL_WORDS, DROPS, STATUSES, Columns
from dkn_engine.showing import shown
from dkn_engine.statistics.false_discovery import BeyondChance
from dkn_engine.statistics.intervals import Estimate, mean_estimate, wilson_share
from dkn_engine.statistics.table import Comparison, compare, corrected
from dkn_engine.types import CONTROLS, FactResult

Column = NDArray[np.float64]
Rows = NDArray[np.bool_]
_SEED = 0  # of the flips of signs


@dataclass(frozen=True, slots=True)
class DropSummary:
    """Drops, redundancy and excess over facts (definitions: ``types.Drops``).

    The ``n`` of ``redundancy`` is smaller than that of ``excess`` where facts have none.
    """

    partial_drop: Estimate
    full_drop: Estimate
    redundancy: Estimate
    excess: Estimate


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
        n_not_converged: facts that came not within tolerance: ``max_points`` or rounding stopped
            some layer.
        by_path: number of facts attributed by each path (``sweep``, ``blocks``,
            ``general``).
        n_sampled_controls: facts with candidates whose family is so large that its controls are
            measured on a sample of its subsets.
        n_paraphrases, n_paraphrases_not_known: held-out paraphrases that are part of the control,
            and those that the model does not answer, which are not.
        n_reference, n_reference_packaged: facts that unrelated facts and mean activations are taken
            from, and how many of them are packaged English ones, not of the run; None if no result
            says so.
        n_held_out: known facts with a held-out paraphrase that the model knows, and
            ``n_held_out_dkn``: those of them that have a DKN.
        n_holding: facts whose DKN holds on those paraphrases (``Degeneracy.holds``).
        holding: their share among ``n_held_out`` (Wilson interval).
        nulls: what the nulls of the results draw (``Degeneracy.null``).
        chance: DKNs beyond those that the null finds, over known facts that have one; None
            without any.
        comparisons: full drop of the DKNs (of the candidates, for facts without one) minus each
            control's, paired over facts; p-values corrected for their number.
        by_relation: most facts first; facts without a relation under the empty name.
        seconds: wall-clock time of the run, if known.
        n_left_out: entries that the loader left out; they are not among the facts.
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
    n_sampled_controls: int
    n_paraphrases: int
    n_paraphrases_not_known: int
    n_reference: int | None
    n_reference_packaged: int | None
    n_held_out: int
    n_held_out_dkn: int
    n_holding: int
    holding: Estimate
    nulls: tuple[str, ...]
    chance: BeyondChance | None
    comparisons: tuple[Comparison, ...]
    by_relation: tuple[RelationSummary, ...]
    seconds: float | None = None
    n_left_out: int = 0

    @property
    def n_known(self) -> int:
        """Number of facts the model knows: the denominator of the shares."""
        return self.by_status["ok"]

    def _repr_html_(self) -> str:
        return str(shown("summary_html", self))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not finite is None."""
        data: dict[str, Any] = plain(self)
        return data


def summarize(results: Iterable[FactResult], *, seconds: float | None = None) -> Summary:
    """The headline figures of results, with 95 % intervals.

    Args:
        results: of any status, also none at all; read once and not held.
        seconds: wall-clock time to be reported with them.
    """
    held = Columns()
    for result in results:
        held.add(result)
    c = held.freeze()
    known = c["status"] == STATUSES.index("ok")
    degenerate = known & (c["is_degenerate"] == 1)
    with_candidates = known & (c["n_components"] >= 1)
    n_known, n_degenerate = _count(known), _count(degenerate)
    n_several = _count(known & (c["n_components"] >= 2))
    return Summary(
        n_facts=len(known),
        by_status={status: _count(c["status"] == i) for i, status in enumerate(STATUSES)},
        n_degenerate=n_degenerate,
        degenerate=wilson_share(n_degenerate, n_known),
        n_with_candidates=n_several,
        with_candidates=wilson_share(n_several, n_known),
        neurons=mean_estimate(c["n_neurons"][known]),
        components=mean_estimate(c["n_components"][known]),
        dkn=_family(c, degenerate, "own", CONTROLS),
        no_dkn=_family(c, with_candidates & ~degenerate, "own", CONTROLS),
        candidates=_family(c, with_candidates, "candidates", ()),
        **_attribution_quality(c, held.paths),
        n_sampled_controls=_count(with_candidates & (c["family_size"] > CONTROL_EXACT)),
        n_paraphrases=int(c["n_paraphrases"].sum()),
        n_paraphrases_not_known=int(np.nansum(c["n_paraphrases_not_known"])),
        n_reference=_largest(c["n_reference"]),
        n_reference_packaged=_largest(c["n_reference_packaged"]),
        **_holding(c, known, degenerate),
        nulls=tuple(held.nulls),
        chance=_chance(c, known, degenerate),
        comparisons=_comparisons(c, degenerate, with_candidates & ~degenerate),
        by_relation=_by_relation(c, held.relations, known, degenerate),
        seconds=seconds,
    )


def _count(rows: Rows) -> int:
    return int(rows.sum())


def _largest(values: Column) -> int | None:
    finite = values[np.isfinite(values)]
    return int(finite.max()) if finite.size else None


def _holding(c: Mapping[str, Column], known: Rows, degenerate: Rows) -> dict[str, Any]:
    held_out = known & np.isfinite(c["holds"])
    n, n_holding = _count(held_out), _count(held_out & (c["holds"] == 1))
    return {
        "n_held_out": n,
        "n_held_out_dkn": _count(held_out & degenerate),
        "n_holding": n_holding,
        "holding": wilson_share(n_holding, n),
    }


def _chance(c: Mapping[str, Column], known: Rows, degenerate: Rows) -> BeyondChance | None:
    rows = known & (c["null_draws"] > 0)
    if not rows.any():
        return None
    drawn = (c[name][rows] for name in ("null_draws", "null_passing", "null_p"))
    return BeyondChance.of(degenerate[rows], *drawn)


def _family(
    c: Mapping[str, Column], rows: Rows, group: str, controls: Sequence[str]
) -> FamilySummary:
    return FamilySummary(
        n=_count(rows),
        drops=_drops(c, rows, group),
        controls={
            name: _drops(c, rows, name)
            for name in controls
            if (c[f"{name}.there"][rows] == 1).any()
        },
    )


def _drops(c: Mapping[str, Column], rows: Rows, group: str) -> DropSummary:
    there = rows & (c[f"{group}.there"] == 1)
    estimates = (mean_estimate(c[f"{group}.{name}"][there]) for name in DROPS)
    return DropSummary(*estimates)


def _comparisons(c: Mapping[str, Column], degenerate: Rows, no_dkn: Rows) -> tuple[Comparison, ...]:
    comparisons = []
    for family, rows in (("DKN families", degenerate), ("candidates without a DKN", no_dkn)):
        for name, words in CONTROL_WORDS.items():
            there = np.flatnonzero(rows & (c[f"{name}.there"] == 1))
            own, control = (
                {str(i): c[f"{group}.full_drop"][i] for i in there} for group in ("own", name)
            )
            if there.size:
                comparisons.append(compare("full drop", (), (family, own), (words, control), _SEED))
    return corrected(comparisons)


def _attribution_quality(c: Mapping[str, Column], paths: Mapping[str, int]) -> dict[str, Any]:
    rows = c["attributed"] == 1
    n_deltas, n_layers = c["n_deltas"][rows].sum(), c["n_layers"][rows].sum()
    largest = c["delta_max"][rows & (c["n_deltas"] > 0)]
    by_path = {path: _count(rows & (c["path"] == i)) for path, i in paths.items() if path}
    return {
        "mean_abs_convergence_delta": float(c["delta_sum"][rows].sum() / n_deltas)
        if n_deltas
        else math.nan,
        "max_abs_convergence_delta": float(largest.max()) if largest.size else math.nan,
        "points_per_layer": float(c["points_sum"][rows].sum() / n_layers) if n_layers else math.nan,
        "n_not_converged": _count(rows & (c["converged"] == 0)),
        "by_path": {path: n for path, n in sorted(by_path.items()) if n},
    }


def _by_relation(
    c: Mapping[str, Column], relations: Mapping[str, int], known: Rows, degenerate: Rows
) -> tuple[RelationSummary, ...]:
    rows = []
    for name, i in relations.items():
        mine = c["relation"] == i
        mine_known, mine_degenerate = mine & known, mine & degenerate
        rows.append(
            RelationSummary(
                relation=name,
                n_facts=_count(mine),
                n_known=_count(mine_known),
                n_degenerate=_count(mine_degenerate),
                neurons=_mean(c["n_neurons"][mine_known]),
                components=_mean(c["n_components"][mine_known]),
                partial_drop=_mean(c["own.partial_drop"][mine_degenerate]),
                full_drop=_mean(c["own.full_drop"][mine_degenerate]),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.n_facts, row.relation)))


def _mean(values: Column) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def drop_rows(summary: Summary) -> Iterator[tuple[str, bool, int, DropSummary]]:
    """Rows of the table of drops, each family and below it its controls.

    Label, whether it is a control, number of facts, and drops.
    """
    groups = {
        "DKN families": summary.dkn,
        "Candidates, no DKN": summary.no_dkn,
        "All candidates": summary.candidates,
    }
    for label, group in groups.items():
        if group.n:
            yield label, False, group.n, group.drops
        for name, control in group.controls.items():
            yield CONTROL_WORDS[name], True, control.full_drop.n, control
