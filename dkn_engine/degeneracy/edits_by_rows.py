"""Many edits at the answer positions in one climb: a row for each distinct edit so far.

An edit at the position that predicts an answer token changes only that position in the layers
above, so it is one row (see ``forward.patched_rows``). Rows whose edits agree up to a layer are one
row up to there; a layer in which they part duplicates them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkn_engine.degeneracy.edits import Edit, LayerEdit, by_layer, changing
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.models.guest import hooks
from dkn_engine.ops.answer_probability import Tail, answer_probability

# Rows whose logits are held at once, where the most probable token is asked for.
_LOGITS = 64


@torch.no_grad()
def row_log_probabilities(
    engine: RowEngine, edits: Sequence[Edit], contexts: Tensor, *, greedy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability ``[P, n]`` of each context's gold token under each of P edits.

    Args:
        edits: each acts at the position of the context alone.
        contexts: int64 ``[n]``, of the chunk.
        greedy: also say where no token is more probable than the gold one.

    Returns:
        The log-probabilities and, with ``greedy``, bool ``[P, n]``, else None.
    """
    layers = by_layer(edits)
    group = np.zeros(len(edits), dtype=np.int64)
    first = min(layers, default=engine.layout.n_layers - 1)
    rows = RowSet(contexts.unsqueeze(1), aligned=True)
    with engine.active():
        hidden = engine.clean_rows(contexts, first)
        for layer in range(first, engine.layout.n_layers):
            handles = []
            if layer in layers:
                group, parent = _split(group, layers[layer], len(edits))
                hidden = hidden[:, torch.from_numpy(parent).to(hidden.device)]
                edit = _of_groups(layers[layer], group)
                down = engine.layout.mlps[layer].down
                handles.append(down.register_forward_pre_hook(changing(edit)))
            with hooks(handles):
                hidden = engine.run_layer(layer, hidden, rows)
        n_rows = hidden.shape[1]
        flat = hidden.reshape(-1, hidden.shape[-1])
        targets = engine.contexts.target[contexts].repeat_interleave(n_rows)
        log_p, _ = answer_probability(
            engine.tail,
            flat,
            targets,
            objective="log_probability",
            gradient=False,
            backend=engine.backend,
        )
        hit = _most_probable(engine.tail, flat, targets) if greedy else None
    row = torch.from_numpy(group).to(log_p.device)
    return log_p.view(-1, n_rows).T[row], None if hit is None else hit.view(-1, n_rows).T[row]


def _most_probable(tail: Tail, hidden: Tensor, targets: Tensor) -> Tensor:
    """bool ``[N]``: whether no logit of a row is above its target's; False where it is NaN."""
    found = []
    for some, own in zip(*(torch.split(x, _LOGITS) for x in (hidden, targets)), strict=True):
        logits = tail(some)
        found.append(logits.gather(-1, own.unsqueeze(-1)).squeeze(-1) >= logits.amax(-1))
    return torch.cat(found)


def _split(
    group: NDArray[np.int64], edit: LayerEdit, n_edits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """New groups of edits that also agree in this layer, and the old group of each."""
    order = np.lexsort((edit.index, edit.row))
    entries = np.stack([edit.index, edit.factor, edit.offset], axis=1)[order]
    ends = np.searchsorted(edit.row[order], np.arange(n_edits + 1))
    found: dict[tuple[int, bytes], int] = {}
    new = np.empty_like(group)
    for p in range(n_edits):
        key = (int(group[p]), entries[ends[p] : ends[p + 1]].tobytes())
        new[p] = found.setdefault(key, len(found))
    return new, np.array([old for old, _ in found], dtype=np.int64)


def _of_groups(edit: LayerEdit, group: NDArray[np.int64]) -> LayerEdit:
    """The edit with groups for rows, each neuron of a group once."""
    row = group[edit.row]
    _, once = np.unique(row << 32 | edit.index, return_index=True)
    return LayerEdit(row[once], edit.index[once], edit.factor[once], edit.offset[once])
