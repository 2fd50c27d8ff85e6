"""What ``dkn-engine find`` is told."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dkn_engine.cli.arguments import number, option, run_path, switch
from dkn_engine.cli.options import FACTS, Input, Output
from dkn_engine.config import FactsConfig
from dkn_engine.errors import UserError
from dkn_engine.facts.given import fact_list
from dkn_engine.store import RunPath
from dkn_engine.store.plan import WHOLE, Shard
from dkn_engine.types import Fact


def _shard(text: str) -> Shard:
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise argparse.ArgumentTypeError(
            f"must be I/N with I from 0 to N - 1, as in 0/4; got {text!r}"
        )
    return Shard(int(index), int(of))


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the model is asked."""

    TITLE: ClassVar = "facts, one of"

    facts: str | None = option("--facts", FACTS, default=None, metavar="FACTS")
    prompt: str | None = option(
        "--prompt",
        "One question in place of facts: a text that the model should continue with the answer, "
        "or for an encoder one with a blank, [MASK].",
        default=None,
        metavar="TEXT",
    )
    answer: str | None = option(
        "--answer", "The answer to that question.", default=None, metavar="TEXT"
    )

    def one(self, config: FactsConfig | None = None) -> Fact | None:
        """The one question that is asked, as ``config`` reads it; None if facts are given.

        Raises:
            UserError: neither or both of them, or half a question.
        """
        if self.facts is not None:
            if self.prompt is not None or self.answer is not None:
                raise UserError("give --facts, or --prompt and --answer, not both")
            return None
        if self.prompt is None or self.answer is None:
            missing = "--answer" if self.prompt is not None else "--prompt"
            part = self.prompt is not None or self.answer is not None
            raise UserError(
                f"{missing} is missing: one question needs --prompt and --answer"
                if part
                else "give --facts, or --prompt and --answer (see dkn-engine find --help)"
            )
        (fact,) = fact_list({"prompt": self.prompt, "answer": self.answer}, config)
        return fact

    @property
    def words(self) -> str:
        """What is asked, for messages."""
        if self.facts is not None:
            return f"reading facts from {self.facts}"
        return f"asking {self.prompt!r} → {self.answer!r}"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the facts count."""

    TITLE: ClassVar = "which facts"

    relations: tuple[str, ...] = option(
        "--relation",
        "Use facts of this relation only; may be repeated.",
        default=(),
        action="append",
        metavar="R",
    )
    where: str | None = option(
        "--where",
        "Count facts as known above this probability only (or known>=P).",
        default=None,
        metavar="known>P",
    )


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where the run is computed."""

    TITLE: ClassVar = "processes and machines"

    workers: int | None = number(
        "--workers", "Compute in N processes of --threads threads each (1 thread if not given)."
    )
    ray: str | None = option(
        "--ray",
        "Compute on a Ray cluster (default: one on this machine), by a worker for each "
        "GPU or CPU, or by --workers of them.",
        default=None,
        nargs="?",
        const="local",
        metavar="ADDRESS",
    )
    shard: Shard = option(
        "--shard",
        "Compute part I of N (from 0) only; 'dkn-engine merge' puts the parts together.",
        default=WHOLE,
        type=_shard,
        metavar="I/N",
    )

    @property
    def several(self) -> bool:
        """Whether other processes load the model."""
        return self.ray is not None or (self.workers or 1) > 1


@dataclass(frozen=True, kw_only=True)
class FindOptions:
    """Find the degenerate knowledge neurons of facts, or of one question, and write
    a run directory with its page, report.html.
    """

    ONE_OF: ClassVar = "(--facts FACTS | --prompt TEXT --answer TEXT)"

    question: Question
    out: RunPath | None = option(
        "--out",
        "The run directory, new or to continue: a folder, or a URL that fsspec knows (default: "
        "runs/MODEL-FACTS).",
        default=None,
        metavar="DIR",
        type=run_path,
    )
    no_report: bool = switch("--no-report", "Write no report.html and no figures.")
    input: Input
    selection: Selection
    machines: Machines
    output: Output

    @property
    def directory(self) -> RunPath:
        """The run directory: ``--out``, or one in ``runs`` named after model and facts."""
        from dkn_engine.analysis.suite.labels import short_names

        if self.out is not None:
            return self.out
        one, shard = self.question.one(), self.machines.shard
        facts = short_names([self.question.facts or ""], files=True)[0] if one is None else one.id
        part = "" if shard == WHOLE else f"-{shard.index}-of-{shard.of}"
        return Path("runs") / f"{short_names([self.input.model])[0]}-{facts}{part}"
