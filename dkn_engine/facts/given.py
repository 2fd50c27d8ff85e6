"""Facts in every form that callers have: paths, facts, pairs, dicts, tables, generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError
from dkn_engine.facts import jsonl
from dkn_engine.facts.dates import dated
from dkn_engine.facts.json_records import BadEntry, entry_id
from dkn_engine.facts.scan import FactFile
from dkn_engine.types import Fact

# A pair is a prompt and its answer.
GivenFact = Fact | Mapping[str, Any] | tuple[str, str]
Facts = str | Path | GivenFact | Iterable[GivenFact]
# How data frames of pandas, of polars and of pyarrow give their rows.
_ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *(("to_dicts", ()), ("to_pylist", ())),
    ("to_dict", ("records",)),
)


def facts_from(given: Facts, config: FactsConfig | None = None) -> Iterable[Fact]:
    """What was given as facts; it can be iterated over as often as that itself can.

    Args:
        given: a file or folder (or ``"demo"``), which is read anew each time and never held; one
            fact; facts; or a data frame (pandas, polars, pyarrow) with a fact a row, whose columns
            are the fields of ``Fact`` and whose missing values are absent ones. A fact may be a
            (prompt, answer) pair, or a mapping with the keys of a line of a facts file. What has no
            id gets one that follows from its prompt, answer and date.
        config: how files and mappings are read; None for the defaults.

    Raises:
        TypeError: it is none of these; where its items are not, when they are reached.
        FactError: the same of a mapping that does not make a fact; see also
            :func:`dkn_engine.iter_facts`.
    """
    config = FactsConfig() if config is None else config
    if isinstance(given, str | Path):
        return FactFile(given, blank=config.blank, dates=config.dates)
    if isinstance(given, FactFile):
        return given
    if isinstance(given, Fact | Mapping) or (isinstance(given, tuple) and _is_pair(given)):
        return [_fact(given, 0, config)]
    if hasattr(given, "columns"):
        given = _rows(given)
    if not isinstance(given, Iterable):
        raise _refused(given)
    facts = _Facts(cast("Iterable[GivenFact]", given), config)
    return iter(facts) if isinstance(given, Iterator) else facts


def fact_list(given: Facts, config: FactsConfig | None = None) -> list[Fact]:
    """As :func:`facts_from`, all of them in a list.

    Raises:
        TypeError, FactError: see :func:`facts_from`.
    """
    return list(facts_from(given, config))


class _Facts:
    """Facts or mappings as facts, converted as they are asked for."""

    def __init__(self, given: Iterable[GivenFact], config: FactsConfig) -> None:
        self._given, self._config = given, config

    def __iter__(self) -> Iterator[Fact]:
        return (_fact(one, i, self._config) for i, one in enumerate(self._given))


def _fact(given: GivenFact, index: int, config: FactsConfig) -> Fact:
    if isinstance(given, Fact):
        return given
    if _is_pair(given):
        given = dict(zip(("prompt", "answer"), given, strict=True))
    if not isinstance(given, Mapping):
        raise _refused(given)
    try:
        fact = jsonl.fact_of(given, config.blank)
    except BadEntry as error:
        name = error.id or entry_id(given)
        where = f"facts[{index}]" if name is None else f"fact {name!r}"
        raise FactError(f"{where}: {error.reason}") from None
    return dated(fact) if config.dates == "prompt" else fact


def _is_pair(given: object) -> bool:
    """Whether it is a prompt and its answer."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    return all(isinstance(part, str) for part in given)


def _rows(frame: object) -> list[dict[str, Any]]:
    """The rows of a data frame, without the values that are missing."""
    for name, arguments in _ROWS:
        if hasattr(frame, name):
            rows = getattr(frame, name)(*arguments)
            return [{k: v for k, v in row.items() if not _is_missing(v)} for row in rows]
    raise _refused(frame)


def _is_missing(value: object) -> bool:
    if isinstance(value, float):
        return value != value  # NaN
    return value is None or type(value).__name__ in {"NAType", "NaTType"}


def _refused(given: object) -> TypeError:
    return TypeError(
        "facts must be a path, a data frame, or facts, one or several: dkn_engine.Fact, (prompt, "
        f"answer) pairs or mappings with its fields; got {type(given).__name__}"
    )
