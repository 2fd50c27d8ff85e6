"""Degenerate knowledge neurons of language models: attribution, topology, degeneracy.

Names are imported when they are first used, so that ``import dkn_engine`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dkn_engine import analysis, compat, interchange, topology
    from dkn_engine.attribution import attribute, iter_attribute
    from dkn_engine.config import (
        AttributionConfig,
        Config,
        FactsConfig,
        FilterConfig,
        SelectionConfig,
        TopologyConfig,
    )
    from dkn_engine.degeneracy import answer_probability, intervene
    from dkn_engine.errors import (
        BackendError,
        DknError,
        FactError,
        RunDirectoryError,
        UnsupportedModelError,
        UserError,
        WorkerError,
    )
    from dkn_engine.facts import iter_facts, load_facts
    from dkn_engine.models.load import load_model
    from dkn_engine.run.build_info import build_info
    from dkn_engine.run.pipeline import find_dkns, iter_dkns
    from dkn_engine.run.workers.job import ModelSpec
    from dkn_engine.run.workers.processes import iter_dkns_in_workers
    from dkn_engine.run.workers.ray import iter_dkns_on_ray
    from dkn_engine.store import merge, read_results
    from dkn_engine.store.load_results import load_results
    from dkn_engine.store.plan import Shard
    from dkn_engine.types import (
        Attribution,
        Component,
        Drops,
        Fact,
        FactAttribution,
        FactResult,
    )

    __version__: str

_HOME = {
    "find_dkns": "run.pipeline",
    "iter_dkns": "run.pipeline",
    "iter_dkns_in_workers": "run.workers.processes",
    "iter_dkns_on_ray": "run.workers.ray",
    "ModelSpec": "run.workers.job",
    "Shard": "store.plan",
    "merge": "store",
    "load_model": "models.load",
    "load_facts": "facts",
    "iter_facts": "facts",
    "attribute": "attribution",
    "iter_attribute": "attribution",
    "answer_probability": "degeneracy",
    "intervene": "degeneracy",
    "load_results": "store.load_results",
    "read_results": "store",
    "build_info": "run.build_info",
    **dict.fromkeys(
        (
            "Config",
            "FactsConfig",
            "AttributionConfig",
            "SelectionConfig",
            "TopologyConfig",
            "FilterConfig",
        ),
        "config",
    ),
    **dict.fromkeys(
        ("Fact", "Attribution", "FactAttribution", "Component", "Drops", "FactResult"), "types"
    ),
    **dict.fromkeys(
        (
            "DknError",
            "UserError",
            "FactError",
            "UnsupportedModelError",
            "BackendError",
            "RunDirectoryError",
            "WorkerError",
        ),
        "errors",
    ),
}

__all__ = [
    "find_dkns",
    "iter_dkns",
    "iter_dkns_in_workers",
    "iter_dkns_on_ray",
    "ModelSpec",
    "Shard",
    "merge",
    "load_model",
    "load_facts",
    "iter_facts",
    "attribute",
    "iter_attribute",
    "answer_probability",
    "intervene",
    "load_results",
    "read_results",
    "build_info",
    "analysis",
    "compat",
    "interchange",
    "topology",
    "Config",
    "FactsConfig",
    "AttributionConfig",
    "SelectionConfig",
    "TopologyConfig",
    "FilterConfig",
    "Fact",
    "Attribution",
    "FactAttribution",
    "Component",
    "Drops",
    "FactResult",
    "DknError",
    "UserError",
    "FactError",
    "UnsupportedModelError",
    "BackendError",
    "RunDirectoryError",
    "WorkerError",
]


def __getattr__(name: str) -> Any:
    if name in {"analysis", "compat", "interchange", "topology"}:
        return importlib.import_module(f"dkn_engine.{name}")
    if name == "__version__":
        return importlib.import_module("dkn_engine.run.build_info").version()
    if name in _HOME:
        return getattr(importlib.import_module(f"dkn_engine.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dkn_engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
