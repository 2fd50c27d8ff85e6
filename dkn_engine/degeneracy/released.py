"""The published code's filter: suppress each cluster alone, follow the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dkn_engine.attribution.contexts import AnswerSequence
from dkn_engine.attribution.prefill import position_logits
from dkn_engine.degeneracy.edits import Edit, by_layer, nothing, suppress
from dkn_engine.degeneracy.forwards import change_at
from dkn_engine.guest import guest, hooks
from dkn_engine.layout import Layout
from dkn_engine.types import Component

if TYPE_CHECKING:
    from torch import nn


def released_family(
    model: nn.Module,
    layout: Layout,
    sequence: AnswerSequence,
    components: Sequence[Component],
    max_drop: float,
) -> tuple[int, ...]:
    """Clusters whose suppression alone lowers the answer's probability by less than a share.

    Empty if there are fewer than two clusters, or no probability to be lowered. The answer's
    probability is that of :func:`greedy_probabilities`.
    """
    if len(components) < 2:
        return ()
    edits = [nothing(), *(suppress(c.neurons) for c in components)]
    clean, *alone = greedy_probabilities(model, layout, sequence, edits)
    if not clean > 0:
        return ()
    return tuple(i for i, p in enumerate(alone) if 1 - p / clean < max_drop)


def greedy_probabilities(
    model: nn.Module, layout: Layout, sequence: AnswerSequence, edits: Sequence[Edit]
) -> NDArray[np.float64]:
    """Product ``[P]`` of the gold tokens' probabilities, the edited model continuing as it likes.

    Each edit acts at the last position of each step, and the most probable token of the edited
    model follows, gold or not.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([sequence.ids[: sequence.n_prompt]], device=device).repeat(len(edits), 1)
    layers = by_layer(edits)
    entry = torch.arange(len(edits), device=device)
    total = np.zeros(len(edits))
    with guest(model, grad=False):
        for target in sequence.targets:
            at = torch.full_like(entry, ids.shape[1] - 1)
            mask = torch.arange(ids.shape[1], device=device) == at.unsqueeze(1)
            handles = [
                layout.mlps[l].down.register_forward_pre_hook(change_at(edit, mask))
                for l, edit in layers.items()
            ]
            with hooks(handles):
                logits = position_logits(model, ids, entry, at).double()
            total += logits.log_softmax(-1)[:, target].cpu().numpy()
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    found: NDArray[np.float64] = np.exp(total)
    return found
