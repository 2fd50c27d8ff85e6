"""One analysis of one run: what it is asked for, and the table that comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.config import Config
from dkn_engine.errors import DknError, UserError
from dkn_engine.statistics.table import Table
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class Request:
    """A table to make.

    Attributes:
        name: of the analysis, a function of :mod:`dkn_engine.analysis`.
        folder: of the cell.
        facts, config: of its run; the configuration's seed is that of the analysis.
        options: see there.
        strict: raise what the analysis refuses.
    """

    name: str
    folder: Path
    facts: tuple[Fact, ...]
    config: Config
    options: Options
    strict: bool

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / RUN

    def __str__(self) -> str:
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Refusal:
    """Why a table was not made."""

    reason: str


def make(
    request: Request,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    results: Sequence[FactResult],
    progress: Progress,
) -> Table | Refusal:
    """The table, or why the analysis refuses the run.

    Args:
        request: see there.
        model, tokenizer, results: of the run.
        progress: called with (done, total) of whatever the analysis counts.

    Raises:
        DknError: the analysis refuses, and the request is strict.
    """
    from dkn_engine import analysis

    try:
        table: Table = getattr(analysis, request.name)(
            model,
            tokenizer,
            request.facts,
            results,
            seed=request.config.seed,
            progress=progress,
            **dict(_own(request)),
        )
    except DknError as error:
        if request.strict:
            raise
        return Refusal(str(error))
    return table


def _own(request: Request) -> Iterator[tuple[str, Any]]:
    """Arguments that not all analyses take."""
    name, options = request.name, request.options
    if options.n_random is not None and name != "complexity":
        yield "n_random", options.n_random
    if name in {"robustness", "fact_check", "complexity"}:
        yield "config", request.config
    if name == "complexity":
        yield "out", request.folder / "long"
    if name == "evolvability":
        yield "new_facts", options.new_facts
        yield "checkpoint", request.folder / "training" if options.checkpoint else None
