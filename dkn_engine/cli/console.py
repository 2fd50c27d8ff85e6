"""What the program says while it works: steps and progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dkn_engine.run.progress import Bar, Log

if TYPE_CHECKING:
    from dkn_engine.types import Progress


class Console:
    """Messages for people on stderr: a bar on a terminal, plain lines in a log.

    Args:
        quiet: say nothing but warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet, self._drawing = quiet, False

    @property
    def draws(self) -> bool:
        """Whether there are bars: on a terminal, unless it is quiet."""
        return not self.quiet and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """One line about what is going on."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """One line that is said in any case."""
        if self._drawing:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)  # Above the bar, which is drawn again.
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def step(self, number: int, of: int, text: str) -> None:
        """One line as a stage begins."""
        self.say(f"[{number}/{of}] {text}")

    @contextlib.contextmanager
    def progress(self, total: int, done: int = 0) -> Iterator[Progress]:
        """A callable ``(done, total)`` that shows facts, their rate and the time left.

        Args:
            total: number of facts of the run.
            done: facts of an earlier run, which do not count for the rate.
        """
        if self.quiet:
            yield lambda done, total: None
        elif self.draws:
            self._drawing = True
            try:
                with Bar(total, done, console=True) as progress:
                    yield progress
            finally:
                self._drawing = False
        else:
            yield Log(self.say, done)


def number_of(n: int, what: str) -> str:
    """A number with its noun, as in "1 fact" and "33 facts"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def put(text: str) -> None:
    """Write to stdout; a terminal that lacks a character shows a question mark instead."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def detach_broken_pipes() -> None:
    """Point streams whose reader has gone at nothing, so that the interpreter ends in silence."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            with (
                contextlib.suppress(io.UnsupportedOperation),
                Path(os.devnull).open("w") as nothing,
            ):
                os.dup2(nothing.fileno(), stream.fileno())
