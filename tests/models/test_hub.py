"""Names of models that are no folders: the cache, the hub, and neither."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dkn_engine.errors import UserError
from dkn_engine.models.hub import from_hub
from dkn_engine.models.load import load_model
from tests.support.saved import save_tiny

NAME = "org/tiny-model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, and a hub that nobody answers for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that can be reached, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", at)
        yield


def keep(cache: Path, name: str = NAME) -> Path:
    """A snapshot of a model as the client keeps it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    return save_tiny(folder / "snapshots" / ("a" * 40))


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the hub is asked")


def test_a_model_in_the_cache_needs_no_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache)
    monkeypatch.setattr(socket, "create_connection", refuse)
    model, tokenizer = load_model(NAME, device="cpu")
    assert (model.config.vocab_size, tokenizer.vocab_size) == (61, 61)
    asked: list[bool] = []

    def read(local: bool) -> str:
        asked.append(local)
        return "read"

    assert from_hub(NAME, read) == "read"
    assert asked == [True]


def test_without_a_network_one_line_says_so_soon(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached; offline, give a folder"):
        load_model(NAME)
    assert time.monotonic() - start < 30  # 3 s for the hub; the rest is the import
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [("demoo", "demo"), ("org/tiny-modl", NAME), ("own-modell", "own-model"), ("other/one", None)],
)
def test_a_name_that_is_nearly_one_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None
) -> None:
    keep(cache)
    (cache / "work" / "own-model").mkdir(parents=True)
    (cache / "work" / "own-model" / "config.json").touch()
    monkeypatch.chdir(cache / "work")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as caught:
        load_model(name)
    expected = "holds a model" if meant is None else f"; did you mean {meant!r}?"
    assert str(caught.value).endswith(expected)


@pytest.mark.usefixtures("cache", "hub")
def test_what_the_hub_answers_is_one_line_with_what_may_be_meant() -> None:
    def read(local: bool) -> None:
        assert not local
        raise OSError("demoo is no model of the hub\nand much more")

    with pytest.raises(OSError, match=r"^demoo is no model of the hub; did you mean 'demo'\?$"):
        from_hub("demoo", read)


@pytest.mark.usefixtures("cache", "hub")
def test_levels_of_the_clients_loggers_are_as_they_were() -> None:
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    seen: list[int] = []
    read: Callable[[bool], None] = lambda _: seen.append(logger.level)  # noqa: E731
    from_hub(NAME, read)
    assert seen == [logging.CRITICAL]
    assert logger.level == before


def test_a_part_in_the_cache_is_completed_from_the_hub(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (keep(cache) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"it is not whole in the cache, and 127\.0\.0\.1 cannot"):
        load_model(NAME)
