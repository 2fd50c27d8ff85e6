"""The paper's analyses of one run after another, each computed once and kept on disk.

A cell is a model, a file of facts and a configuration. Its folder holds ``run`` (a run directory)
and ``<analysis>.parquet``, the table of each analysis with what it was made from; a table made from
the same things is read, not made again, and one that cannot be read is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkn_engine.analysis.experiments.complexity.model_sizes import ModelSize
from dkn_engine.analysis.kept_tables import SUFFIX, read_table, to_bytes
from dkn_engine.analysis.suite.requests import RUN, Options, Request
from dkn_engine.analysis.suite.tasks import InWorkers, Loaded, Watcher
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.files.atomic import write_files
from dkn_engine.files.plain_json import plain
from dkn_engine.run.build_info import versions
from dkn_engine.run.pipeline import prepare
from dkn_engine.statistics.table import Table
from dkn_engine.store import read_manifest
from dkn_engine.store.manifest import versions_of
from dkn_engine.types import Fact, FactResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Cell:
    """A finished cell.

    Attributes:
        folder: where it is kept.
        model: its name.
        size: of the model.
        seed: of everything in it.
        facts, results: of the run, in the same order.
        tables: by analysis.
        refused: analyses that could not be made, and why.
    """

    folder: Path
    model: str
    size: ModelSize
    seed: int
    facts: tuple[Fact, ...]
    results: tuple[FactResult, ...]
    tables: dict[str, Table]
    refused: dict[str, str]


def analyze_cell(
    folder: Path,
    facts: Sequence[Fact],
    config: Config,
    options: Options,
    model: Loaded | InWorkers,
    watcher: Watcher,
) -> Cell:
    """Find the DKNs of a cell, then make the analyses that are not there yet.

    Args:
        folder: of the cell; made if absent.
        facts, config: see :func:`dkn_engine.find_dkns`. The configuration's seed is that of the
            analyses.
        options: which analyses, and how.
        model: in this process or in several.
        watcher: is told how far it is.

    Raises:
        UserError: a folder in the place of a table, or what ``find_dkns`` raises.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.analyses:  # Said before hours of work.
        path = folder / f"{name}{SUFFIX}"
        if path.is_dir():
            raise UserError(f"{path} is a folder, where a table shall be; move it elsewhere")
    run = prepare(facts, config)
    with model.at_work(run) as worker:
        watcher.say(f"  finding DKNs of {len(facts)} facts ...")
        with watcher.progress(len(facts)) as progress:
            results = tuple(worker.find(run, folder / RUN, progress))
        size = worker.size()
        made_from = _made_from(folder, config, options)
        tables = _kept(folder, made_from)
        for name in tables:
            watcher.say(f"  {name.replace('_', ' ')}: is there")
        requests = [
            Request(name, folder, tuple(facts), config, options)
            for name in options.analyses
            if name not in tables
        ]
        refused: dict[str, str] = {}
        for request, made in worker.tables(requests, results, watcher):
            if isinstance(made, str):
                watcher.say(f"  {request}: not made: {made}")
                refused[request.name] = made
            else:
                data = to_bytes(made, made_from[request.name])
                write_files(folder, {f"{request.name}{SUFFIX}": data})
                tables[request.name] = made
    tables = {name: tables[name] for name in options.analyses if name in tables}
    name = read_manifest(folder / RUN)["model"]["name"]
    return Cell(folder, name, size, config.seed, tuple(facts), results, tables, refused)


def _made_from(folder: Path, config: Config, options: Options) -> dict[str, dict[str, Any]]:
    """What each table depends on; another value of any of it means another table."""
    manifest = read_manifest(folder / RUN)
    run: dict[str, Any] = plain(
        {
            "config_hash": config.hash,
            "model": manifest["model"]["fingerprint"],
            "traits": manifest.get("traits"),
            "facts": manifest["facts"],
            "version": versions()["dkn_engine"],
            "code": versions()["code"],
            # Also of the code that found the results, which may have been other.
            "run": versions_of(manifest),
        }
    )
    made = {n: run | {"settings": s.to_dict()} for n, s in options.analyses.items()}
    if "evolvability" in made:
        made["evolvability"]["new_facts"] = plain(options.new_facts)
    return made


def _kept(folder: Path, made_from: Mapping[str, Mapping[str, Any]]) -> dict[str, Table]:
    """Tables on disk that were made from the same things; what cannot be read is not there."""
    tables: dict[str, Table] = {}
    for name, expected in made_from.items():
        path = folder / f"{name}{SUFFIX}"
        if path.exists():
            try:
                table, made = read_table(path)
                if table.analysis != name:
                    raise UserError(f"{path} holds another analysis, {table.analysis}")
            except UserError as error:
                logger.warning("%s; it is made again", error)
                continue
            # Another commit with the same code makes the same table.
            if isinstance(made, dict) and made | {"version": expected["version"]} == expected:
                tables[name] = table
    return tables
