"""``--device-map`` and ``--dequantize``: what they load gives what the plain model gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import dkn_engine as dkn
from dkn_engine.cli.main import main
from dkn_engine.config import Config
from dkn_engine.facts import write_facts
from dkn_engine.run.workers.job import ChunkWorker, Job
from tests.models.test_offloaded import layers_on
from tests.support.saved import many_facts, save_tiny
from tests.support.tiny import relative_error
from tests.support.tiny_encoders import tiny_encoder
from tests.support.words import words_tokenizer

# The same numbers in float32, multiplied by other functions: some tens of rounding steps.
FLOAT32 = 100 * float(torch.finfo(torch.float32).eps)
Found = Sequence[dkn.FactResult]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def facts(folder: Path) -> list[dkn.Fact]:
    return many_facts(dkn.load_model(folder, "cpu")[0], 4)


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in nf4, saved as its library saves it."""
    pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    saved = tmp_path_factory.mktemp("nf4")
    model.save_pretrained(saved)
    words_tokenizer().save_pretrained(saved)
    return saved


def found(model: Path, facts: list[dkn.Fact], out: Path, *options: str) -> Found:
    """What the program finds."""
    file = out.with_suffix(".jsonl")
    write_facts(file, facts)
    told = ["find", "--model", str(model), "--facts", str(file), "--out", str(out), *options]
    assert main([*told, "--no-report", "--quiet"]) == 0
    return dkn.read_results(out)


def assert_same(found: Found, expected: Found) -> None:
    assert [r.status for r in found] == [r.status for r in expected]
    assert "ok" in {r.status for r in expected}
    for one, other in zip(found, expected, strict=True):
        assert one.neurons.tolist() == other.neurons.tolist()
        if len(other.neurons):
            assert relative_error(one.scores, other.scores) < FLOAT32


@pytest.mark.filterwarnings("ignore:.*are offloaded")
@pytest.mark.parametrize("where", ["auto", "disk"])
def test_a_map_of_devices(
    folder: Path, facts: list[dkn.Fact], tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load = dkn.models.load.load_model

    def keep(*args: Any, **told: Any) -> Any:
        loaded.append(load(*args, **told))
        return loaded[-1]

    monkeypatch.setattr("dkn_engine.models.load.load_model", keep)
    if where == "disk":
        where = str(tmp_path / "map.json")
        Path(where).write_text(json.dumps(layers_on("disk")), encoding="utf-8")
    expected = dkn.find_dkns(*load(folder, "cpu"), facts)
    assert_same(found(folder, facts, tmp_path / "run", "--device-map", where), expected)
    ((model, _),) = loaded
    places = {p.device.type for p in model.parameters()}
    assert places == ({"cpu"} if where == "auto" else {"cpu", "meta"})


def test_unpacked_weights(packed: Path, facts: list[dkn.Fact], tmp_path: Path) -> None:
    expected = dkn.find_dkns(*dkn.load_model(packed, "cpu", dequantize=True), facts)
    told = ("--dequantize", "--device", "cpu")
    assert_same(found(packed, facts, tmp_path / "run", *told), expected)


def test_a_worker_unpacks_too(packed: Path) -> None:
    threads = torch.get_num_threads()
    spec = dkn.ModelSpec(packed, "cpu", threads=threads, dequantize=True)
    model = ChunkWorker(Job(spec, Config(), ())).model
    assert type(model.get_submodule("model.layers.0.mlp.down_proj")) is nn.Linear


def test_layers_that_share_weights_are_not_spread(tmp_path: Path) -> None:
    tiny_encoder("albert", torch.float32, num_hidden_groups=1).save_pretrained(tmp_path)
    words_tokenizer().save_pretrained(tmp_path)
    places = {"albert.embeddings": "cpu", "albert.encoder": "disk", "predictions": "cpu"}
    with pytest.raises(dkn.UserError, match="share their weights: load it without device_map"):
        dkn.load_model(tmp_path, device_map=places)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"device_map": "moon"},
            "device_map must be auto, balanced, .* for each module; got 'moon'",
        ),
        ({"device": "cpu", "device_map": "auto"}, "without a device, got 'cpu'"),
        ({"dequantize": True, "device_map": "auto"}, "unpacks weights onto one device: save the"),
    ],
    ids=["unknown", "device", "dequantize"],
)
def test_what_excludes_one_another_is_told(folder: Path, told: Any, message: str) -> None:
    with pytest.raises(dkn.UserError, match=message):
        dkn.load_model(folder, **told)
