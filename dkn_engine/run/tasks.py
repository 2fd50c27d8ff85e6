"""The chunks that a run has still to compute, with their facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dkn_engine.facts.scan import Scan, read_windows
from dkn_engine.store.plan import Plan
from dkn_engine.types import Fact


@dataclass(frozen=True)
class Task:
    """One chunk to compute.

    Attributes:
        chunk: its index.
        positions: of its facts among all facts of the run, ascending.
        facts: in the same order.
    """

    chunk: int
    positions: tuple[int, ...]
    facts: tuple[Fact, ...]

    def __str__(self) -> str:
        return f"chunk {self.chunk}"


def iter_tasks(
    plan: Plan,
    facts: Iterable[Fact],
    scanned: Scan,
    length: Callable[[Fact], int],
    done: frozenset[int] = frozenset(),
) -> Iterator[Task]:
    """The run's own chunks that are not done, in order, holding one window of facts.

    ``length`` says how many tokens a fact has; facts are read lazily.

    Raises:
        UserError: the facts are not those of the scan.
    """
    if done.issuperset(plan.chunks):
        return
    size = plan.facts_per_chunk
    for window, some in enumerate(read_windows(facts, scanned)):
        missing = [i for i in plan.chunks_of(window) if i not in done]
        if not missing:
            continue
        start = plan.facts_of(window).start
        lengths = [length(fact) for fact in some]
        order = sorted(range(len(some)), key=lengths.__getitem__)
        for i in missing:
            first = plan.place_in_window(i) * size
            mine = sorted(order[first : first + size])
            positions = tuple(start + j for j in mine)
            yield Task(i, positions, tuple(some[j] for j in mine))
