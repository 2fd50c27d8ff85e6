"""The end of sequences alone, behind what a causal model keeps of their beginning.

In a causal model a change at a position reaches no position in front of it. The keys and values of
those are computed once, by the model, into a cache of transformers; the layers then run over the
rest. Unlike rows (``patched_rows.py``) this asks nothing of the attention but that it takes what it
attends to from that cache.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.forward.layer_calls import LayerCalls, called, handed_on, other_number
from dkn_engine.forward.patched_rows import SweepUnsupported
from dkn_engine.forward.prefill import Prefill
from dkn_engine.models.layout import Layout


@torch.no_grad()
def suffix_calls(layout: Layout, clean: Prefill, ids: Tensor, start: int) -> LayerCalls:
    """The layers of a causal model over the tokens ``[B, T]`` from position ``start`` on.

    Raises:
        SweepUnsupported: the model keeps no keys and values, or not in that cache; see also
            :class:`dkn_engine.forward.layer_calls.LayerCalls`.
    """
    prefix, end = None, ids[:, start:]
    if start:
        prefix = _prefix_cache()()
        layout.model(input_ids=ids[:, :start], past_key_values=prefix, use_cache=True)
        if prefix.get_seq_length() != start:
            raise SweepUnsupported("it keeps no keys and values of a prefix")
    own = called(layout, partial(_read, layout.model, end, prefix))
    few = end[:1].expand(other_number(len(ids)), -1)
    other = handed_on(layout, clean, partial(_read, layout.model, few, prefix))
    return LayerCalls(layout, end.shape, own, other, prefix)


def _read(model: nn.Module, ids: Tensor, prefix: Any) -> None:
    """Run the model over tokens ``[n, T]`` behind the prefix of the first n sequences."""
    if prefix is None:
        model(input_ids=ids, use_cache=False)
        return
    prefix.sequence = torch.arange(len(ids), device=ids.device) % prefix.n_sequences
    model(input_ids=ids, past_key_values=prefix, use_cache=True)


@functools.cache
def _prefix_cache() -> type[Any]:
    """The class of caches that, once filled, show each entry of a batch its sequence's prefix."""
    from transformers import DynamicCache

    class PrefixCache(DynamicCache):
        """Attributes: sequence: int64 ``[n]``, of each entry; None while it is being filled."""

        sequence: Tensor | None = None

        @property
        def n_sequences(self) -> int:
            first: Any = self.layers[0]
            return int(first.keys.shape[0])

        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **more: Any
        ) -> tuple[Tensor, Tensor]:
            if self.sequence is None:
                whole: Any = super().update(key_states, value_states, layer_idx, *rest, **more)
                return whole  # type: ignore[no-any-return]  # of transformers
            kept: Any = self.layers[layer_idx]
            index = self.sequence.to(kept.keys.device)
            pairs = ((kept.keys, key_states), (kept.values, value_states))
            keys, values = (torch.cat([old[index], new], dim=-2) for old, new in pairs)
            return keys, values

    return PrefixCache
