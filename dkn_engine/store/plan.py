"""Which facts are computed together: fixed by the facts and the configuration alone.

Facts are cut into windows in their order, a window is sorted by length and cut into chunks: what
is swept together is about equally long, and a run that goes on makes the same chunks again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dkn_engine.errors import UserError

CHUNKS_PER_WINDOW = 16


@dataclass(frozen=True)
class Shard:
    """The part of a run that one of several machines computes: chunks ``index`` modulo ``of``."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise UserError(f"shard must be i/n with i from 0 to n - 1; got {self}")

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


WHOLE = Shard()


@dataclass(frozen=True)
class Plan:
    """The arithmetic of facts, chunks and windows.

    Attributes:
        n_facts: of all shards together.
        facts_per_chunk: facts that are swept together.
        chunks_per_window: chunks that are made from a window of consecutive facts.
        shard: which chunks are this run's own.
    """

    n_facts: int
    facts_per_chunk: int
    chunks_per_window: int = field(default_factory=lambda: CHUNKS_PER_WINDOW)
    shard: Shard = WHOLE

    @property
    def window(self) -> int:
        """Facts a window."""
        return self.facts_per_chunk * self.chunks_per_window

    @property
    def n_windows(self) -> int:
        return -(-self.n_facts // self.window)

    @property
    def n_chunks(self) -> int:
        """Of all shards together."""
        return -(-self.n_facts // self.facts_per_chunk)

    @property
    def chunks(self) -> range:
        """The run's own chunks."""
        return range(self.shard.index, self.n_chunks, self.shard.of)

    @property
    def n_own(self) -> int:
        """Facts of the run's own chunks."""
        chunks = self.chunks
        if not chunks:
            return 0
        n = (chunks[-1] - chunks.start) // chunks.step + 1  # More than len() counts, if need be.
        return (n - 1) * self.facts_per_chunk + self.size(chunks[-1])

    def size(self, chunk: int) -> int:
        """Facts of a chunk."""
        return min(self.facts_per_chunk, self.n_facts - chunk * self.facts_per_chunk)

    def chunks_of(self, window: int) -> range:
        """The run's own chunks of a window."""
        first = window * self.chunks_per_window
        last = min(first + self.chunks_per_window, self.n_chunks)
        return range(first + (self.shard.index - first) % self.shard.of, last, self.shard.of)
