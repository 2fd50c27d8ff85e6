"""The neuron files of EleutherAI's ``knowledge-neurons``: ``{uuid: [[layer, index], ...]}``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dkn_engine.errors import UserError
from dkn_engine.files.local_paths import local_path
from dkn_engine.interchange.json_files import read_object, write_text
from dkn_engine.interchange.neuron_records import FactNeurons, fact_neurons, parse_pairs
from dkn_engine.types import FactResult

_SITE = "site"


def write_eleuther(
    path: str | Path, facts: Iterable[FactResult | FactNeurons], *, site: str | None = None
) -> None:
    """Write the located neurons of every fact, in the order of the facts.

    The form is that of the package's ``<model>_pararel_neurons_<rank>.json`` files: one object,
    the fact's uuid to its list of ``[layer, index]`` pairs, indented by four. Components have no
    place in it; :func:`write_released` keeps them.

    Args:
        path: the file; replaced if it is there.
        facts: with unique ids, none of them ``site``; a fact without neurons has an empty list.
        site: where they were located, ``post``, ``pre`` (as the package does in a GPT) or another
            of :class:`dkn_engine.AttributionConfig`; it is written as one more key, ``"site"``,
            which the package's own files do not have. None: as the facts say that were read from
            such a file, else nothing.

    Raises:
        UserError: two facts have the same id or other sites, or the folder is not there.
        OSError: the disk refuses.

    Source:
        https://github.com/EleutherAI/knowledge-neurons, files written by its ParaRel evaluation.
    """
    every = fact_neurons(facts)
    table: dict[str, object] = {fact.fact_id: fact.neurons.tolist() for fact in every}
    sites = {fact.site for fact in every} if site is None else {site}
    if len(sites) > 1 or (_SITE in table and sites != {None}):
        raise UserError(
            "facts of one file must have one site, and none the id 'site'; got "
            f"{', '.join(sorted(map(str, sites)))}"
        )
    if sites not in ({None}, set()):
        table |= {_SITE: sites.pop()}
    write_text(local_path(path), json.dumps(table, indent=4) + "\n")


def read_eleuther(path: str | Path) -> list[FactNeurons]:
    """The neurons of such a file, in its order, with the site if it says so.

    Raises:
        UserError: the file cannot be read or has another form; names file and fact.
    """
    path = local_path(path)
    table = read_object(path)
    site = table.pop(_SITE) if isinstance(table.get(_SITE), str) else None
    return [
        FactNeurons(fact_id, parse_pairs(neurons, f"{path}: fact {fact_id!r}"), site=site)
        for fact_id, neurons in table.items()
    ]
