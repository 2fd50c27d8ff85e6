"""The result files of the code published with arXiv 2402.13731: neurons and clusters by fact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError
from dkn_engine.files.local_paths import local_path
from dkn_engine.interchange.json_files import read_object, write_text
from dkn_engine.interchange.neuron_records import (
    FactNeurons,
    fact_neurons,
    parse_pairs,
    same_set,
    short,
)
from dkn_engine.types import FactResult

_CANDIDATES, _KEPT = "dkn_cluster_1", "dkn_cluster_2"


def write_released(path: str | Path, facts: Iterable[FactResult | FactNeurons]) -> None:
    """Write neurons, candidate clusters and the clusters of the DKN of every fact.

    Args:
        path: ``.json`` for the form of the GPT-2 runs (one object, a fact's id to ``neurons``,
            ``dkn_cluster_1``, ``dkn_cluster_2``) or ``.jsonl`` for that of the LLaMA runs (an
            object of one fact a line, ``kn`` in the place of ``neurons``); replaced if there.
        facts: with unique ids. ``dkn_cluster_1`` are a result's components, ``dkn_cluster_2`` those
            of its DKN; each cluster is a list of ``[layer, index]`` pairs.

    Raises:
        UserError: two facts have the same id, the file's name has another ending, or the folder is
            not there.
        OSError: the disk refuses.
    """
    path = local_path(path)
    if path.suffix not in {".json", ".jsonl"}:
        raise UserError(f"path must end in .json (GPT-2 form) or .jsonl (LLaMA form); got {path}")
    lines = path.suffix == ".jsonl"
    table = {f.fact_id: _entry(f, "kn" if lines else "neurons") for f in fact_neurons(facts)}
    if lines:
        text = "".join(json.dumps({key: entry}) + "\n" for key, entry in table.items())
    else:
        text = json.dumps(table) + "\n"
    write_text(path, text)


def _entry(fact: FactNeurons, key: str) -> dict[str, Any]:
    return {
        key: fact.neurons.tolist(),
        _CANDIDATES: [c.tolist() for c in fact.clusters],
        _KEPT: [fact.clusters[i].tolist() for i in fact.dkn],
    }


def read_released(path: str | Path, clusters: str = _KEPT) -> list[FactNeurons]:
    """Neurons and clusters of such a file, in its order.

    The LLaMA runs kept no ``dkn_cluster_1``; there the kept clusters are all that is known.

    Args:
        path: ``.json`` or ``.jsonl``.
        clusters: the key of the kept clusters; the LLaMA runs also have those of other clusterers,
            ``dkn_cluster_2_hierarchical``, ``_dbscan``, ``_kmeans`` and ``_src``.

    Raises:
        UserError: the file cannot be read or has another form; names file and fact.
    """
    path = local_path(path)
    return [
        _parse(fact_id, entry, clusters, f"{path}: fact {fact_id!r}")
        for fact_id, entry in read_object(path).items()
    ]


def _parse(fact_id: str, entry: object, key: str, where: str) -> FactNeurons:
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object; got {type(entry).__name__}")
    name = "kn" if "kn" in entry else "neurons"
    if name not in entry:
        raise UserError(f"{where} has neither 'neurons' nor 'kn'; found {short(list(entry))}")
    if key not in entry:
        raise UserError(f"{where} has no {key!r}; found {short(list(entry))}")
    kept = _clusters(entry, key, where)
    candidates = _clusters(entry, _CANDIDATES, where) if _CANDIDATES in entry else kept
    dkn = []
    for cluster in kept:
        at = next((i for i, other in enumerate(candidates) if same_set(cluster, other)), None)
        if at is None:
            # Those of another clusterer are no subset of these candidates.
            candidates, at = (*candidates, cluster), len(candidates)
        dkn.append(at)
    return FactNeurons(
        fact_id, parse_pairs(entry[name], f"{where}: {name!r}"), candidates, tuple(dkn)
    )


def _clusters(entry: Mapping[str, Any], key: str, where: str) -> tuple[NDArray[np.int32], ...]:
    value = entry[key]
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list of clusters; got {type(value).__name__}")
    return tuple(parse_pairs(cluster, f"{where}: {key!r}[{i}]") for i, cluster in enumerate(value))
