"""Baseline activations x': masked (AMIG), zero, or given."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dkn_engine.attribution.sites import site_activation
from dkn_engine.forward.contexts import Contexts, by_position
from dkn_engine.forward.head import layer_inputs
from dkn_engine.forward.patched_rows import RowEngine
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.forward.prefill import Prefill
from dkn_engine.forward.routing import Routing, frozen
from dkn_engine.forward.row_blocks import Block, pad_block
from dkn_engine.forward.row_check import Check
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.devices import at
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout

# Rows of a block entry: enough to fill a product of matrices, few enough that the rows' attention
# to one another, most of it masked, costs little beside it.
BLOCK_ROWS = 128
# Shared prefixes halve the products with a layer's weights, but the rows of a block attend to one
# another in several steps, in every head. With fewer weights a head than this whole copies are
# faster: at 1,100 (tiny models) 2 to 5 times, for prompts of 8 to 200 tokens; at 49,000 neither is
# throughout, at 147,000 shared prefixes nearly always (docs/kernels.md).
_WEIGHTS_PER_HEAD = 40_000


class Copy(NamedTuple):
    """A sequence's positions ``first`` to ``last``, its token at ``first`` masked or as it is.

    ``readers`` are the sequences of the chunk whose contexts are read off it: the sequence itself,
    and others that it begins with.
    """

    sequence: int
    first: int
    last: int
    readers: tuple[int, ...]
    masked: bool = True

    @property
    def n_rows(self) -> int:
        return self.last - self.first + 1


def shared_copies(contexts: Contexts, most: int | None, apart: Collection[int] = ()) -> list[Copy]:
    """The masked copies of a chunk, one for all sequences that read the same up to their ends.

    So statements of two answers share those of their prompt, and a longer answer's serve all but
    the sequences that are ``apart``, which read their own.
    """
    ends = contexts.ends().tolist()
    read = [tuple(ids[: end + 1]) for ids, end in zip(contexts.ids.tolist(), ends, strict=True)]
    readers: dict[tuple[int, int], list[int]] = {}
    longest_first = sorted(range(len(read)), key=lambda b: (-ends[b], b))
    for i, b in enumerate(longest_first):
        others = [] if b in apart else longest_first[:i]
        longer = [o for o in others if o not in apart and read[o][: len(read[b])] == read[b]]
        for j in masked_positions(contexts.maskable(b), most):
            owner = next((o for o in longer if (o, j) in readers), b)
            readers.setdefault((owner, j), []).append(b)
    return [Copy(b, j, ends[b], tuple(some)) for (b, j), some in sorted(readers.items())]


def masked_positions(maskable: Sequence[int], most: int | None) -> list[int]:
    """Which of a prompt's tokens are masked, ascending: all, or ``most`` spread evenly over it."""
    n = len(maskable)
    if most is None or most >= n:
        return list(maskable)
    return [maskable[(2 * i + 1) * n // (2 * most)] for i in range(most)]


def prefixes_pay(layout: Layout, clean: Prefill) -> bool:
    """Whether the masked copies of this model are cheaper with shared prefixes than whole."""
    keys = clean.keys[-1]
    if keys is None:
        return False
    weights = sum(p.numel() for p in layout.layers[-1].parameters())
    return weights >= _WEIGHTS_PER_HEAD * layout.d_model / keys.shape[-1]


def masked_rows(contexts: Contexts, most: int | None, shared: bool) -> int:
    """Positions of all masked copies of a chunk, if ``shared`` each from its masked token on."""
    if shared:
        return sum(copy.n_rows for copy in shared_copies(contexts, most))
    n_copies = [len(masked_positions(contexts.maskable(b), most)) for b in range(len(contexts.ids))]
    return sum(n_copies) * contexts.ids.shape[1]


@torch.no_grad()
def masked_baselines(
    model: nn.Module,
    layout: Layout,
    contexts: Contexts,
    site: str,
    mask_id: int,
    max_tokens: int,
    most: int | None = None,
    routing: Routing | None = None,
) -> Tensor:
    """Mean activation ``[C, L, F]`` at each context with prompt tokens masked in turn.

    Every token of a prompt, or ``most`` of them (:func:`masked_positions`), never forced answer
    tokens nor an encoder's masks for the answer. One forward pass of the model over whole masked
    copies gives all layers; copies are batched so that at most ``max_tokens`` positions are in a
    forward, fewer where the device's memory does not hold them. This is the plain form of
    :func:`shared_masked_baselines`, for models without rows and for small ones
    (:func:`prefixes_pay`). With ``routing`` of the contexts, mixtures of experts keep to it at
    their positions.
    Source: AMIG baselines of Chen et al. 2024 (arXiv 2308.13198), as the design defines them.
    """
    n = len(contexts.ids)
    copies = [(b, j) for b in range(n) for j in masked_positions(contexts.maskable(b), most)]
    dtype = next(model.parameters()).dtype
    total = _zeros(contexts, layout, dtype)

    def add(start: int, stop: int) -> None:
        some = copies[start:stop]
        total.add_(_masked_sum(model, layout, contexts, site, mask_id, some, dtype, routing))

    in_batches(len(copies), max(1, max_tokens // contexts.n_read), add)
    return _mean(total, contexts, most)


def _zeros(contexts: Contexts, layout: Layout, dtype: torch.dtype) -> Tensor:
    """``[C, L, F]`` in at least float32, to sum activations of ``dtype`` in."""
    shape = (len(contexts), layout.n_layers, layout.width)
    wide = torch.promote_types(dtype, torch.float32)
    return torch.zeros(shape, dtype=wide, device=contexts.ids.device)


def _mean(total: Tensor, contexts: Contexts, most: int | None) -> Tensor:
    """Sums over the masked copies of a prompt, divided by their number."""
    n_copies = [len(masked_positions(contexts.maskable(b), most)) for b in range(len(contexts.ids))]
    counts = torch.tensor(n_copies, dtype=total.dtype, device=total.device)
    return total / counts[contexts.sequence].view(-1, 1, 1)


def _masked_sum(
    model: nn.Module,
    layout: Layout,
    contexts: Contexts,
    site: str,
    mask_id: int,
    copies: list[tuple[int, int]],
    dtype: torch.dtype,
    routing: Routing | None,
) -> Tensor:
    """Activations ``[C, L, F]`` summed over copies (sequence, masked position)."""
    device, found = contexts.ids.device, _zeros(contexts, layout, dtype)
    sequence, masked = torch.tensor(copies, device=device).T
    entry = torch.arange(len(copies), device=device)
    shape = (len(copies), contexts.ids.shape[1])
    # Pairs (copy, context) with the context in that copy's sequence.
    pairs = torch.nonzero(sequence.unsqueeze(1) == contexts.sequence.unsqueeze(0))
    copy, context = pairs[:, 0], pairs[:, 1]
    position = contexts.at[context]

    def keep(layer: int, activation: Tensor) -> None:
        x = at(by_position(activation, shape), copy, position)
        found[:, layer, : x.shape[-1]].index_add_(0, context, x.to(found))

    watching = hooks([mlp.watch(site, partial(keep, i)) for i, mlp in enumerate(layout.mlps)])
    token = copy * shape[1] + position
    with watching, frozen(layout, routing, token, context):
        # The whole model, since what is around its decoder may add to what the decoder sees; of
        # the logits, which nobody reads, as few as it can be asked for.
        inputs = contexts.masked(sequence, masked, mask_id)
        position_logits(model, inputs, entry[:1], entry[:1])
    return found


@torch.no_grad()
def shared_masked_baselines(
    engine: RowEngine,
    site: str,
    mask_id: int,
    max_tokens: int,
    most: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Tensor:
    """:func:`masked_baselines` with the prefix in front of each masked token computed once.

    A copy is only its positions from the masked token to the last answer position: half the work
    for a prompt of any length. See ``forward/row_blocks.py``. Sequences that read the same have
    copies in common (:func:`shared_copies`). Beside them goes a short copy with nothing masked, in
    which every layer must return what the model's own forward had there.

    At most ``max_tokens`` rows are in one pass, at most ``block_rows`` in a block entry.

    Raises:
        SweepUnsupported: the copy with nothing masked does not reproduce the model's own forward.
    """
    _check_inputs(engine, mask_id)
    contexts = engine.contexts
    copies = shared_copies(contexts, most)
    total = _sum_of(engine, site, mask_id, max_tokens, copies, block_rows)
    # Weights of 0 do not keep out what is no number behind the end of a sequence, in a copy that
    # a longer one has lent it.
    borrowing = {b for copy in copies for b in copy.readers if b != copy.sequence}
    finite = total.flatten(1).isfinite().all(1).tolist()
    spoilt = borrowing & {
        b for b, ok in zip(contexts.sequence.tolist(), finite, strict=True) if not ok
    }
    if spoilt:
        own = [copy for copy in shared_copies(contexts, most, spoilt) if copy.sequence in spoilt]
        at_own = torch.isin(contexts.sequence, torch.tensor([*spoilt], device=total.device))
        total[at_own] = _sum_of(engine, site, mask_id, max_tokens, own, block_rows)[at_own]
    return _mean(total, contexts, most)


def _sum_of(
    engine: RowEngine,
    site: str,
    mask_id: int,
    max_tokens: int,
    shared: Sequence[Copy],
    block_rows: int,
) -> Tensor:
    """Activations ``[C, L, F]`` at each context summed over the masked copies that it reads."""
    contexts, (value, _) = engine.contexts, site_activation(engine.layout, engine.clean, site)
    total = _zeros(contexts, engine.layout, engine.clean.post.dtype)
    entries = _entries(contexts, shared, block_rows)
    while entries:
        # Entries of a pass are padded to the longest, which is the first.
        n = max(1, max_tokens // _rows_of(entries[0]))
        copies = [(i, copy) for i, entry in enumerate(entries[:n]) for copy in entry]
        entries = entries[n:]

        def add(start: int, stop: int, copies: list[tuple[int, Copy]] = copies) -> None:
            grouped = groupby(copies[start:stop], key=lambda numbered: numbered[0])
            some = [[copy for _, copy in entry] for _, entry in grouped]
            total.add_(_block_sum(engine, site, mask_id, some, value))

        fitted = in_batches(len(copies), len(copies), add)
        max_tokens = max_tokens * fitted // len(copies)
    return total


def _check_inputs(engine: RowEngine, mask_id: int) -> None:
    """Require that the decoder alone feeds its first layer what the whole model does.

    As they are, in the model's own clean pass, and with the last prompt token of each masked.
    """
    layout, ids = engine.layout, engine.contexts.ids
    check = Check(engine, engine.contexts.sequence[:0])
    check.note(layer_inputs(layout, ids), next(iter(engine.clean.calls[0].arguments.values())))
    masked = ids.clone()
    last = torch.tensor(engine.contexts.n_prompt, device=ids.device) - 1
    masked[torch.arange(len(masked), device=ids.device), last] = mask_id
    check.note(layer_inputs(layout, masked), layer_inputs(layout, masked, whole=True))
    check.require(lambda _: "enter the first layer, in masked copies,")


def _entries(contexts: Contexts, shared: Sequence[Copy], block_rows: int) -> list[list[Copy]]:
    """Copies, a few of one sequence to an entry, the longest entry first.

    Beside them goes one of the shortest sequence with nothing masked.
    """
    shortest = min(range(len(contexts.n_prompt)), key=lambda b: contexts.n_prompt[b])
    end, n_prompt = int(contexts.ends()[shortest]), contexts.n_prompt[shortest]
    unmasked = Copy(shortest, max(0, n_prompt - 2), end, (shortest,), masked=False)
    by_sequence = sorted([*shared, unmasked], key=lambda c: c.sequence)
    entries: list[list[Copy]] = []
    for _, copies in groupby(by_sequence, key=lambda copy: copy.sequence):
        entries.extend(_evenly(list(copies), block_rows))
    # Those of one length go together.
    return sorted(entries, key=_rows_of, reverse=True)


def _evenly(copies: list[Copy], block_rows: int) -> list[list[Copy]]:
    """Copies in as few entries as ``block_rows`` allows, and these about equally long.

    Entries are padded to the longest: one of 256 rows and one of 44 would cost 512.
    """
    fewest = len(_filled(copies, block_rows))
    limits = range(1, block_rows + 1)
    enough = bisect_left(limits, True, key=lambda limit: len(_filled(copies, limit)) <= fewest)
    return _filled(copies, limits[enough])


def _filled(copies: list[Copy], limit: int) -> list[list[Copy]]:
    """Copies in their order, to each entry as many as have ``limit`` rows, or one."""
    entries: list[list[Copy]] = []
    room = 0
    for copy in copies:
        if not entries or copy.n_rows > room:
            entries.append([])
            room = limit
        entries[-1].append(copy)
        room -= copy.n_rows
    return entries


def _rows_of(entry: list[Copy]) -> int:
    return sum(copy.n_rows for copy in entry)


def _block_sum(
    engine: RowEngine, site: str, mask_id: int, entries: list[list[Copy]], value: Tensor
) -> Tensor:
    """Activations ``[C, L, F]`` summed over the entries' masked copies.

    A copy with nothing masked must have the clean activations, which are ``value`` ``[C, L, F]``.
    """
    device = value.device
    found = _zeros(engine.contexts, engine.layout, value.dtype)
    block = pad_block([[copy[:3] for copy in entry] for entry in entries], device)
    copies = [copy for entry in entries for copy in entry]
    masked = torch.tensor([copy.masked for copy in copies], device=device)
    at_copy = _numbered(block, entries)
    hidden = layer_inputs(engine.layout, _masked_ids(engine.contexts, copies, mask_id))
    hidden = at(hidden, at_copy, block.position)
    entry, row, context = _context_rows(engine.contexts, block, copies, at_copy)
    counts = masked[at_copy[entry, row]]
    n_masked = int(counts.sum())
    check = Check(engine, context[~counts])

    def keep(layer: int, activation: Tensor) -> None:
        x = at(by_position(activation, block.copy.shape), entry, row).to(device)
        width = x.shape[-1]
        found[:, layer, :width].index_add_(0, context[counts], x[counts].to(found.dtype))
        if len(x) > n_masked:
            plain = context[~counts]
            own = value[plain, layer, :width]
            # What is not a number in a masked copy reaches the one beside it, though it has no
            # weight there. Such a baseline is none either way, and told of as such.
            spoilt = ~found[plain, layer].isfinite().all(-1, keepdim=True)
            check.note(x[~counts], own.masked_fill(spoilt, torch.nan))

    with engine.active():
        for layer, mlp in enumerate(engine.layout.mlps):
            with hooks([mlp.watch(site, partial(keep, layer))]):
                hidden = engine.run_layer(layer, hidden, block)
    check.require(lambda layer: f"beside those of masked copies leave the MLP of layer {layer}")
    return found


def _numbered(block: Block, entries: list[list[Copy]]) -> Tensor:
    """int64 ``[E, N]``: the copy of each row among those of all entries (padding: the first)."""
    sizes = [0, *(len(entry) for entry in entries[:-1])]
    first = torch.tensor(sizes, device=block.copy.device).cumsum(0)
    return first.unsqueeze(1) + block.copy.clamp(min=0)


def _masked_ids(contexts: Contexts, copies: list[Copy], mask_id: int) -> Tensor:
    """Tokens ``[n, T]`` of whole copies, since the first layer's inputs may hold positions."""
    device = contexts.ids.device
    sequence, first = torch.tensor([copy[:2] for copy in copies], device=device).T
    masked = torch.tensor([copy.masked for copy in copies], device=device)
    ids, row = contexts.ids[sequence], torch.arange(len(copies), device=device)
    ids[row[masked], first[masked]] = mask_id
    return ids


def _context_rows(
    contexts: Contexts, block: Block, copies: list[Copy], at_copy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Entry, row and context, ``[n]`` each, of every row that a context is read off.

    It stands at the context's position, in a copy that the context's sequence reads.
    """
    reads = torch.zeros(len(copies), len(contexts.n_prompt), dtype=torch.bool)
    for k, copy in enumerate(copies):
        reads[k, list(copy.readers)] = True
    reads = reads.to(contexts.ids.device)[:, contexts.sequence]  # [copies, C]
    wanted = (
        (block.copy.unsqueeze(-1) >= 0)
        & reads[at_copy]
        & (block.position.unsqueeze(-1) == contexts.position)
    )
    entry, row, context = wanted.nonzero(as_tuple=True)
    return entry, row, context
