"""The layers below the first that a training changes, run once for each batch of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dkn_engine.analysis.experiments.evolvability.answers import answer_logits
from dkn_engine.analysis.experiments.evolvability.trainable import Block
from dkn_engine.errors import DknError
from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.row_check import is_plain
from dkn_engine.forward.upper_layers import from_layer
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn

_ALLOWED = 1e-4  # of the length of a trial's logits; other batches round otherwise


class UnchangedLayers:
    """Answers' logits while weights change, from the first layer on that has one of them.

    What enters that layer is the same in every step. Where passes cannot begin there (see
    :class:`dkn_engine.forward.upper_layers.UpperLayers`), they run through all layers.

    Args:
        model, layout: the decoder.
        blocks: what changes.
    """

    def __init__(self, model: nn.Module, layout: Layout, blocks: Sequence[Block]) -> None:
        self._model, self._layout = model, layout
        layers = [block.layer for block in blocks]
        everywhere = None in layers or not is_plain(layout)
        self._first = 0 if everywhere else min(l for l in layers if l is not None)
        self._entering: dict[int, Tensor] = {}

    def logits(self, contexts: Contexts, batch: int | None) -> Tensor:
        """As :func:`answer_logits`.

        Args:
            contexts: of a batch of facts.
            batch: a number that these contexts alone have; None: they do not come again.
        """
        if not self._first or batch is None:
            return answer_logits(self._model, contexts)
        if batch in self._entering:
            with from_layer(self._layout, self._first, self._entering[batch]):
                return answer_logits(self._model, contexts)
        logits, entering = self._whole_pass(contexts)
        if self._reproduces(contexts, entering, logits.detach()):
            self._entering[batch] = entering
        else:
            self._first = 0
        return logits

    def _whole_pass(self, contexts: Contexts) -> tuple[Tensor, Any]:
        """Logits by all layers, and what entered the first that changes."""
        kept: list[Any] = []

        def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next(iter((*args, *kwargs.values())))
            kept.append(first.detach() if isinstance(first, Tensor) else first)

        layer = self._layout.layers[self._first]
        with hooks([layer.register_forward_pre_hook(keep, with_kwargs=True)]):
            logits = answer_logits(self._model, contexts)
        return logits, kept[0]

    @torch.no_grad()
    def _reproduces(self, contexts: Contexts, entering: Any, logits: Tensor) -> bool:
        """Whether the first sequence, read from the layer on, gets its logits."""
        if not isinstance(entering, Tensor) or entering.shape[:2] != contexts.ids.shape:
            return False
        index = torch.nonzero(contexts.sequence == 0)[:, 0]
        one = replace(contexts.take(index), ids=contexts.ids[:1])
        try:
            with from_layer(self._layout, self._first, entering[:1]):
                again = answer_logits(self._model, one)
        except (torch.OutOfMemoryError, DknError):
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False  # Its stack expects more of a layer than a stand-in gives.
        return bool((again - logits[index]).norm() <= _ALLOWED * logits[index].norm())
