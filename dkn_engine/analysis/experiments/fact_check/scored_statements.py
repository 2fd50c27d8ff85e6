"""Figures of scorers over statements that they have scored, for facts as the units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from dkn_engine.analysis.experiments.fact_check import detection
from dkn_engine.analysis.experiments.fact_check.detection import Bools, Reals
from dkn_engine.analysis.experiments.fact_check.statements import Statement
from dkn_engine.statistics.jackknife import (
    LeftOut,
    bounded_estimate,
    difference_estimate,
    leave_one_out,
)
from dkn_engine.statistics.table import Comparison, Conditions, Row, Sample

# Facts that a scorer can score, and those of them that D scores too.
OWN, SAME = "all", "with DKN"
PROB, ASK = "prob", "ask "
COMPARED = ("Rnd", "N", PROB)


class Scored:
    """Measures scorers, ``[draws, n_statements]`` each, on the statements of one form.

    Args:
        statements: a true and a false one in turn.
        folds: of the facts, by their ids; a fold's threshold comes from the others.
        seed: of the tests' flips of signs.
    """

    def __init__(
        self,
        statements: Sequence[Statement],
        folds: Mapping[str, int],
        seed: int,
    ) -> None:
        self.seed = seed
        self.facts = list(dict.fromkeys(s.fact_id for s in statements))
        number = {fact_id: i for i, fact_id in enumerate(self.facts)}
        self.form = np.array([s.form for s in statements])
        self.fact = np.array([number[s.fact_id] for s in statements])
        self.label = np.array([s.is_true for s in statements])
        self.fold = np.array([folds[s.fact_id] for s in statements])

    def measure(
        self, setting: str, form: str, scorers: Mapping[str, Reals]
    ) -> Iterator[Sample | Row | Comparison]:
        """The parts of the table about one setting and form of statements."""
        under = (("setting", setting), ("query", form))
        usable = {name: self._usable(scores, form) for name, scores in scorers.items()}
        for facts in (OWN, SAME):
            conditions = (*under, ("facts", facts))
            for name, scores in scorers.items():
                where = usable[name] & usable["D"] if facts == SAME else usable[name]
                if where.any():
                    yield from self._rows(name, scores, where, conditions)
                if facts == OWN:
                    yield from self._ranked(name, scores, where, conditions)
        for against in COMPARED:
            where = usable["D"] & usable[against]
            if where.any():
                first, second = (self._auroc(scorers[n], where) for n in ("D", against))
                yield Comparison.of(
                    "auroc",
                    ("D", against),
                    (*under, ("facts", SAME)),
                    *difference_estimate(first, second, seed=self.seed),
                )

    def _usable(self, scores: Reals, form: str) -> Bools:
        """Statements of the form whose facts have a score for each of them."""
        missing = ~np.isfinite(scores).all(0)
        bad = np.isin(self.fact, self.fact[missing & (self.form == form)])
        found: Bools = (self.form == form) & ~bad
        return found

    def _left_out(self, draws: Sequence[Callable[[Reals], Reals]], where: Bools) -> LeftOut:
        """The mean over draws of a statistic, of all facts and without each of them."""
        units = np.unique(self.fact[where], return_inverse=True)[1]
        return leave_one_out(lambda w: np.mean([draw(w) for draw in draws], axis=0), units)

    def _auroc(self, scores: Reals, where: Bools) -> LeftOut:
        label = self.label[where]
        return self._left_out([partial(detection.auroc, s, label) for s in scores[:, where]], where)

    def _rows(
        self, name: str, scores: Reals, where: Bools, conditions: Conditions
    ) -> Iterator[Row]:
        yield Row.of("auroc", name, conditions, bounded_estimate(self._auroc(scores, where)))
        for threshold in ("fitted", "none") if name.startswith(ASK) else ("fitted",):
            under = (*conditions, ("threshold", threshold))
            yield from self._called(name, scores[:, where], where, under)

    def _called(
        self, name: str, scores: Reals, where: Bools, conditions: Conditions
    ) -> Iterator[Row]:
        """What is called true and is; thresholds stay when a fact is left out."""
        label, fold = self.label[where], self.fold[where]
        fitted = dict(conditions)["threshold"] == "fitted"
        limits = [detection.cross_fitted(s, label, fold) if fitted else 0 * s for s in scores]
        calls = scores > np.array(limits)
        for figure in ("precision", "recall", "f1"):
            values = self._left_out([partial(_figure, figure, c, label) for c in calls], where)
            called = np.unique(self.fact[where][calls.any(0)])
            size = len(called) if figure == "precision" else None
            yield Row.of(figure, name, conditions, bounded_estimate(values, size=size))

    def _ranked(
        self, name: str, scores: Reals, where: Bools, conditions: Conditions
    ) -> Iterator[Sample]:
        # Statements come fact by fact, so the two lists are of the same facts.
        true, false = np.flatnonzero(where & self.label), np.flatnonzero(where & ~self.label)
        right = (np.sign(scores[:, true] - scores[:, false]) + 1).mean(0) / 2
        for fact, value in zip(self.fact[true], right, strict=True):
            yield Sample(self.facts[fact], name, "ranked_right", float(value), conditions)


def _figure(figure: str, called: Bools, labels: Bools, weights: Reals) -> Reals:
    return detection.precision_recall_f1(called, labels, weights)[figure]
