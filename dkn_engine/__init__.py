"""Degenerate knowledge neurons of language models: attribution, topology, degeneracy.

Names are imported when they are first used, so that ``import dkn_engine`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dkn_engine import analysis as analysis
    from dkn_engine import compat as compat
    from dkn_engine import interchange as interchange
    from dkn_engine import plot as plot
    from dkn_engine import topology as topology
    from dkn_engine.attribution import attribute as attribute
    from dkn_engine.attribution import iter_attribute as iter_attribute
    from dkn_engine.config import AttributionConfig as AttributionConfig
    from dkn_engine.config import Config as Config
    from dkn_engine.config import FactsConfig as FactsConfig
    from dkn_engine.config import FilterConfig as FilterConfig
    from dkn_engine.config import SelectionConfig as SelectionConfig
    from dkn_engine.config import TopologyConfig as TopologyConfig
    from dkn_engine.degeneracy import Faithfulness as Faithfulness
    from dkn_engine.degeneracy import Interactions as Interactions
    from dkn_engine.degeneracy import answer_probability as answer_probability
    from dkn_engine.degeneracy import faithfulness as faithfulness
    from dkn_engine.degeneracy import interactions as interactions
    from dkn_engine.degeneracy import intervene as intervene
    from dkn_engine.errors import BackendError as BackendError
    from dkn_engine.errors import DknError as DknError
    from dkn_engine.errors import FactError as FactError
    from dkn_engine.errors import RunDirectoryError as RunDirectoryError
    from dkn_engine.errors import UnsupportedModelError as UnsupportedModelError
    from dkn_engine.errors import UserError as UserError
    from dkn_engine.errors import WorkerError as WorkerError
    from dkn_engine.facts import iter_facts as iter_facts
    from dkn_engine.facts import load_facts as load_facts
    from dkn_engine.models.load import load_model as load_model
    from dkn_engine.results import Results as Results
    from dkn_engine.results import RunComparison as RunComparison
    from dkn_engine.results import compare as compare
    from dkn_engine.run.build_info import build_info as build_info
    from dkn_engine.run.examination import examine as examine
    from dkn_engine.run.pipeline import find_dkns as find_dkns
    from dkn_engine.run.pipeline import iter_dkns as iter_dkns
    from dkn_engine.run.question import find as find
    from dkn_engine.run.workers.job import ModelSpec as ModelSpec
    from dkn_engine.run.workers.processes import iter_dkns_in_workers as iter_dkns_in_workers
    from dkn_engine.run.workers.ray import iter_dkns_on_ray as iter_dkns_on_ray
    from dkn_engine.store import load_results as load_results
    from dkn_engine.store import merge as merge
    from dkn_engine.store import read_results as read_results
    from dkn_engine.store.plan import Shard as Shard
    from dkn_engine.types import Attribution as Attribution
    from dkn_engine.types import Component as Component
    from dkn_engine.types import Drops as Drops
    from dkn_engine.types import Fact as Fact
    from dkn_engine.types import FactAttribution as FactAttribution
    from dkn_engine.types import FactResult as FactResult

    __version__: str

_SUBPACKAGES = ("analysis", "compat", "interchange", "plot", "topology")
_NAMES = {
    "run.pipeline": ("find_dkns", "iter_dkns"),
    "run.question": ("find",),
    "run.examination": ("examine",),
    "run.workers.processes": ("iter_dkns_in_workers",),
    "run.workers.ray": ("iter_dkns_on_ray",),
    "run.workers.job": ("ModelSpec",),
    "results": ("Results", "RunComparison", "compare"),
    "store.plan": ("Shard",),
    "store": ("merge", "load_results", "read_results"),
    "models.load": ("load_model",),
    "facts": ("load_facts", "iter_facts"),
    "attribution": ("attribute", "iter_attribute"),
    "degeneracy": (
        *("answer_probability", "intervene", "interactions", "Interactions"),
        *("faithfulness", "Faithfulness"),
    ),
    "run.build_info": ("build_info",),
    "config": (
        *("Config", "FactsConfig", "AttributionConfig"),
        *("SelectionConfig", "TopologyConfig", "FilterConfig"),
    ),
    "types": ("Fact", "Attribution", "FactAttribution", "Component", "Drops", "FactResult"),
    "errors": (
        *("DknError", "UserError", "FactError", "UnsupportedModelError"),
        *("BackendError", "RunDirectoryError", "WorkerError"),
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_SUBPACKAGES, *_HOME]  # a list of the names above


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"dkn_engine.{name}")
    if name == "__version__":
        return importlib.import_module("dkn_engine.run.build_info").version()
    if name in _HOME:
        return getattr(importlib.import_module(f"dkn_engine.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dkn_engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
