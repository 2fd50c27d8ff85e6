"""The paper's analyses of one run after another, each computed once and kept on disk.

A cell is a model, a file of facts and a configuration. Its folder holds ``run`` (a run directory)
and ``<analysis>.json``, the table of each analysis with what it was made from; a table made from
the same things is read, not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.analysis.model_sizes import ModelSize, complexity_of_models, model_size
from dkn_engine.analysis.tables import files
from dkn_engine.analysis.tables.table import Table
from dkn_engine.config import Config
from dkn_engine.errors import DknError, UserError
from dkn_engine.info import versions
from dkn_engine.pipeline import iter_dkns
from dkn_engine.report.records import plain
from dkn_engine.store import read_manifest
from dkn_engine.store.files import write_files
from dkn_engine.types import Fact, FactResult

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
ANALYSES = ("robustness", "fact_check", "evolvability", "complexity", "sharing")
RUN = "run"


@dataclass(frozen=True)
class Options:
    """What analyses take beside a run.

    Attributes:
        n_random: draws of random neurons; None for each analysis's own number.
        new_facts: what evolvability teaches; None for the packaged ones.
        checkpoint: keep the states of trainings beside the tables, so that one that was stopped
            goes on; three times the size of the model.
    """

    n_random: int | None = None
    new_facts: tuple[Fact, ...] | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.n_random is not None and self.n_random < 1:
            raise UserError(f"n_random must be at least 1; got {self.n_random}")


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


@dataclass(frozen=True)
class Watcher:
    """Who is told what goes on.

    Attributes:
        say: takes one line.
        progress: makes a context that gives a callable of (done, total).
    """

    say: Callable[[str], None]
    progress: Callable[[int], AbstractContextManager[Progress]]


def analyze_cell(
    folder: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
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
        model, tokenizer, facts, config: see :func:`dkn_engine.find_dkns`. The configuration's seed
            is that of the analyses.
        analyses: names of :data:`ANALYSES`, made in this order.
        options: see there.
        watcher: see there.
        strict: raise what an analysis refuses; otherwise note it and go on.

    Raises:
        UserError: an unknown analysis, or what ``find_dkns`` raises.
        OSError: the folder cannot be written.
    """
    for name in analyses:
        if name not in ANALYSES:
            raise UserError(f"analysis must be one of {', '.join(ANALYSES)}; got {name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    watcher.say(f"  finding DKNs of {len(facts)} facts ...")
    with watcher.progress(len(facts)) as progress:
        found = iter_dkns(model, tokenizer, facts, config, folder / RUN, progress=progress)
        results = tuple(found)
    made_from = _made_from(folder, config, options)
    run = _Analyses(folder, model, tokenizer, tuple(facts), results, config, options)
    tables: dict[str, Table] = {}
    refused: dict[str, str] = {}
    for name in analyses:
        kept = _kept(folder / f"{name}.json", made_from)
        if kept is not None:
            watcher.say(f"  {name.replace('_', ' ')}: is there")
            tables[name] = kept
            continue
        watcher.say(f"  {name.replace('_', ' ')} ...")
        try:
            with watcher.progress(len(facts)) as progress:
                tables[name] = run.make(name, progress)
        except DknError as error:
            if strict:
                raise
            watcher.say(f"  {name.replace('_', ' ')}: not made: {error}")
            refused[name] = str(error)
            continue
        content = files.to_json(tables[name], made_from=made_from)
        write_files(folder, {f"{name}.json": content.encode("utf-8", "backslashreplace")})
    name = read_manifest(folder / RUN)["model"]["name"]
    size = model_size(model)
    return Cell(folder, name, size, config.seed, tuple(facts), results, tables, refused)


def _made_from(folder: Path, config: Config, options: Options) -> dict[str, Any]:
    """What a table depends on; another value of any of it means another table."""
    manifest = read_manifest(folder / RUN)
    made: dict[str, Any] = plain(
        {
            "config_hash": config.hash,
            "model": manifest["model"]["fingerprint"],
            "facts": manifest["facts"],
            "n_random": options.n_random,
            "new_facts": options.new_facts,
            "version": versions()["dkn_engine"],
        }
    )
    return made


def _kept(path: Path, made_from: dict[str, Any]) -> Table | None:
    """The table on disk, if it was made from the same things."""
    if not path.exists():
        return None
    table, document = files.from_json(path.read_text(encoding="utf-8"), path)
    return table if document.get("made_from") == made_from else None


@dataclass(frozen=True, eq=False)
class _Analyses:
    """Each analysis with the arguments that it takes."""

    folder: Path
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    facts: tuple[Fact, ...]
    results: tuple[FactResult, ...]
    config: Config
    options: Options

    def make(self, name: str, progress: Progress) -> Table:
        """The table of one analysis."""
        from dkn_engine import analysis

        own = dict(self._own(name))
        if self.options.n_random is not None and name != "complexity":
            own["n_random"] = self.options.n_random
        function = getattr(analysis, name)
        made: Table = function(
            self.model,
            self.tokenizer,
            self.facts,
            self.results,
            seed=self.config.seed,
            progress=progress,
            **own,
        )
        return made

    def _own(self, name: str) -> Iterator[tuple[str, Any]]:
        """Arguments that not all of them take."""
        if name in {"robustness", "fact_check", "complexity"}:
            yield "config", self.config
        if name == "complexity":
            yield "out", self.folder / "long"
        if name == "evolvability":
            yield "new_facts", self.options.new_facts
            yield "checkpoint", self.folder / "training" if self.options.checkpoint else None


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
