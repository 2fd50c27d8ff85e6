"""What other processes do with a cache: a file of its own, so that they start without torch."""

from __future__ import annotations

import time
from pathlib import Path

from dkn_engine.files.made_once import cached_folder, is_intact


def make_files(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(100_000))


def use(root: Path) -> None:
    """Ask for a folder that takes a while to make; each making adds a letter to ``root/made``."""
    assert is_intact(cached_folder("thing", _make_slowly, root=root))


def use_and_hang(root: Path) -> None:
    """Never finish making a folder; ``root/hanging`` says when it is half made."""
    cached_folder("thing", _hang, root=root)


def _make_slowly(folder: Path) -> None:
    with (folder.parents[1] / "made").open("a") as log:
        log.write("x")
    (folder / "config.json").write_text("half of it")
    time.sleep(0.3)
    make_files(folder)


def _hang(folder: Path) -> None:
    (folder / "weights").write_text("half of it")
    (folder.parents[1] / "hanging").touch()
    time.sleep(60)
