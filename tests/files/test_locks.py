"""One writer a directory and one maker a folder: over processes, threads, kills and systems."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import filelock
import pytest

from dkn_engine.errors import RunDirectoryError
from dkn_engine.files.locks import DirectoryLock, waiting_for

HOLD = """
import sys
from pathlib import Path
from dkn_engine.files.locks import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def owner(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_until_it_is_killed(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        for _ in range(2):  # a refusal takes nothing away from the owner
            with pytest.raises(RunDirectoryError, match=rf"another run \(process {process.pid}\)"):
                DirectoryLock(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lock = DirectoryLock(tmp_path)
    with pytest.raises(RunDirectoryError, match=rf"\(process {os.getpid()}\)"):
        DirectoryLock(tmp_path)
    lock.release()


def test_two_threads_are_two_writers_and_any_may_release(tmp_path: Path) -> None:
    lock, refused = DirectoryLock(tmp_path), []

    def other() -> None:
        try:
            DirectoryLock(tmp_path)
        except RunDirectoryError as error:
            refused.append(str(error))
        lock.release()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(refused) == 1
    assert not lock.held
    second = DirectoryLock(tmp_path)
    lock.release()  # again: it must not let go of the second's
    with pytest.raises(RunDirectoryError, match="another run"):
        DirectoryLock(tmp_path)
    second.release()
    assert [p.name for p in tmp_path.iterdir()] in ([], [".lock"])


def test_an_owner_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    (tmp_path / ".lock-owner").unlink()
    with pytest.raises(RunDirectoryError, match=r"\(process unknown\)"):
        DirectoryLock(tmp_path)
    lock.release()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_os_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            DirectoryLock(tmp_path)
        with pytest.raises(PermissionError), waiting_for(tmp_path / "a.lock"):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EROFS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_warned_of_and_a_read_only_one_refused(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    if code == errno.EROFS:
        with pytest.raises(OSError, match="Read-only"):
            DirectoryLock(tmp_path)
        return
    for lock in (DirectoryLock(tmp_path), DirectoryLock(tmp_path)):
        lock.release()
    with waiting_for(tmp_path / "a.lock"):
        pass
    assert len(caplog.messages) == 3
    assert "let only one process write there" in caplog.messages[0]


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    order, inside = [], threading.Event()

    def second() -> None:
        inside.wait()
        with waiting_for(tmp_path / "a.lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with waiting_for(tmp_path / "a.lock"):
        inside.set()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
