"""Which facts are computed together: fixed by the facts and the configuration alone.

Facts are cut into windows in their order, a window is sorted by length and cut into chunks: what
is swept together is about equally long, and a run that goes on makes the same chunks again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

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

    A run that took more facts later has windows and chunks of those before as they were; the
    windows of what was added begin behind them. So the last window, and its last chunk, of each
    batch of facts may be short.

    Attributes:
        n_facts: of all shards together.
        facts_per_chunk: facts that are swept together.
        chunks_per_window: chunks that are made from a window of consecutive facts.
        shard: which chunks are this run's own.
        grown: how many facts the run had each time that it took more, ascending.
    """

    n_facts: int
    facts_per_chunk: int
    chunks_per_window: int = CHUNKS_PER_WINDOW
    shard: Shard = WHOLE
    grown: tuple[int, ...] = ()

    @property
    def window(self) -> int:
        """Most facts a window."""
        return self.facts_per_chunk * self.chunks_per_window

    @property
    def n_windows(self) -> int:
        return self._batches[-1].windows.stop

    @property
    def n_chunks(self) -> int:
        """Of all shards together."""
        return self._batches[-1].chunks.stop

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
        lasts = [batch.chunks.stop - 1 for batch in self._batches]
        short = sum(self.facts_per_chunk - self.size(last) for last in lasts if last in chunks)
        return n * self.facts_per_chunk - short

    @cached_property
    def _batches(self) -> list[_Batch]:
        """What was begun with, and what was added each time."""
        found, chunk, window = [], 0, 0
        for first, stop in pairwise([0, *self.grown, self.n_facts]):
            chunks = range(chunk, chunk - (first - stop) // self.facts_per_chunk)
            windows = range(window, window - (first - stop) // self.window)
            found.append(_Batch(range(first, stop), chunks, windows))
            chunk, window = chunks.stop, windows.stop
        return found

    def batch_of(self, chunk: int) -> range:
        """The chunks that came into the run together with one."""
        return self._of_chunk(chunk).chunks

    def size(self, chunk: int) -> int:
        """Facts of a chunk."""
        batch = self._of_chunk(chunk)
        before = (chunk - batch.chunks.start) * self.facts_per_chunk
        return min(self.facts_per_chunk, batch.facts.stop - batch.facts.start - before)

    def chunks_of(self, window: int) -> range:
        """The run's own chunks of a window."""
        every = self._every_chunk_of(window)
        first = every.start + (self.shard.index - every.start) % self.shard.of
        return range(first, every.stop, self.shard.of)

    def _every_chunk_of(self, window: int) -> range:
        batch = self._of_window(window)
        first = batch.chunks.start + (window - batch.windows.start) * self.chunks_per_window
        return range(first, min(first + self.chunks_per_window, batch.chunks.stop))

    def facts_of(self, window: int) -> range:
        """The positions of a window's facts."""
        batch = self._of_window(window)
        first = batch.facts.start + (window - batch.windows.start) * self.window
        return range(first, min(first + self.window, batch.facts.stop))

    def window_of(self, chunk: int) -> int:
        """The window that a chunk is of."""
        batch = self._of_chunk(chunk)
        return batch.windows.start + (chunk - batch.chunks.start) // self.chunks_per_window

    def place_in_window(self, chunk: int) -> int:
        """How many chunks of its window are before a chunk."""
        return chunk - self._every_chunk_of(self.window_of(chunk)).start

    def _of_chunk(self, chunk: int) -> _Batch:
        return next((b for b in self._batches if chunk < b.chunks.stop), self._batches[-1])

    def _of_window(self, window: int) -> _Batch:
        return next((b for b in self._batches if window < b.windows.stop), self._batches[-1])


@dataclass(frozen=True)
class _Batch:
    """Facts that came into the run together, with their chunks and windows."""

    facts: range
    chunks: range
    windows: range
