"""Logits where answers are due, by the model's own forward; its head projects no other position.

The head is the largest product of a pass: in a batch of prompts of many lengths, each read at one
place, it would be most of the work.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.errors import DknError
from dkn_engine.models.devices import at
from dkn_engine.models.guest import hooks
from dkn_engine.models.torch_internals import (
    KNOWN,
    forward_hooks,
    global_forward_hooks,
    own_forward,
)

# Models whose forward has shown whether it takes a head that was given some positions.
_takes_some: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def position_logits(
    model: nn.Module, inputs: Mapping[str, Any], sequence: Tensor, position: Tensor
) -> Tensor:
    """Logits ``[C, V]`` at (sequence, position); other positions are not projected if possible.

    ``inputs`` are the arguments with the tokens; see :meth:`Contexts.inputs`. A head that hooks
    look at, or that runs other code than torch's and transformers' own, is given whole batches.
    """
    asked = _Asked(model, inputs, sequence, position)
    head = _head(model)
    if head is None or not _takes_some.get(model, True):
        return asked.plainly()
    try:
        found = asked.by_some(head)
    except (torch.OutOfMemoryError, DknError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        if model in _takes_some:
            raise
        found = None
    if found is None:
        found = asked.plainly()  # The model's own error comes from here.
        _takes_some[model] = False
    else:
        _takes_some[model] = True
    return found


def _head(model: nn.Module) -> nn.Module | None:
    """The projection to the vocabulary, if it is known to treat all positions alike."""
    find = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = None if find is None else find()
    if head is None or forward_hooks(head) or global_forward_hooks():
        return None
    known = type(head).__module__.startswith(KNOWN) and own_forward(head) is None
    return head if known else None


class _Asked:
    """One pass, and the places at which its logits are wanted."""

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Any], sequence: Tensor, position: Tensor
    ) -> None:
        self.model, self.sequence, self.position = model, sequence, position
        self.options: dict[str, Any] = {**inputs, "use_cache": False}
        self.n_entries = len(next(x for x in inputs.values() if isinstance(x, Tensor)))
        # Where the model takes them, the positions that any entry is read at: fewer than all.
        self.kept, self.column = torch.unique(position, return_inverse=True)
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            # accelerate would move a tensor to where tokens enter; the head may be elsewhere.
            keep: Any = self.kept.tolist() if "_hf_hook" in vars(model) else self.kept
            self.options["logits_to_keep"] = keep

    def plainly(self) -> Tensor:
        """By the head's logits at those positions, or at all, in every entry."""
        return self._of(self.model(**self.options).logits)

    def _of(self, x: Tensor) -> Tensor:
        """``[C, n]`` of ``[B, T, n]``, or of the kept positions alone."""
        some = x.shape[1] == len(self.kept)
        return at(x, self.sequence, self.column if some else self.position)

    def by_some(self, head: nn.Module) -> Tensor | None:
        """By a head that is given the wanted places alone; None where it cannot be."""
        given: list[int] = []

        def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if given or not args or args[0].ndim != 3 or len(args[0]) != self.n_entries:
                return None
            given.append(len(self.sequence))
            return (self._of(args[0]).unsqueeze(0), *args[1:])

        with hooks([head.register_forward_pre_hook(pick)]):
            logits: Tensor = self.model(**self.options).logits
        if not given:
            return self._of(logits)
        return logits[0] if logits.shape[:2] == (1, len(self.sequence)) else None
