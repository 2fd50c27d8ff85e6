"""Figures of scorers over statements that they have scored, for facts as the units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dkn_engine.analysis.experiments.fact_check import detection
from dkn_engine.analysis.experiments.fact_check.detection import Bools, Reals
from dkn_engine.analysis.experiments.fact_check.statements import Statement
from dkn_engine.statistics.table import Comparison, Conditions, Row, Sample

# Facts that a scorer can score, and those of them that D scores too.
OWN, SAME = "all", "with DKN"
PROB, ASK = "prob", "ask "
COMPARED = ("Rnd", "N", PROB)


@dataclass(frozen=True, eq=False)
class Figures:
    """Parts of a table."""

    samples: list[Sample]
    rows: list[Row]
    comparisons: list[Comparison]


class Scored:
    """Measures scorers, ``[draws, n_statements]`` each, on the statements of one form.

    Args:
        statements: a true and a false one in turn.
        folds: of the facts, by their ids; a fold's threshold comes from the others.
        seed, n_resamples: of the bootstrap over facts.
    """

    def __init__(
        self,
        statements: Sequence[Statement],
        folds: Mapping[str, int],
        seed: int,
        n_resamples: int,
    ) -> None:
        self.seed, self.n_resamples = seed, n_resamples
        self._resamples: dict[int, Reals] = {}  # by the number of facts
        self.facts = list(dict.fromkeys(s.fact_id for s in statements))
        number = {fact_id: i for i, fact_id in enumerate(self.facts)}
        self.form = np.array([s.form for s in statements])
        self.fact = np.array([number[s.fact_id] for s in statements])
        self.label = np.array([s.is_true for s in statements])
        self.fold = np.array([folds[s.fact_id] for s in statements])

    def measure(self, setting: str, form: str, scorers: Mapping[str, Reals]) -> Figures:
        under = (("setting", setting), ("query", form))
        found = Figures([], [], [])
        usable = {name: self._usable(scores, form) for name, scores in scorers.items()}
        for facts in (OWN, SAME):
            conditions = (*under, ("facts", facts))
            for name, scores in scorers.items():
                where = usable[name] & usable["D"] if facts == SAME else usable[name]
                if where.any():
                    found.rows.extend(self._rows(name, scores, where, conditions))
                if facts == OWN:
                    found.samples.extend(self._ranked(name, scores, where, conditions))
        for against in COMPARED:
            where = usable["D"] & usable[against]
            if where.any():
                first, second = (self._auroc(scorers[n], where) for n in ("D", against))
                gap = detection.gap(first, second, self._n(where))
                e = gap.estimate
                found.comparisons.append(
                    Comparison(
                        "auroc",
                        "D",
                        against,
                        (*under, ("facts", SAME)),
                        e.mean,
                        e.ci_low,
                        e.ci_high,
                        e.n,
                        gap.p_value,
                    )
                )
        return found

    def _usable(self, scores: Reals, form: str) -> Bools:
        """Statements of the form whose facts have a score for each of them."""
        missing = ~np.isfinite(scores).all(0)
        bad = np.isin(self.fact, self.fact[missing & (self.form == form)])
        found: Bools = (self.form == form) & ~bad
        return found

    def _n(self, where: Bools) -> int:
        return len(np.unique(self.fact[where]))

    def _weights(self, where: Bools) -> Reals:
        """Resamples of the facts, as weights of their statements."""
        each, fact = np.unique(self.fact[where], return_inverse=True)
        n = len(each)
        if n not in self._resamples:
            self._resamples[n] = detection.resamples(n, self.seed, self.n_resamples)
        return self._resamples[n][:, fact]

    def _auroc(self, scores: Reals, where: Bools) -> Reals:
        weights, label = self._weights(where), self.label[where]
        draws = [detection.auroc(s, label, weights) for s in scores[:, where]]
        found: Reals = np.mean(draws, axis=0)
        return found

    def _rows(
        self, name: str, scores: Reals, where: Bools, conditions: Conditions
    ) -> Iterator[Row]:
        n = self._n(where)
        area = detection.summarise(self._auroc(scores, where), n)
        yield Row.of("auroc", name, conditions, area)
        yield from self._called(name, scores, where, conditions, "fitted", n)
        if name.startswith(ASK):
            yield from self._called(name, scores, where, conditions, "none", n)

    def _called(
        self,
        name: str,
        scores: Reals,
        where: Bools,
        conditions: Conditions,
        threshold: str,
        n: int,
    ) -> Iterator[Row]:
        weights, label = self._weights(where), self.label[where]
        draws = []
        for s in scores[:, where]:
            limit = np.zeros(len(s))
            if threshold == "fitted":
                limit = detection.cross_fitted(s, label, self.fold[where])
            draws.append(detection.precision_recall_f1(s > limit, label, weights))
        for figure in draws[0]:
            values = np.mean([d[figure] for d in draws], axis=0)
            under = (*conditions, ("threshold", threshold))
            yield Row.of(figure, name, under, detection.summarise(values, n))

    def _ranked(
        self, name: str, scores: Reals, where: Bools, conditions: Conditions
    ) -> Iterator[Sample]:
        # Statements come fact by fact, so the two lists are of the same facts.
        true, false = np.flatnonzero(where & self.label), np.flatnonzero(where & ~self.label)
        right = (np.sign(scores[:, true] - scores[:, false]) + 1).mean(0) / 2
        for fact, value in zip(self.fact[true], right, strict=True):
            yield Sample(self.facts[fact], name, "ranked_right", float(value), conditions)
