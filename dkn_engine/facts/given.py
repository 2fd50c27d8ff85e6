"""Facts in every form that callers have them in: a path, one fact, dicts, lists, a generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError
from dkn_engine.facts import jsonl
from dkn_engine.facts.dates import dated
from dkn_engine.facts.json_records import BadEntry, entry_id
from dkn_engine.facts.scan import FactFile
from dkn_engine.types import Fact

GivenFact = Fact | Mapping[str, Any]
Facts = str | Path | GivenFact | Iterable[GivenFact]


def facts_from(given: Facts, config: FactsConfig | None = None) -> Iterable[Fact]:
    """What was given as facts; it can be iterated over as often as that itself can.

    Args:
        given: a file or folder (or ``"demo"``), which is read anew each time and never held; one
            fact; or facts. A fact may be a mapping with the keys of a line of a facts file.
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
    if isinstance(given, Fact | Mapping):
        return [_fact(given, 0, config)]
    if not isinstance(given, Iterable):
        raise _refused(given)
    facts = _Facts(given, config)
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
    if not isinstance(given, Mapping):
        raise _refused(given)
    try:
        fact = jsonl.fact_of(given, config.blank)
    except BadEntry as error:
        name = error.id or entry_id(given)
        where = f"facts[{index}]" if name is None else f"fact {name!r}"
        raise FactError(f"{where}: {error.reason}") from None
    return dated(fact) if config.dates == "prompt" else fact


def _refused(given: object) -> TypeError:
    return TypeError(
        "facts must be a path, or dkn_engine.Fact or mappings with its fields, one or several; "
        f"got {type(given).__name__}"
    )
