"""Models of the hub: those in the cache first, and one line where the network is not there."""

from __future__ import annotations

import contextlib
import logging
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from dkn_engine.files.near_names import did_you_mean

T = TypeVar("T")
_PATIENCE = 3.0  # seconds for the hub to take a connection
_CLIENTS = ("huggingface_hub", "transformers", "httpx")


def from_hub(name: str, read: Callable[[bool], T]) -> T:
    """What ``read`` gives, which is told whether it may look on this machine alone.

    A model in the cache is taken as it is there; the hub is asked for what is not.

    Raises:
        OSError: the model is not in the cache and the hub cannot be reached, or does not have it.
        Exception: whatever ``read`` raises of a model that is there.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return read(True)  # which says why there can be no such name
    with _silent_clients():
        if cached:
            # A part of it may not have been fetched yet.
            with contextlib.suppress(OSError):
                return read(True)
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable()
        if why is not None:
            raise OSError(
                f"there is no folder of that name, it is not {'whole ' if cached else ''}in the "
                f"cache, and {why}; offline, give a folder that holds a model{_meant(name)}"
            )
        try:
            return read(False)
        except OSError as error:
            meant = _meant(name)
            if not meant:
                raise
            first = str(error).strip().partition("\n")[0]
            raise OSError(f"{first}{meant}") from error


def _unreachable() -> str | None:
    """Why the hub cannot be reached, or None. Behind a proxy nobody knows before asking."""
    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    if place.scheme in urllib.request.getproxies():
        return None
    try:
        address = (place.hostname or "", place.port or (80 if place.scheme == "http" else 443))
        with socket.create_connection(address, _PATIENCE):
            return None
    except OSError:
        return f"{place.hostname} cannot be reached"


def _meant(name: str) -> str:
    """Which model may have been meant: the demo, one in the cache, a folder that holds one."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    cached = [p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*")]
    folders = [str(p.parent) for p in sorted(Path().glob("*/config.json"))]
    return did_you_mean(name, ["demo", *cached, *folders])


@contextlib.contextmanager
def _silent_clients() -> Iterator[None]:
    """A block in which the libraries' warnings of retries are not printed; errors are raised."""
    loggers = [logging.getLogger(name) for name in _CLIENTS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
