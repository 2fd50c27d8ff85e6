"""Facts as padded token batches, and the answer positions (contexts) in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AnswerSequence:
    """One teacher-forced sequence: prompt and all answer tokens but the last.

    Attributes:
        ids: the tokens that enter the model.
        n_prompt: how many of them are the prompt's.
        targets: the gold token predicted at positions ``n_prompt - 1 + i``.
    """

    ids: tuple[int, ...]
    n_prompt: int
    targets: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Contexts:
    """All answer tokens of a chunk of sequences; a context is one (sequence, position).

    Attributes:
        ids: int64 ``[B, T]``, padded on the right with a sequence's own last token. In a causal
            model nothing before the padding sees it.
        sequence, position, target, token: int64 ``[C]``; ``token`` counts answer tokens from 0.
    """

    ids: torch.Tensor
    sequence: torch.Tensor
    position: torch.Tensor
    target: torch.Tensor
    token: torch.Tensor
    n_prompt: tuple[int, ...]

    def __len__(self) -> int:
        return int(self.sequence.shape[0])

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """What a module gives or is given at the contexts, ``[C, n]`` of ``[B, T, n]``."""
        x = x.reshape(*self.ids.shape, x.shape[-1])  # some MLPs see [B*T, d]
        return x[self.sequence, self.position]

    def take(self, index: torch.Tensor) -> Contexts:
        """Some of the contexts, in the same sequences."""
        return replace(
            self,
            sequence=self.sequence[index],
            position=self.position[index],
            target=self.target[index],
            token=self.token[index],
        )


def build_contexts(sequences: Sequence[AnswerSequence], device: torch.device) -> Contexts:
    """Pad ``sequences`` into one batch and list their answer positions in order."""
    import torch

    longest = max(len(s.ids) for s in sequences)
    padded = [s.ids + s.ids[-1:] * (longest - len(s.ids)) for s in sequences]
    rows = [
        (b, s.n_prompt - 1 + i, target, i)
        for b, s in enumerate(sequences)
        for i, target in enumerate(s.targets)
    ]
    # Autograd keeps these indices, which it could not if the caller's inference mode made them.
    with torch.inference_mode(False):
        ids = torch.tensor(padded, dtype=torch.int64, device=device)
        sequence, position, target, token = (
            torch.tensor(column, dtype=torch.int64, device=device)
            for column in zip(*rows, strict=True)
        )
    n_prompt = tuple(s.n_prompt for s in sequences)
    return Contexts(ids, sequence, position, target, token, n_prompt)
