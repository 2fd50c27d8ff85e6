"""Facts that are read anew at every pass, so that a run never holds them all."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dkn_engine.errors import UserError
from dkn_engine.facts.json_records import FactProblem
from dkn_engine.facts.load import iter_facts
from dkn_engine.facts.shared import SharedPrompts
from dkn_engine.types import Fact

_MARK = 8  # bytes kept of the running digest at the end of a window


@dataclass(frozen=True)
class FactFile:
    """The usable facts of a file or folder, selected; iterating reads it from the start.

    Attributes:
        source, format, blank, dates, strict: see :func:`dkn_engine.iter_facts`.
        limit: stop after so many selected facts.
        relations: take facts of these relations only; all if empty.
        problems: what the loader left out, once :func:`scan` has read the facts.
    """

    source: str | Path
    format: str = "auto"
    limit: int | None = None
    relations: tuple[str, ...] = ()
    blank: str = "skip"
    strict: bool = False
    dates: str = "auto"
    problems: list[FactProblem] = field(default_factory=list, compare=False)

    def __iter__(self) -> Iterator[Fact]:
        return self.read([])

    def read(self, problems: list[FactProblem]) -> Iterator[Fact]:
        """The facts; what the loader leaves out goes to ``problems``.

        Raises:
            FactError, UserError: see :func:`dkn_engine.iter_facts`.
        """
        facts = iter_facts(
            self.source,
            self.format,
            None if self.relations else self.limit,
            blank=self.blank,
            dates=self.dates,
            strict=self.strict,
            problems=problems,
        )
        if not self.relations:
            return facts
        return itertools.islice((f for f in facts if f.relation in self.relations), self.limit)


@dataclass(frozen=True)
class Scan:
    """What one pass over facts says about them, in little memory.

    Attributes:
        n: number of facts.
        digest: SHA-256 over every field of every fact, in order.
        window: most facts between two marks.
        marks: start of the running digest at the end of each window: a later pass that meets
            other facts notices before it uses them.
        digests: by n, the digest of the first n facts, for the numbers that were asked for. A
            window ends there.
    """

    n: int
    digest: str
    window: int
    marks: tuple[bytes, ...]
    digests: Mapping[int, str] = field(default_factory=dict)

    @property
    def grown(self) -> tuple[int, ...]:
        """Numbers of facts that were asked for, behind which more follow."""
        return tuple(sorted(n for n in self.digests if n < self.n))


def scan(facts: Iterable[Fact], window: int, ends: Sequence[int] = ()) -> Scan:
    """Count and identify facts in one pass; warns of facts that share a prompt but no answer.

    Args:
        facts: in order.
        window: most facts between two marks.
        ends: numbers of facts whose digest is wanted, ascending; a window ends with each.

    Raises:
        UserError: two facts have the same id.
    """
    if isinstance(facts, FactFile):  # The loader sees to it that ids are unique.
        facts.problems.clear()
        unique = facts.read(facts.problems)
    else:
        unique = _unique(facts)
    n, running, marks, digests = 0, hashlib.sha256(), [], {}
    shared = SharedPrompts()
    for part in _windows(shared.watch(unique), window, ends):
        _update(running, part)
        n += len(part)
        marks.append(running.digest()[:_MARK])
        if n in ends:
            digests[n] = running.hexdigest()
    shared.warn()
    return Scan(n, running.hexdigest(), window, tuple(marks), digests)


def read_windows(facts: Iterable[Fact], scanned: Scan) -> Iterator[list[Fact]]:
    """The facts again, a window at a time.

    Raises:
        UserError: they are not those of the scan.
    """
    running, read = hashlib.sha256(), 0
    for mark, part in itertools.zip_longest(
        scanned.marks, _windows(facts, scanned.window, scanned.grown), fillvalue=None
    ):
        _update(running, part or [])
        if part is None or running.digest()[:_MARK] != mark:
            raise UserError(
                f"the facts changed while the run read them (after the first {read}); give "
                "facts that stay as they are"
            )
        read += len(part)
        yield part


def pick(facts: Iterable[Fact], indices: Iterable[int]) -> tuple[Fact, ...]:
    """The facts at some indices, in the order of the indices, in one pass."""
    wanted = list(indices)
    chosen = dict.fromkeys(wanted)
    first_ones = itertools.islice(facts, max(wanted, default=-1) + 1)
    found = {i: fact for i, fact in enumerate(first_ones) if i in chosen}
    return tuple(found[i] for i in wanted if i in found)


def _windows(facts: Iterable[Fact], size: int, ends: Sequence[int] = ()) -> Iterator[list[Fact]]:
    """Facts so many at a time, or as many as are left to the next of the ends."""
    rest, n = iter(facts), 0
    while part := list(itertools.islice(rest, min([size, *(end - n for end in ends if end > n)]))):
        n += len(part)
        yield part


def _update(running: hashlib._Hash, facts: Iterable[Fact]) -> None:
    for fact in facts:
        running.update(json.dumps(dataclasses.asdict(fact), sort_keys=True).encode())
        running.update(b"\n")


def _unique(facts: Iterable[Fact]) -> Iterator[Fact]:
    seen: set[str] = set()
    for fact in facts:
        if fact.id in seen:
            raise UserError(f"fact ids must be unique; got {fact.id!r} twice")
        seen.add(fact.id)
        yield fact
