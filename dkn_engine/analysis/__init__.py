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
from dkn_engine.analysis.complexity import complexity
from dkn_engine.analysis.evolvability import evolvability
from dkn_engine.analysis.fact_check import fact_check
from dkn_engine.analysis.model_sizes import complexity_of_models, model_size
from dkn_engine.analysis.robustness import robustness
from dkn_engine.analysis.sharing import sharing
from dkn_engine.statistics.table import Comparison, Row, Sample, Table

__all__ = [
    "ClustererComparison",
    "Comparison",
    "Difference",
    "Measurement",
    "MethodSummary",
    "Row",
    "Sample",
    "Table",
    "compare_clusterers",
    "compare_measurements",
    "complexity",
    "complexity_of_models",
    "evolvability",
    "fact_check",
    "model_size",
    "require_comparable",
    "robustness",
    "sharing",
    "without_controls",
]
