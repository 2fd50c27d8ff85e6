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

from dkn_engine.analysis.experiments.complexity.model_sizes import ModelSize, complexity_of_models
from dkn_engine.analysis.kept_tables import SUFFIX, read_table, to_bytes
from dkn_engine.analysis.suite.engines import Engine, Watcher
from dkn_engine.analysis.suite.requests import RUN, Options, Refusal, Request
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.files.atomic import write_files
from dkn_engine.files.plain_json import plain
from dkn_engine.run.build_info import versions
from dkn_engine.statistics.table import Table
from dkn_engine.store import read_manifest
from dkn_engine.store.manifest import versions_of
from dkn_engine.types import Fact, FactResult

logger = logging.getLogger(__name__)

ANALYSES = ("robustness", "fact_check", "evolvability", "complexity", "sharing")


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
    engine: Engine,
    facts: Sequence[Fact],
    config: Config,
    analyses: Sequence[str],
    options: Options,
    watcher: Watcher,
    *,
    strict: bool = False,
) -> Cell:
    """Find the DKNs of a cell, then make the analyses that are not there yet.

    Args:
        folder: of the cell; made if absent.
        engine: has the model.
        facts, config: see :func:`dkn_engine.find_dkns`. The configuration's seed is that of the
            analyses.
        analyses: names of :data:`ANALYSES`, begun in this order.
        options: see there.
        watcher: see there.
        strict: raise what an analysis refuses; otherwise note it and go on.

    Raises:
        UserError: an unknown analysis, a folder in the place of its table, or what ``find_dkns``
            raises.
        OSError: the folder cannot be written.
    """
    for name in analyses:
        if name not in ANALYSES:
            raise UserError(f"analysis must be one of {', '.join(ANALYSES)}; got {name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    _require_places(folder, analyses)
    with engine.on(facts, config) as work:
        watcher.say(f"  finding DKNs of {len(facts)} facts ...")
        with watcher.progress(len(facts)) as progress:
            results = tuple(work.find(folder / RUN, progress))
        made_from = _made_from(folder, config, options)
        tables = _kept(folder, analyses, made_from)
        for name in tables:
            watcher.say(f"  {name.replace('_', ' ')}: is there")
        requests = [
            Request(name, folder, tuple(facts), config, options, strict)
            for name in analyses
            if name not in tables
        ]
        refused: dict[str, str] = {}
        for request, made in work.tables(requests, results, watcher):
            if isinstance(made, Refusal):
                watcher.say(f"  {request}: not made: {made.reason}")
                refused[request.name] = made.reason
            else:
                _keep(folder, request.name, made, made_from)
                tables[request.name] = made
    tables = {name: tables[name] for name in analyses if name in tables}
    name = read_manifest(folder / RUN)["model"]["name"]
    return Cell(folder, name, work.size, config.seed, tuple(facts), results, tables, refused)


def _made_from(folder: Path, config: Config, options: Options) -> dict[str, Any]:
    """What a table depends on; another value of any of it means another table."""
    manifest = read_manifest(folder / RUN)
    made: dict[str, Any] = plain(
        {
            "config_hash": config.hash,
            "model": manifest["model"]["fingerprint"],
            "traits": manifest.get("traits"),
            "facts": manifest["facts"],
            "n_random": options.n_random,
            "new_facts": options.new_facts,
            "version": versions()["dkn_engine"],
            "code": versions()["code"],
            # Also of the code that found the results, which may have been other.
            "run": versions_of(manifest),
        }
    )
    return made


def _kept(folder: Path, analyses: Sequence[str], made_from: Mapping[str, Any]) -> dict[str, Table]:
    """Tables on disk that were made from the same things; what cannot be read is not there."""
    found: dict[str, Table] = {}
    for name in analyses:
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
            if isinstance(made, dict) and made | {"version": made_from["version"]} == made_from:
                found[name] = table
    return found


def _require_places(folder: Path, analyses: Sequence[str]) -> None:
    """Say before hours of work what no table could be written over."""
    for name in analyses:
        path = folder / f"{name}{SUFFIX}"
        if path.is_dir():
            raise UserError(f"{path} is a folder, where a table shall be; move it elsewhere")


def _keep(folder: Path, name: str, table: Table, made_from: Mapping[str, Any]) -> None:
    write_files(folder, {f"{name}{SUFFIX}": to_bytes(table, made_from)})


def compare_models(cells: Mapping[str, Cell], seed: int) -> Table | None:
    """Degeneracy against model size, over cells of the same facts; None for fewer than two.

    Args:
        cells: that differ in their model alone, by its short name.
        seed: of the resampling.
    """
    if len(cells) < 2:
        return None
    results = {name: cell.results for name, cell in cells.items()}
    sizes = {name: cell.size for name, cell in cells.items()}
    facts = next(iter(cells.values())).facts
    return complexity_of_models(facts, results, sizes, seed=seed)
