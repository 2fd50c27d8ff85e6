"""Masked baselines with shared prefixes are those of whole masked copies, however they are cut."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dkn_engine.attribution import chunk
from dkn_engine.attribution.baselines import (
    BLOCK_ROWS,
    Copy,
    _evenly,
    _filled,
    masked_baselines,
    masked_positions,
    masked_rows,
    prefixes_pay,
    shared_copies,
    shared_masked_baselines,
)
from dkn_engine.attribution.chunk import warn_of_cost
from dkn_engine.forward.contexts import AnswerSequence, build_contexts, scored_contexts
from dkn_engine.forward.patched_rows import RowEngine
from dkn_engine.forward.prefill import prefill
from dkn_engine.forward.row_blocks import pad_block
from dkn_engine.forward.row_check import checked_rows
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import attributed, fixed
from tests.support.tiny import MASK_ID, relative_error, sequence, tiny

FAMILIES = ("gpt2", "llama", "gemma2", "phi3")
MIXED = [sequence(9, 1), sequence(4, 3, seed=1), sequence(1, 2, seed=2)]


def stated(prompt: AnswerSequence, *answer: int) -> AnswerSequence:
    ids = prompt.ids[: prompt.n_prompt]
    return AnswerSequence(ids + answer[:-1], len(ids), answer)


# Statements about two prompts, and a prompt that begins as one of the statements does.
ABOUT = [sequence(6, 1, seed=3), sequence(4, 1, seed=4)]
STATED = [
    stated(ABOUT[0], 9),
    stated(ABOUT[1], 9),
    stated(ABOUT[0], 5, 6, 7),
    stated(ABOUT[0], 5, 8),
    stated(ABOUT[0], 11, 6),
    stated(ABOUT[1], 7),
    AnswerSequence((*ABOUT[0].ids, 5, 6), 8, (3,)),
]


@pytest.fixture(params=FAMILIES)
def engine(request: pytest.FixtureRequest) -> Iterator[RowEngine]:
    yield from rows_of(tiny(request.param))


def rows_of(
    model: Any, sequences: Sequence[AnswerSequence] = MIXED, masked_tokens: str = "prompt"
) -> Iterator[RowEngine]:
    layout = find_layout(model)
    contexts = scored_contexts(sequences, torch.device("cpu"), masked_tokens)
    with guest(model, grad=True):
        clean = prefill(model, layout, contexts)
        yield checked_rows(model, layout, contexts, clean, "auto")


def both(
    engine: RowEngine, site: str, max_tokens: int, block_rows: int = BLOCK_ROWS
) -> tuple[torch.Tensor, torch.Tensor]:
    plain = masked_baselines(engine.model, engine.layout, engine.contexts, site, MASK_ID, 10_000)
    shared = shared_masked_baselines(engine, site, MASK_ID, max_tokens, block_rows=block_rows)
    return shared, plain


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize(("block_rows", "max_tokens"), [(256, 4096), (10, 20), (1, 1)])
def test_shared_prefixes_change_nothing(
    engine: RowEngine, site: str, block_rows: int, max_tokens: int
) -> None:
    shared, plain = both(engine, site, max_tokens, block_rows)
    assert shared.shape == plain.shape
    # Gemma 2's own attention rounds its weights to float32; ours keeps float64.
    rounds = "Gemma2" in type(engine.model).__name__
    assert relative_error(shared, plain) < (1.2e-6 if rounds else 1e-10)


def test_window_smaller_than_the_prompt() -> None:
    model = tiny("mistral", sliding_window=4)
    for engine in rows_of(model):
        shared, plain = both(engine, "post", 4096)
        assert relative_error(shared, plain) < 1e-10


def test_only_the_changed_positions_are_rows(engine: RowEngine) -> None:
    """78 rows instead of 144 for a prompt of 12 tokens, and one copy with nothing masked.

    The sweep's own counter is left alone.
    """
    before = engine.row_layers
    seen: list[int] = []
    layer = engine.layout.layers[0]
    handle = layer.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].shape[:2].numel())
    )
    shared_masked_baselines(engine, "post", MASK_ID, 1)  # one entry a pass, so no padding
    handle.remove()
    n = [(len(s.ids), s.n_prompt) for s in MIXED]
    unmasked = len(MIXED[2].ids)  # of the shortest prompt
    masked = sum(length - j for length, n_prompt in n for j in range(n_prompt))
    assert sum(seen) == masked + unmasked
    assert engine.row_layers == before


@pytest.mark.parametrize("masked_tokens", ["prompt", "all"])
@pytest.mark.parametrize(("block_rows", "max_tokens"), [(256, 4096), (10, 20), (1, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_reads_the_same_shares_its_copies(
    name: str, block_rows: int, max_tokens: int, masked_tokens: str
) -> None:
    for most in (None, 3):
        for engine in rows_of(tiny(name), STATED, masked_tokens):
            whole = (engine.model, engine.layout, engine.contexts)
            plain = masked_baselines(*whole, "post", MASK_ID, 10_000, most)
            shared = shared_masked_baselines(
                engine, "post", MASK_ID, max_tokens, most, block_rows=block_rows
            )
            rounds = "Gemma2" in type(engine.model).__name__
            assert relative_error(shared, plain) < (1.2e-6 if rounds else 1e-10)


def test_the_longest_makes_the_copies_and_all_that_begin_it_read_them() -> None:
    contexts = build_contexts(STATED, torch.device("cpu"))
    copies = shared_copies(contexts, None)
    readers = {b: {c.readers for c in copies if c.sequence == b} for b in range(len(STATED))}
    # Their last tokens are not read. Behind the first prompt all but (11, 6) begin (5, 6, 7), and
    # so does the longest prompt, two more of whose tokens are masked.
    assert readers == {
        0: set(),
        1: {(1, 5)},
        2: {(2, 6, 3, 0)},
        3: set(),
        4: {(4,)},
        5: set(),
        6: {(6,)},
    }
    masked = {b: [c.first for c in copies if c.sequence == b] for b in (1, 2, 4, 6)}
    assert masked == {1: [0, 1, 2, 3], 2: [0, 1, 2, 3, 4, 5], 4: [0, 1, 2, 3, 4, 5], 6: [6, 7]}
    assert masked_rows(contexts, None, shared=True) == sum(c.n_rows for c in copies)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_no_number_is_not_lent(name: str) -> None:
    """A longer answer's copies serve a shorter one's; what the longer one goes on with does not."""
    prompt, bad = ABOUT[0], 5
    some = [stated(prompt, 9), stated(prompt, bad, 7), stated(ABOUT[1], 9)]
    assert not any(bad in one.ids for one in (prompt, *ABOUT))
    model = tiny(name, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = torch.nan
    for engine in rows_of(model, some):
        plain = masked_baselines(engine.model, engine.layout, engine.contexts, "post", MASK_ID, 999)
        shared = shared_masked_baselines(engine, "post", MASK_ID, 999)
        sound = engine.contexts.sequence != 1
        assert shared[~sound].isnan().any()
        rounds = "Gemma2" in type(engine.model).__name__
        assert relative_error(shared[sound], plain[sound]) < (1.2e-6 if rounds else 1e-10)


def test_mask_of_a_block() -> None:
    """Two copies of a sequence of four, masked at 1 and at 3, and an entry with one row."""
    block = pad_block([[(0, 1, 3), (0, 3, 3)], [(1, 0, 0)]], torch.device("cpu"))
    found = block.mask(length=4, window=None)
    assert found.shape == (2, 4, 8)
    expected = [
        "1000 1000",  # position 1 of the first copy: what is before 1, and itself
        "1000 1100",
        "1000 1110",
        "1110 0001",  # position 3 of the second copy
    ]
    assert [as_text(row) for row in found[0]] == expected
    assert [as_text(row) for row in found[1]] == [
        "0000 1000",
        "0000 0100",
        "0000 0010",
        "0000 0001",
    ]
    windowed = block.mask(length=4, window=2)
    assert [as_text(row) for row in windowed[0]] == [
        "1000 1000",
        "0000 1100",
        "0000 0110",
        "0010 0001",
    ]


def as_text(row: torch.Tensor) -> str:
    bits = "".join("1" if b else "0" for b in row.tolist())
    return f"{bits[:4]} {bits[4:]}"


def test_tokens_that_are_masked_are_spread_evenly() -> None:
    assert masked_positions(range(5), None) == masked_positions(range(5), 9)
    assert masked_positions(range(5), 5) == [0, 1, 2, 3, 4]
    assert masked_positions([*range(8), 20], 3) == [1, 4, 7]
    assert masked_positions(range(9), 1) == [4]
    for n in range(1, 40):
        for most in range(1, n):
            found = masked_positions(range(n), most)
            assert len(set(found)) == most
            assert 0 <= found[0] <= found[-1] < n
            gaps = {b - a for a, b in itertools.pairwise(found)}
            assert len(gaps) <= 2
            assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_some_tokens_masked(engine: RowEngine) -> None:
    """By rows, by whole copies, and by hand: the mean over the copies that are made."""
    layout, contexts = engine.layout, engine.contexts
    shared = shared_masked_baselines(engine, "post", MASK_ID, 4096, 2)
    plain = masked_baselines(engine.model, layout, contexts, "post", MASK_ID, 10_000, 2)
    rounds = "Gemma2" in type(engine.model).__name__
    assert relative_error(shared, plain) < (1.2e-6 if rounds else 1e-10)
    ids = torch.tensor([MIXED[0].ids]).repeat(2, 1)
    ids[0, 2] = ids[1, 6] = MASK_ID  # of nine
    seen: list[torch.Tensor] = []
    handle = layout.mlps[1].down.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        engine.model(input_ids=ids)
    handle.remove()
    assert relative_error(plain[0, 1], seen[0].view(2, 9, -1)[:, -1].mean(0)) < 1e-10


@pytest.mark.parametrize("most", [None, 3])
def test_cost_is_the_number_of_rows(engine: RowEngine, most: int | None) -> None:
    seen: list[int] = []
    layer = engine.layout.layers[0]
    handle = layer.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].shape[:2].numel())
    )
    shared_masked_baselines(engine, "post", MASK_ID, 1, most)
    unmasked = len(MIXED[2].ids)
    assert sum(seen) == masked_rows(engine.contexts, most, shared=True) + unmasked
    seen.clear()
    whole = (engine.model, engine.layout, engine.contexts)
    masked_baselines(*whole, "post", MASK_ID, 10_000, most)
    handle.remove()
    assert sum(seen) == masked_rows(engine.contexts, most, shared=False)


@pytest.mark.parametrize("block_rows", [1, 7, 64, 256])
@pytest.mark.parametrize("n", [1, 9, 24, 60])
def test_entries_are_as_few_as_before_and_as_even_as_can_be(n: int, block_rows: int) -> None:
    """Every copy once and in order; nothing shorter holds them in as few entries."""
    copies = [Copy(0, j, n - 1, (0,)) for j in range(n)]
    entries = _evenly(copies, block_rows)
    assert [copy for entry in entries for copy in entry] == copies
    assert len(entries) == len(_filled(copies, block_rows))
    rows = [sum(copy.n_rows for copy in entry) for entry in entries]
    assert max(rows) <= max(block_rows, n)
    if max(rows) > n:
        assert len(_filled(copies, max(rows) - 1)) > len(entries)


@pytest.mark.parametrize(("width", "pays"), [(32, False), (512, True)])
def test_prefixes_are_shared_where_layers_are_large(width: int, pays: bool) -> None:
    """By weights a head; a model whose attention keeps no keys has no prefixes to share."""
    model = tiny("gpt2", n_embd=width, n_inner=4 * width, n_layer=1)
    layout = find_layout(model)
    contexts = build_contexts(MIXED, torch.device("cpu"))
    with guest(model, grad=True):
        clean = prefill(model, layout, contexts)
    assert prefixes_pay(layout, clean) == pays
    assert not prefixes_pay(layout, replace(clean, keys=[None]))


@pytest.mark.parametrize("pays", [True, False])
def test_attribution_is_the_same_whether_prefixes_are_shared(
    pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores() -> torch.Tensor:
        return torch.from_numpy(attributed("llama", model, fixed(), MIXED).scores)

    model = tiny("llama")
    expected = scores()
    monkeypatch.setattr(chunk, "prefixes_pay", lambda *_: pays)
    assert relative_error(scores(), expected) < 1e-10


def test_long_prompts_say_how_long_they_take() -> None:
    contexts = build_contexts([sequence(99, 1)], torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"99 masked copies of 1 prompts of up to 99 .* 8 min; "):
        warn_of_cost(contexts, None, 0.1, shared=True)  # 99 * 100 / 2 positions
    with pytest.warns(UserWarning, match=r"99 masked copies of 1 prompts .* 16 min; "):
        warn_of_cost(contexts, None, 0.1, shared=False)  # 99 * 99
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cost(contexts, None, 0.01, shared=True)
        warn_of_cost(contexts, 10, 0.1, shared=True)
