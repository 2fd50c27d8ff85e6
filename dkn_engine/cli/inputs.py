"""Facts and models for commands, with what was left out of the facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from dkn_engine.cli.console import Console
from dkn_engine.errors import UserError
from dkn_engine.types import Fact


def read_facts(
    source: str,
    kind: str = "auto",
    limit: int | None = None,
    *,
    blank: str = "skip",
    dates: str = "auto",
    strict: bool = False,
) -> tuple[list[Fact], list[dict[str, Any]]]:
    """The facts, and what the loader says about those it had to leave out.

    Args:
        source, kind, limit, blank, dates, strict: see :func:`dkn_engine.facts.iter_facts`, where
            ``kind`` is ``format``.

    Raises:
        UserError: there is no fact that can be used.
    """
    from dkn_engine.facts import iter_facts

    found: list[Any] = []
    try:
        read = iter_facts(
            source, kind, limit, blank=blank, dates=dates, strict=strict, problems=found
        )
        facts = list(read)
    except OSError as error:
        raise UserError(f"facts {source!r} cannot be read: {error.strerror or error}") from error
    problems = plain_problems(found)
    if not facts:
        refuse_no_facts(source, problems)
    return facts, problems


def plain_problems(found: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {name: _json_value(getattr(p, name, None)) for name in ("file", "line", "id", "reason")}
        for p in found
    ]


def refuse_no_facts(
    source: str, problems: Sequence[Mapping[str, Any]], relations: Sequence[str] = ()
) -> NoReturn:
    wanted = f" of the relation {' or '.join(relations)}" if relations else ""
    first = f"; the first of {len(problems)}: {_problem_line(problems[0])}" if problems else ""
    raise UserError(f"facts {source!r} hold no fact{wanted} that can be used{first}")


def _json_value(value: Any) -> Any:
    return value if value is None or isinstance(value, int | str) else str(value)


def _problem_line(problem: Mapping[str, Any]) -> str:
    parts = [str(problem[k]) for k in ("file", "line", "id") if problem[k] is not None]
    return f"{':'.join(parts)}: {problem['reason']}"


def tell_problems(
    console: Console,
    problems: Sequence[Mapping[str, Any]],
    rest: str = "summary.md will list them all",
    *,
    counted: bool = False,
) -> None:
    """The first facts that were left out, how many more there are, and where those are said.

    A quiet console says in one line how many, unless they are ``counted`` in what is printed later.
    """
    if console.quiet and problems and not counted:
        some = f"{len(problems)} facts are" if len(problems) > 1 else "1 fact is"
        console.warn(f"{some} left out, first {_problem_line(problems[0])}; {rest}")
    for problem in problems[:3]:
        console.say(f"  left out: {_problem_line(problem)}")
    if len(problems) > 3:
        console.say(f"  ... and {len(problems) - 3} more; {rest}")


def load_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer as the options say."""
    import dkn_engine

    try:
        model, tokenizer = dkn_engine.load_model(name, device=device, dtype=dtype)
    except OSError as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"model {name!r} cannot be loaded: {first}") from error
    return model, tokenizer


class Threads:
    """Torch's CPU threads inside a ``with`` statement; as they were after it."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._before = 0

    def __enter__(self) -> None:
        if self._threads is not None:
            import torch

            self._before = torch.get_num_threads()
            torch.set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._before)
