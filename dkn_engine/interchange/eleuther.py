"""The neuron files of EleutherAI's ``knowledge-neurons``: ``{uuid: [[layer, index], ...]}``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dkn_engine.files.local_paths import local_path
from dkn_engine.interchange.json_files import read_object, write_text
from dkn_engine.interchange.neuron_records import FactNeurons, fact_neurons, parse_pairs
from dkn_engine.types import FactResult


def write_eleuther(path: str | Path, facts: Iterable[FactResult | FactNeurons]) -> None:
    """Write the located neurons of every fact, in the order of the facts.

    The form is that of the package's ``<model>_pararel_neurons_<rank>.json`` files: one object,
    the fact's uuid to its list of ``[layer, index]`` pairs, indented by four. Components have no
    place in it; :func:`write_released` keeps them.

    Args:
        path: the file; replaced if it is there.
        facts: with unique ids; a fact without neurons has an empty list.

    Raises:
        UserError: two facts have the same id, or the folder is not there.
        OSError: the disk refuses.

    Source:
        https://github.com/EleutherAI/knowledge-neurons, files written by its ParaRel evaluation.
    """
    table = {fact.fact_id: fact.neurons.tolist() for fact in fact_neurons(facts)}
    write_text(local_path(path), json.dumps(table, indent=4) + "\n")


def read_eleuther(path: str | Path) -> list[FactNeurons]:
    """The neurons of such a file, in its order.

    Raises:
        UserError: the file cannot be read or has another form; names file and fact.
    """
    path = local_path(path)
    return [
        FactNeurons(fact_id, parse_pairs(neurons, f"{path}: fact {fact_id!r}"))
        for fact_id, neurons in read_object(path).items()
    ]
