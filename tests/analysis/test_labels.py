"""Names of a grid's folders: whole, inside ``--out``, and never one for two."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from dkn_engine.analysis.suite.labels import labels, short_names


def one(model: str) -> str:
    (name,) = short_names([model])
    return name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "demo"),
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("EleutherAI/pythia-1.4b", "pythia-1.4b"),
        ("HuggingFaceTB/SmolLM2-1.7B", "SmolLM2-1.7B"),
        ("/models/Qwen2.5-0.5B/", "Qwen2.5-0.5B"),
        ("some model/with spaces.v1", "with-spaces.v1"),
        ("v1.json", "v1.json"),
        ("org/..hidden..", "hidden"),
        ("Wörter/größe", "größe"),
        ("org/***", "unnamed"),
        ("org/nul", "_nul"),
        ("org/Com1.2b", "_Com1.2b"),
        ("org/figures", "figures-2"),
        ("org/Report.html", "Report.html-2"),
        ("org/robustness.csv", "robustness.csv-2"),
    ],
)
def test_a_models_name_is_kept_whole(model: str, name: str) -> None:
    assert one(model) == name


def test_a_file_of_facts_loses_its_kind_alone() -> None:
    names = short_names(["a/facts.v1.jsonl", "b/trex-2.1", "templama_train.JSON"], files=True)
    assert names == ["facts.v1", "trex-2.1", "templama_train"]


def test_a_path_of_dots_is_named_as_the_folder_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "Llama-3.2-1B" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert short_names(["..", "."]) == ["Llama-3.2-1B", "inner"]
    assert short_names(["/"]) == ["unnamed"]


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["a/m", "b/m", "c/m"], ["m", "m-2", "m-3"]),
        (["m", "x/m", "m-2"], ["m", "m-2", "m-2-2"]),
        (["Llama", "llama"], ["Llama", "llama-2"]),
        (["caf\u00e9", "cafe\u0301"], ["caf\u00e9", "caf\u00e9-2"]),
        (["x" * 300 + "1", "x" * 300 + "2"], ["x" * 80, "x" * 80 + "-2"]),
    ],
)
def test_two_models_never_have_one_name(models: list[str], names: list[str]) -> None:
    assert short_names(models) == names


def test_parts_of_labels_do_not_run_together() -> None:
    """``a`` with ``x-y`` and ``a-x`` with ``y``."""
    found = labels(["a", "a-x"], ["x-y.jsonl", "y.jsonl"], ["default"])
    assert found[0, 0, "default"] == "a-x-y"
    assert found[1, 1, "default"] == "a-x-y-2"
    assert len(set(found.values())) == len(found) == 4


def test_labels_hold_what_differs_and_always_the_model() -> None:
    assert list(labels(["a/b"], ["x.jsonl"], ["default"]).values()) == ["b"]
    same = labels(["a/m", "b/m"], ["x.jsonl", "y.jsonl"], ["default", "paper"])
    assert list(same.values()) == [
        "-".join(parts)
        for parts in itertools.product(("m", "m-2"), ("x", "y"), ("default", "paper"))
    ]


@pytest.mark.parametrize(
    "model", ["..", "a/..", ".", "", "/", "../..", "...", "a\\..", "\n", "a/\0"]
)
def test_a_label_is_one_part_of_a_path(model: str) -> None:
    name = one(model)
    assert name not in {"", ".", ".."}
    assert not set(name) & {"/", "\\", "\0", "\n"}
    assert os.path.normpath(f"out/{name}") == f"out/{name}"
