"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from dkn_engine.errors import UserError


def local_path(path: str | Path) -> Path:
    """A path with ``~`` or ``~user`` in front as the home folder, where no shell has done it.

    A folder that is called ``~`` must be given from the root.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: that home folder is not known; give the path in full") from error
