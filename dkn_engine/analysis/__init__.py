"""Analyses: what follows from degenerate knowledge neurons, and how well they are found."""

from dkn_engine.analysis.experiments.clusterers.experiment import (
    ClustererComparison,
    Difference,
    Measurement,
    MethodSummary,
    compare_clusterers,
    compare_measurements,
    require_comparable,
    without_controls,
)
from dkn_engine.analysis.experiments.complexity.experiment import complexity
from dkn_engine.analysis.experiments.complexity.model_sizes import complexity_of_models, model_size
from dkn_engine.analysis.experiments.evolvability.experiment import evolvability
from dkn_engine.analysis.experiments.fact_check.experiment import fact_check
from dkn_engine.analysis.experiments.robustness.experiment import robustness
from dkn_engine.analysis.experiments.sharing.experiment import sharing
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
