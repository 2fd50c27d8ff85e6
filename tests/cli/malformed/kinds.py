"""What is done with each kind of malformed input, up to the message that the user reads."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import dkn_engine as dkn
from dkn_engine.analysis.kept_tables import read_table
from dkn_engine.cli import main as cli
from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.facts import FactProblem, iter_facts
from dkn_engine.interchange import read_eleuther, read_released
from dkn_engine.store.schema import to_parquet
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        kind: a key of :data:`KINDS`, which says what ``given`` holds.
        name: of the case.
        given: the input as data.
        message: all that the user reads, ``{file}`` for the path; "..." stands for any text (of
            other libraries, or too long).
    """

    kind: str
    name: str
    given: Any
    message: str


def of_facts(given: tuple[str, bytes], folder: Path) -> Iterator[str]:
    """A file of facts (format, contents): what the loader leaves out, or its error."""
    problems: list[FactProblem] = []
    file = folder / "facts.json"
    file.write_bytes(given[1])
    try:
        list(iter_facts(file, given[0], problems=problems))
    finally:
        yield from (str(p).replace(str(file), "{file}") for p in problems)


def of_fact(given: dict[str, Any], _folder: Path) -> Iterator[str]:
    """A fact made by a program: its error, or why it was skipped."""
    model, tokenizer = guest()
    (result,) = dkn.find_dkns(model, tokenizer, [dkn.Fact(**given)])
    yield result.reason


@cache
def guest() -> tuple[Any, Any]:
    """A model of 40 tokens with a tokenizer of 61, whose mask token is one of the 40."""
    tokenizer = words_tokenizer()
    tokenizer.mask_token = "w3"
    return tiny("gpt2", torch.float32, vocab_size=40), tokenizer


def of_config(given: tuple[str, bytes], folder: Path) -> Iterator[str]:
    """A file of settings (name, contents)."""
    (folder / given[0]).write_bytes(given[1])
    Config.load(folder / given[0])
    yield ""


def of_settings(given: tuple[str, ...], _folder: Path) -> Iterator[str]:
    """Values of ``--set``."""
    config_from_options(changes=given)
    yield ""


def of_eleuther(given: bytes, folder: Path) -> Iterator[str]:
    """A file of EleutherAI's form."""
    (folder / "neurons.json").write_bytes(given)
    read_eleuther(folder / "neurons.json")
    yield ""


def of_released(given: bytes, folder: Path) -> Iterator[str]:
    """A file of the published code's form."""
    (folder / "results.jsonl").write_bytes(given)
    read_released(folder / "results.jsonl")
    yield ""


def of_table(given: bytes | None, folder: Path) -> Iterator[str]:
    """A file of an analysis: its contents, or None for the whole table of another version."""
    file = folder / "robustness.parquet"
    schema = pa.schema([("analysis", pa.string())])
    other = to_parquet(pa.Table.from_pylist([{"analysis": "robustness"}], schema=schema))
    file.write_bytes(other if given is None else given)
    read_table(file)
    yield ""


def of_command(given: tuple[str, ...], folder: Path) -> Iterator[str]:
    """A command line, ``{folder}`` for an empty folder with one file ``file``."""
    (folder / "file").write_text("no facts", encoding="utf-8")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main([part.replace("{folder}", str(folder)) for part in given])
    assert code == 2
    yield said.getvalue().splitlines()[-1]


def of_model(given: dict[str, Any], folder: Path) -> Iterator[str]:
    """Damage to the folder of a model.

    Keys: ``remove`` (file names), ``files`` (contents by name), ``config`` (values by key),
    ``tensors`` (None to leave one out, a shape, or a number to put into its first place), ``cut``
    (bytes of the weights that stay), ``facts`` (also search, for what only then is seen).
    """
    path = folder / "model"
    shutil.copytree(intact(folder.parent), path)
    for name in given.get("remove", ()):
        (path / name).unlink()
    for name, data in given.get("files", {}).items():
        (path / name).write_bytes(data)
    if "config" in given:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        (path / "config.json").write_text(json.dumps(config | given["config"]), encoding="utf-8")
    if "tensors" in given:
        change_tensors(path / "model.safetensors", given["tensors"])
    if "cut" in given:
        data = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(data[: given["cut"]])
    model, tokenizer = dkn.load_model(path)
    (result,) = dkn.find_dkns(model, tokenizer, [dkn.Fact("a", "w5 w9 w11", "w13")])
    yield result.reason


def intact(folder: Path) -> Path:
    """A folder with a tiny GPT-2 and its tokenizer, made once."""
    path = folder / "intact"
    if not path.exists():
        tiny("gpt2", torch.float32).save_pretrained(path)
        words_tokenizer().save_pretrained(path)
    return path


def change_tensors(file: Path, changes: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        elif isinstance(change, float):
            tensors[name].view(-1)[0] = change
        else:
            tensors[name] = torch.zeros(change)
    save_file(tensors, file, metadata={"format": "pt"})


KINDS: dict[str, Callable[[Any, Path], Iterator[str]]] = {
    "facts": of_facts,
    "fact": of_fact,
    "config": of_config,
    "settings": of_settings,
    "eleuther": of_eleuther,
    "released": of_released,
    "table": of_table,
    "command": of_command,
    "model": of_model,
}


def messages(case: Case, folder: Path) -> list[str]:
    """What the user reads about a case; a mistake that is no ``UserError`` is raised."""
    found: list[str] = []
    try:
        found.extend(KINDS[case.kind](case.given, folder))
    except UserError as error:
        found.append(str(error))
    return [text.replace(str(folder), "{folder}") for text in found]
