"""Analyses: what follows from degenerate knowledge neurons, and how well they are found."""

from dkn_engine.analysis.clusterers import (
    ClustererComparison,
    Difference,
    Measurement,
    MethodSummary,
    compare_clusterers,
    compare_measurements,
    require_comparable,
    without_controls,
)
from dkn_engine.analysis.evolvability import evolvability
from dkn_engine.analysis.robustness import robustness

__all__ = [
    "ClustererComparison",
    "Difference",
    "Measurement",
    "MethodSummary",
    "compare_clusterers",
    "compare_measurements",
    "evolvability",
    "require_comparable",
    "robustness",
    "without_controls",
]
