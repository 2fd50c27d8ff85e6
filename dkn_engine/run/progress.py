"""How far a run is, for people: a bar in a terminal or a notebook, a line now and then in a log."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # 'dkn-engine info' works without numpy.
    from dkn_engine.types import FactResult, Progress

LOG_EVERY = 10.0  # seconds between two lines of a log
_TICK = 1.0  # seconds between two drawings of a bar on which nothing else happens
# The rate always as facts a second, whatever it is.
_BAR = (
    "{percentage:3.0f}%|{bar}| {done}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
)


@runtime_checkable
class Watch(Protocol):
    """Progress that also takes what is going on between two chunks."""

    def __call__(self, done: int, total: int) -> None:
        """So many facts are done."""

    def stage(self, words: str, facts: float) -> None:
        """A stage begins; those before it count as so many facts of the chunk."""


class Bar:
    """A bar that moves with every stage and chunk, and whose clock moves every second.

    Args:
        total: number of facts of the run; None: it is told with the first of them.
        done: facts of an earlier run, which do not count for the rate.
        unit: what is counted.
        console: always draw on stderr; otherwise in a notebook as a widget, if this is one.
    """

    def __init__(
        self, total: int | None, done: int = 0, *, unit: str = "fact", console: bool = False
    ) -> None:
        self._total, self._done, self._unit, self._console = total, done, unit, console
        self._bar: Any = None
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Bar:
        self._bar = _bar_class(self._console)(
            total=self._total,
            initial=self._done,
            unit=self._unit,
            file=sys.stderr,
            bar_format=_BAR,
            **_size(),
            # What arrives is shown at once.
            miniters=0,
            mininterval=0,
        )
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._clock.join()
        self._bar.set_postfix_str("", refresh=False)
        self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        self._done = self._bar.facts_done = done
        self._bar.total = total
        self._move(done)

    def stage(self, words: str, facts: float) -> None:
        self._bar.set_postfix_str(words, refresh=False)
        self._move(self._done + facts)

    def _move(self, to: float) -> None:
        self._bar.update(max(0, to - self._bar.n))

    def _tick(self) -> None:
        while not self._ended.wait(_TICK):
            self._bar.refresh()


def _bar_class(console: bool) -> Any:
    """tqdm's bar, which moves with stages too, but counts the facts that are done."""
    # Without ipywidgets a notebook shows the terminal's bar; tqdm.auto would warn of it.
    if console or importlib.util.find_spec("ipywidgets") is None:
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm

    class Facts(tqdm):  # type: ignore[misc]  # tqdm has no types
        facts_done = 0

        @property
        def format_dict(self) -> dict[str, Any]:
            found: dict[str, Any] = super().format_dict
            return found | {"done": max(self.facts_done, self.initial)}

    return Facts


def _size() -> dict[str, Any]:
    """Width and height for tqdm; some containers and job systems do not say how large they are."""
    try:
        known = min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 79, "nrows": 24}


class Log:
    """A line when a chunk or stage is done, but seldom enough for a log file.

    Args:
        say: writes a line.
        before: facts of an earlier run, which do not count for the rate.
        unit: what is counted.
    """

    def __init__(self, say: Callable[[str], None], before: int = 0, *, unit: str = "fact") -> None:
        self._say, self._before, self._done, self._total = say, before, before, 0
        self._unit = unit
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._line("", always=done >= total)

    def stage(self, words: str, facts: float) -> None:
        self._line(f", {words}")

    def _line(self, end: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if not self._total or (not always and now - self._last < LOG_EVERY):
            return
        self._last = now
        text, fresh = f"  {self._done}/{self._total} {self._unit}s", self._done - self._before
        if fresh > 0 and now > self._start:
            rate = fresh / (now - self._start)
            text += (
                f", {rate:.3g} {self._unit}s/s, {duration((self._total - self._done) / rate)} left"
            )
        self._say(f"{text}{end}")


def duration(seconds: float) -> str:
    """Time as "42 s", "3 min 10 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def watched(
    progress: Progress | bool | None,
    total: int,
    done: Callable[[], int],
    find: Callable[[Progress | None], Iterator[FactResult]],
) -> Iterator[FactResult]:
    """What ``find`` gives, told to a callable, shown (True), or neither (False, None).

    Args:
        progress: of a public function.
        total: number of facts.
        done: says how many of them were there before.
        find: takes whom to tell.

    Raises:
        TypeError: ``progress`` is something else.
    """
    if progress is True:
        watch = _watch(total, done(), "fact")
        return _shown(watch, find(watch))
    return find(_callable(progress))


@contextlib.contextmanager
def showing(progress: Progress | bool | None, unit: str = "fact") -> Iterator[Progress | None]:
    """Whom to tell within a ``with`` block; arguments and errors as of :func:`watched`."""
    if progress is True:
        with _watch(None, 0, unit) as watch:
            yield watch
    else:
        yield _callable(progress)


def _callable(progress: Progress | bool | None) -> Progress | None:
    if progress is not None and progress is not False and not callable(progress):
        raise TypeError(
            f"progress must be True, False or a callable of (done, total); got {progress!r}"
        )
    return progress or None


def _watch(total: int | None, done: int, unit: str) -> Bar | Log:
    if _draws():
        return Bar(total, done, unit=unit)
    return Log(_to_stderr, done, unit=unit)


def _draws() -> bool:
    """Whether there is a terminal, or a notebook, whose stderr is none."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _shown(watch: Bar | Log, results: Iterator[FactResult]) -> Iterator[FactResult]:
    with watch:
        yield from results
