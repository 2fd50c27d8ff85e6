"""Which sequences may be padded to one length: some models read a position by the longest of all.

LongRoPE (Phi-3) takes other frequencies for every position as soon as one sequence is longer than
the original context; others scale with the length. Padded beside a longer one, a short sequence
would get another model than alone. Whether that is so is seen from the model's own forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.forward.prefill import POSITION_ARGUMENTS
from dkn_engine.models.devices import input_device
from dkn_engine.models.guest import guest, hooks
from dkn_engine.models.kinds import is_encoder
from dkn_engine.models.layout import find_layout
from dkn_engine.models.model_lock import locked
from dkn_engine.models.torch_internals import floating_tensors

# Of each model, pairs of lengths of which the shorter was read as in the longer. What lies between
# two such lengths is read like both.
_alike: WeakKeyDictionary[nn.Module, list[tuple[int, int]]] = WeakKeyDictionary()


def length_groups(model: nn.Module, lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences in groups that may be padded to a length of their own.

    In an encoder every token sees the padding, so only equal lengths go together. In a decoder a
    sequence of ``lengths[i]`` tokens, padded on the right to the longest of its group, gets the
    keys, values and hidden states that it gets alone. A model is asked by two short forwards for
    each range of lengths that is new; it is left as it was found.

    Args:
        model: a causal decoder, or an encoder.
        lengths: of the sequences, in tokens; each at least 1.

    Returns:
        Groups of ascending indices, which together are all; one group for ordinary models.
    """
    groups, rest = [], sorted(set(lengths))
    if is_encoder(model):
        return [[i for i, n in enumerate(lengths) if n == length] for length in rest]
    # Forwards of other threads would run through the hooks that watch the model's own.
    with locked(model):
        while rest:
            together = set(rest)
            if not _are_alike(model, rest[0], rest[-1]):
                together = {n for n in rest if _are_alike(model, n, rest[-1])}
            groups.append([i for i, n in enumerate(lengths) if n in together])
            rest = [n for n in rest if n not in together]
    return groups


def padded_batches(
    model: nn.Module, lengths: Sequence[int], most_positions: int
) -> Iterator[list[int]]:
    """Indices of sequences in batches of like lengths, the longest first, so that little is padded.

    A batch has at most ``most_positions`` positions, padding included, or one sequence. Other
    arguments as of :func:`length_groups`.
    """
    for group in length_groups(model, lengths):
        rest = sorted(group, key=lambda i: (lengths[i], -i))
        while rest:
            n = max(1, most_positions // lengths[rest[-1]])
            yield rest[: -n - 1 : -1]
            del rest[-n:]


def sequence_groups(model: nn.Module, sequences: Sequence[AnswerSequence]) -> list[list[int]]:
    """:func:`length_groups` of sequences; an encoder in front reads as many tokens of each."""
    groups = []
    for n in sorted({len(one.source) for one in sequences}):
        index = [i for i, one in enumerate(sequences) if len(one.source) == n]
        some = length_groups(model, [len(sequences[i].ids) for i in index])
        groups += [[index[i] for i in group] for group in some]
    return groups


def _are_alike(model: nn.Module, short: int, long: int) -> bool:
    known = _alike.setdefault(model, [])
    if short == long or any(a <= short and long <= b for a, b in known):
        return True
    alike = _reads_alike(model, short, long)
    if alike:
        known.append((short, long))
    return alike


def _reads_alike(model: nn.Module, short: int, long: int) -> bool:
    """Whether ``short`` tokens enter every layer as they do in front of others, ``long`` in all."""
    parameter = next(model.parameters())
    vocabulary: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    # Tokens that differ, or attention would give the same whatever the positions are.
    ids = torch.arange(long, device=input_device(model)).remainder(vocabulary).unsqueeze(0)
    eps = float(torch.finfo(parameter.dtype).eps)
    # The shorter first: a model that keeps what the longer one needed would use it for both.
    alone, beside = (_layer_arguments(model, ids[:, :n]) for n in (short, long))
    for (hidden, positions), (other, longer) in zip(alone, beside, strict=True):
        if not _close(hidden, other[:, :short], max(1e-4, 64 * eps)):
            return False
        for a, b in zip(positions, longer, strict=True):
            if not _close(a, b[..., :short, :], 16 * eps):
                return False
    return True


def _close(a: Tensor, b: Tensor, allowed: float) -> bool:
    # What is not finite is so for reasons of its own, and reported where it matters.
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return bool((a - b).norm() <= allowed * b.norm())


def _layer_arguments(model: nn.Module, ids: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """Of every layer: its input ``[1, T, d]``, and tables ``[..., T, k]`` that hold positions."""
    seen: list[tuple[Tensor, list[Tensor]]] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        hidden: Tensor = next(iter(named.values()))
        named |= named.get("kwargs", {})
        names = sorted(POSITION_ARGUMENTS & set(named))
        tables = floating_tensors([named[name] for name in names])
        by_token = [t for t in tables if t.ndim >= 2 and t.shape[-2] == ids.shape[1]]
        seen.append((hidden.detach(), by_token))

    layout = find_layout(model)
    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layout.layers]
    first = torch.zeros(1, dtype=torch.int64, device=ids.device)
    with guest(model, grad=False), hooks(handles):
        position_logits(model, layout.inputs(ids), first, first)
    return seen
