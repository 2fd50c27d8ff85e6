"""Facts written as a file that reads back unchanged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from dkn_engine.errors import FactError
from dkn_engine.facts import jsonl
from dkn_engine.facts.given import Facts, facts_from
from dkn_engine.facts.json_records import BadEntry
from dkn_engine.files.atomic import write_files
from dkn_engine.types import Fact


def write_facts(path: str | Path, facts: Facts) -> None:
    """Write facts as JSON lines that :func:`dkn_engine.load_facts` reads back unchanged.

    The file appears whole or not at all. A new one gets the permissions that the user's umask
    leaves, as any file; one that is replaced keeps its own. Blanks such as ``[MASK]`` in prompts
    come back with ``blank="literal"`` only.

    Args:
        path: the file; replaced if it is there.
        facts: in the order in which they are written; a path, one fact, facts or mappings with
            their fields, as for :func:`dkn_engine.find_dkns`.

    Raises:
        TypeError: ``facts`` are none of these.
        FactError: a fact could not be read back (an empty text, broken Unicode, an id twice), there
            is none, which could not be read back either, or a path or mapping gives none.
        OSError: the file cannot be written.
    """
    contents = "".join(_lines(facts_from(facts))).encode()
    path = Path(path).expanduser()
    write_files(path.parent, {path.name: contents})


def _lines(facts: Iterable[Fact]) -> Iterator[str]:
    seen: set[str] = set()
    for fact in facts:
        # The fields that are set, in the order of the class.
        entry = {k: v for k, v in dataclasses.asdict(fact).items() if v not in (None, ())}
        try:
            jsonl.convert(entry)  # As the file will be read.
        except BadEntry as error:
            raise FactError(f"fact {fact.id!r} cannot be written: {error.reason}") from None
        if fact.id in seen:
            raise FactError(f"fact ids must be unique; got {fact.id!r} twice")
        seen.add(fact.id)
        yield json.dumps(entry, ensure_ascii=False) + "\n"
    if not seen:
        raise FactError("facts must hold at least one fact, or the file is empty; got none")
