"""An MLP at some positions of a batch of sequences: at the others it is known, or not read.

An MLP works position by position, so that only those need run that something new enters and that
something reads. The plain form runs it at all.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dkn_engine.forward.contexts import by_position
from dkn_engine.forward.row_check import is_plain
from dkn_engine.models.layout import Layout, Mlp


def can_run_in_part(layout: Layout, length: int) -> bool:
    """Whether to try it for sequences of so many tokens: in plain layers without experts."""
    return length > 1 and not layout.mixtures and is_plain(layout)


def run_in_part(mlp: Mlp, rows: Tensor, elsewhere: Tensor) -> list[RemovableHandle]:
    """Hooks by which a pass over ``[n, T]`` tokens runs the MLP at some of them.

    Args:
        mlp: of the pass.
        rows: int64 ``[k]``, entry * T + position.
        elsewhere: ``[n, T, d]``, its output at the other positions.
    """
    shape = elsewhere.shape[:2]

    # On the MLP's device, which in a split model need not be that of what enters its layer.
    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        picked = by_position(args[0], shape).flatten(0, 1)[rows.to(args[0].device)]
        return (picked if args[0].ndim == 2 else picked.unsqueeze(0), *args[1:])

    def spread(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        known = elsewhere.to(output.device).flatten(0, 1)
        found = known.index_copy(
            0, rows.to(output.device), output.reshape(len(rows), output.shape[-1])
        )
        return found if output.ndim == 2 else found.view_as(elsewhere)

    reads = {id(m): m for m in (mlp.gate, mlp.up) if m is not None}
    handles = [module.register_forward_pre_hook(pick) for module in reads.values()]
    return [*handles, mlp.down.register_forward_hook(spread)]
