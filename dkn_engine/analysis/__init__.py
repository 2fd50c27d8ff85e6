"""Analyses: what follows from degenerate knowledge neurons, and how well they are found.

Names are imported when they are first used, so that the names of analyses and their settings
(:mod:`dkn_engine.analysis.config`) are cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dkn_engine.analysis.config import ClusterersConfig as ClusterersConfig
    from dkn_engine.analysis.config import ComplexityConfig as ComplexityConfig
    from dkn_engine.analysis.config import EvolvabilityConfig as EvolvabilityConfig
    from dkn_engine.analysis.config import FactCheckConfig as FactCheckConfig
    from dkn_engine.analysis.config import RobustnessConfig as RobustnessConfig
    from dkn_engine.analysis.config import SharingConfig as SharingConfig
    from dkn_engine.analysis.experiments.clusterers.experiment import (
        ClustererComparison as ClustererComparison,
    )
    from dkn_engine.analysis.experiments.clusterers.experiment import Difference as Difference
    from dkn_engine.analysis.experiments.clusterers.experiment import Measurement as Measurement
    from dkn_engine.analysis.experiments.clusterers.experiment import MethodSummary as MethodSummary
    from dkn_engine.analysis.experiments.clusterers.experiment import (
        compare_clusterers as compare_clusterers,
    )
    from dkn_engine.analysis.experiments.clusterers.experiment import (
        compare_measurements as compare_measurements,
    )
    from dkn_engine.analysis.experiments.clusterers.experiment import (
        require_comparable as require_comparable,
    )
    from dkn_engine.analysis.experiments.complexity.experiment import complexity as complexity
    from dkn_engine.analysis.experiments.complexity.model_sizes import (
        complexity_of_models as complexity_of_models,
    )
    from dkn_engine.analysis.experiments.complexity.model_sizes import model_size as model_size
    from dkn_engine.analysis.experiments.evolvability.experiment import evolvability as evolvability
    from dkn_engine.analysis.experiments.fact_check.experiment import fact_check as fact_check
    from dkn_engine.analysis.experiments.robustness.experiment import robustness as robustness
    from dkn_engine.analysis.experiments.sharing.experiment import sharing as sharing
    from dkn_engine.analysis.light_runs import without_controls as without_controls
    from dkn_engine.statistics.table import Comparison as Comparison
    from dkn_engine.statistics.table import Row as Row
    from dkn_engine.statistics.table import Sample as Sample
    from dkn_engine.statistics.table import Table as Table

_NAMES = {
    "analysis.config": (
        *("ClusterersConfig", "ComplexityConfig", "EvolvabilityConfig", "FactCheckConfig"),
        *("RobustnessConfig", "SharingConfig"),
    ),
    "analysis.experiments.clusterers.experiment": (
        *("ClustererComparison", "Difference", "Measurement", "MethodSummary"),
        *("compare_clusterers", "compare_measurements", "require_comparable"),
    ),
    "analysis.experiments.complexity.experiment": ("complexity",),
    "analysis.experiments.complexity.model_sizes": ("complexity_of_models", "model_size"),
    "analysis.experiments.evolvability.experiment": ("evolvability",),
    "analysis.experiments.fact_check.experiment": ("fact_check",),
    "analysis.experiments.robustness.experiment": ("robustness",),
    "analysis.experiments.sharing.experiment": ("sharing",),
    "analysis.light_runs": ("without_controls",),
    "statistics.table": ("Comparison", "Row", "Sample", "Table"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)  # a list of the names above


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"dkn_engine.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dkn_engine.analysis' has no attribute {name!r}")
