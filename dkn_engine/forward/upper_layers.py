"""The model's own forward from a layer on, where nothing changes the layers below it.

What enters the layer is then what entered it in an earlier pass over the same tokens, so that the
layers below need not run again: modules that hand their input on stand in for them. The plain form
is a forward pass through all layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.errors import DknError
from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.prefill import Prefill, token_log_probabilities
from dkn_engine.forward.row_check import is_plain
from dkn_engine.forward.stand_ins import HandsOn
from dkn_engine.models.devices import at
from dkn_engine.models.layout import Layout
from dkn_engine.models.torch_internals import replaced

# Most that log p of an unchanged token may differ: other batches round otherwise.
_ALLOWED = 1e-4


@contextlib.contextmanager
def from_layer(layout: Layout, first: int, hidden: Tensor, *, in_tuples: int = 0) -> Iterator[None]:
    """Forward passes in the block begin at layer ``first``, which ``hidden`` ``[B, T, d]`` enters.

    Their tokens ``[B, T]`` still say how long they are; 0 layers below leave the model as it is.
    """
    if first == 0:
        yield
        return
    below = [HandsOn(layer, in_tuples=in_tuples) for layer in layout.layers[:first]]
    below[-1].hidden = hidden
    with replaced(layout.base, layout.stack, nn.ModuleList([*below, *layout.layers[first:]])):
        yield


class UpperLayers:
    """Forward passes over a chunk that begin where the first change is.

    Only in decoders of plain layers, each of which takes the hidden states of the one before and
    returns them; and at a layer from which an unchanged sequence gave what the whole model gave.

    Args:
        layout: the decoder.
        contexts, clean: the chunk, and the model's pass over it, whose layers' inputs are kept.
    """

    def __init__(self, layout: Layout, contexts: Contexts, clean: Prefill) -> None:
        self._layout, self._contexts, self._clean = layout, contexts, clean
        self._plain = is_plain(layout)
        self._usable: dict[int, bool] = {}

    @contextlib.contextmanager
    def passes(self, first: int, sequence: Tensor, length: int) -> Iterator[None]:
        """Passes of the block over ``length`` tokens of ``sequence`` ``[B]`` begin at ``first``.

        At 0 where they cannot begin there.
        """
        if not self.can_begin(first):
            yield
            return
        with self._from(first, at(self._entering(first), sequence)[:, :length]):
            yield

    def can_begin(self, first: int) -> bool:
        """Whether passes can begin at a layer; one sequence is tried the first time."""
        if first == 0 or not self._plain:
            return False
        if first not in self._usable:
            self._usable[first] = self._reproduces(first)
        return self._usable[first]

    def _from(self, first: int, entering: Tensor) -> contextlib.AbstractContextManager[None]:
        return from_layer(self._layout, first, entering, in_tuples=self._clean.in_tuples)

    def _entering(self, layer: int) -> Any:
        """What entered a layer in the clean pass, ``[B, T, d]`` if it is a decoder's."""
        return next(iter(self._clean.calls[layer].arguments.values()))

    @torch.no_grad()
    def _reproduces(self, first: int) -> bool:
        """Whether the chunk's first sequence, read from a layer on, gets its own probabilities."""
        contexts, entering = self._contexts, self._entering(first)
        if not isinstance(entering, Tensor) or entering.shape[:2] != contexts.ids.shape:
            return False
        index = torch.nonzero(contexts.sequence == 0)[:, 0]
        one = contexts.of_first(1)
        try:
            with self._from(first, entering[:1]):
                log_p, _ = token_log_probabilities(self._layout.model, one)
        except (torch.OutOfMemoryError, DknError):
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False  # Its stack expects more of a layer than a stand-in gives.
        own = self._clean.log_probability[index]
        allowed = max(_ALLOWED, 64 * float(torch.finfo(entering.dtype).eps))
        return bool(((log_p - own).abs() <= allowed).all())
