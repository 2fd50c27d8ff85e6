"""The published code's filter: suppress each cluster alone, follow the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dkn_engine.degeneracy.edits import nothing, suppress
from dkn_engine.degeneracy.free_running import free_running
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import Layout
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
    probability is that of :func:`dkn_engine.degeneracy.free_running.free_running`.
    """
    if len(components) < 2:
        return ()
    edits = [nothing(), *(suppress(c.neurons) for c in components)]
    clean, *alone = free_running(model, layout, sequence, edits)[0]
    if not clean > 0:
        return ()
    return tuple(i for i, p in enumerate(alone) if 1 - p / clean < max_drop)
