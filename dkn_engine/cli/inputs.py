"""Facts and models for commands, with what was left out of the facts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from dkn_engine.cli.console import Console
from dkn_engine.cli.options import Reading
from dkn_engine.config import Config, FactsConfig
from dkn_engine.errors import UserError
from dkn_engine.facts import FactProblem
from dkn_engine.facts.scan import FactFile
from dkn_engine.models.load import require_placeable
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from dkn_engine.run.workers.job import ModelSpec

Problem = dict[str, Any]  # file, line, id and reason of what a loader left out


def fact_file(
    source: str, options: Reading, config: FactsConfig, relations: Sequence[str] = ()
) -> FactFile:
    """The facts of an option, which nothing has read yet."""
    return FactFile(
        source,
        options.format,
        options.limit,
        tuple(relations),
        blank=config.blank,
        dates=config.dates,
        strict=options.strict,
    )


def read_facts(file: FactFile) -> tuple[list[Fact], list[Problem]]:
    """The facts, and what the loader says about those it had to leave out.

    Raises:
        UserError: there is no fact that can be used.
    """
    found: list[FactProblem] = []
    with readable(file):
        facts = list(file.read(found))
    problems = [problem.plain() for problem in found]
    if not facts:
        refuse_no_facts(file, problems)
    return facts, problems


@contextlib.contextmanager
def readable(file: FactFile) -> Iterator[None]:
    """A block that reads facts; that they cannot be read is a mistake of the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"facts {str(file.source)!r} cannot be read: {reason}") from error


def refuse_no_facts(file: FactFile, problems: Sequence[Problem]) -> NoReturn:
    """Say that there is no fact, and what may be the reason."""
    wanted = f" of the relation {' or '.join(file.relations)}" if file.relations else ""
    first = f"; the first of {len(problems)}: {_problem_line(problems[0])}" if problems else ""
    raise UserError(f"facts {str(file.source)!r} hold no fact{wanted} that can be used{first}")


def _problem_line(problem: Mapping[str, Any]) -> str:
    parts = [str(problem[k]) for k in ("file", "line", "id") if problem[k] is not None]
    return f"{':'.join(parts)}: {problem['reason']}"


def tell_problems(
    console: Console,
    problems: Sequence[Problem],
    rest: str = "summary.md will list them all",
    *,
    counted: bool = False,
) -> None:
    """The first facts that were left out, how many more there are, and where those are said.

    A quiet console says in one line how many, unless they are ``counted`` in what is printed later.
    """
    if console.quiet and problems and not counted:
        number = f"{len(problems)} facts are" if len(problems) > 1 else "1 fact is"
        console.warn(f"{number} left out, first {_problem_line(problems[0])}; {rest}")
    for problem in problems[:3]:
        console.say(f"  left out: {_problem_line(problem)}")
    if len(problems) > 3:
        console.say(f"  ... and {len(problems) - 3} more; {rest}")


def load_model(name: str, options: Reading, console: Console) -> tuple[Any, Any]:
    """Model and tokenizer as the options say; bars of their loading are for terminals only."""
    from dkn_engine.models import load

    try:
        with contextlib.nullcontext() if console.draws else load.quiet():
            return load.load_model(
                name,
                options.device,
                options.dtype,
                dequantize=options.dequantize,
                device_map=options.device_map,
            )
    except OSError as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"model {name!r} cannot be loaded: {first}") from error


def require_loadable(options: Reading, processes: bool) -> None:
    """Refuse options of loading that exclude one another, before anything is read.

    Raises:
        UserError: ``--device-map`` beside another placement, or with worker ``processes``.
    """
    if processes and options.device_map is not None:
        raise UserError("--device-map spreads one model over all devices: give it without workers")
    require_placeable(options.device, options.device_map, options.dequantize)


def model_spec(name: str, options: Reading) -> ModelSpec:
    """How worker processes load the model."""
    from dkn_engine.run.workers.job import ModelSpec

    return ModelSpec(
        name, options.device, options.dtype, options.threads or 1, dequantize=options.dequantize
    )


def for_model(config: Config, name: str) -> Config:
    """A configuration as a model of that name takes it: an encoder reads every blank."""
    from dkn_engine.models.load import names_encoder

    if not names_encoder(name):
        return config
    return replace(config, facts=replace(config.facts, blank="keep"))


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Torch's CPU threads inside a block; as they were after it. None changes nothing."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
