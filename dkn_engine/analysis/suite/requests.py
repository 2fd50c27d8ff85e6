"""One analysis of one run: what it is asked for, and the table that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.analysis.config import ANALYSES
from dkn_engine.config import Config
from dkn_engine.errors import DknError, UserError
from dkn_engine.files.sections import Section
from dkn_engine.statistics.table import Table
from dkn_engine.store import read_results
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

RUN = "run"


@dataclass(frozen=True)
class Options:
    """What is made of a run.

    Attributes:
        analyses: settings of the analyses, by their names in :data:`ANALYSES`, in the order of the
            tables.
        new_facts: what evolvability teaches; None for the packaged ones.
        checkpoint: keep the states of trainings beside the tables, so that one that was stopped
            goes on; three times the size of the model.
        strict: raise what an analysis refuses; otherwise note it and go on.
    """

    analyses: Mapping[str, Section]
    new_facts: tuple[Fact, ...] | None = None
    checkpoint: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        for name in self.analyses:
            if name not in ANALYSES:
                raise UserError(f"analysis must be one of {', '.join(ANALYSES)}; got {name!r}")


@dataclass(frozen=True)
class Request:
    """A table to make, by whatever process has the model.

    Attributes:
        name: of the analysis, a function of :mod:`dkn_engine.analysis`.
        folder: of the cell.
        facts, config: of its run; the configuration's seed is that of the analysis.
        options: see there.
    """

    name: str
    folder: Path
    facts: tuple[Fact, ...]
    config: Config
    options: Options

    def __str__(self) -> str:
        return self.name.replace("_", " ")

    def __call__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        progress: Progress,
        results: Sequence[FactResult] | None = None,
    ) -> Table | str:
        """The table, or why the analysis refuses the run.

        Args:
            model, tokenizer: of the run.
            progress: called with (done, total) of whatever the analysis counts.
            results: of the run; None: those on disk.

        Raises:
            DknError: the analysis refuses, and the request is strict.
        """
        from dkn_engine import analysis

        name, options = self.name, self.options
        results = read_results(self.folder / RUN) if results is None else results
        more: dict[str, Any] = {}
        if name in {"robustness", "fact_check", "complexity"}:
            more["config"] = self.config
        if name == "complexity":
            more["out"] = self.folder / "long_forms"
        if name == "evolvability":
            more["new_facts"] = options.new_facts
            more["checkpoint"] = self.folder / "training" if options.checkpoint else None
        try:
            table: Table = getattr(analysis, name)(
                model,
                tokenizer,
                self.facts,
                results,
                settings=options.analyses[name],
                seed=self.config.seed,
                progress=progress,
                **more,
            )
        except DknError as error:
            if options.strict:
                raise
            return str(error)
        return table
