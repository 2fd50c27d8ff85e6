"""Many edits at the answer positions in one climb: a row for each distinct edit so far.

An edit at the position that predicts an answer token changes only that position in the layers
above, so it is one row (see ``forward.patched_rows``). Rows of one context whose edits agree up to
a layer are one row up to there; a layer in which they part duplicates them. Contexts climb
together, each with edits of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkn_engine.degeneracy.edits import Edit, LayerEdit, by_layer, changing
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.models.guest import hooks
from dkn_engine.ops.answer_probability import Tail, answer_probability, token_logits

# Rows whose logits are held at once, where the most probable token is asked for.
_LOGITS = 64


@torch.no_grad()
def row_log_probabilities(
    engine: RowEngine,
    edits: Sequence[Edit],
    edit: NDArray[np.int64],
    context: NDArray[np.int64],
    *,
    greedy: bool = False,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probability ``[N]`` of the gold token of N contexts, each under an edit.

    Args:
        edits: each acts at the position of the context alone.
        edit: int64 ``[N]``, which of ``edits``; context: int64 ``[N]``, of the chunk.
        greedy: also say where no token is more probable than the gold one.
        tokens: int64 ``[C, K]``, of each context of the chunk those whose logits are wanted too.

    Returns:
        The log-probabilities; with ``greedy``, bool ``[N]``, else None; with ``tokens``, logits
        ``[N, K]``, else None.
    """
    used, edit = np.unique(edit, return_inverse=True)
    layers = {l: _Layer.of(e, len(used)) for l, e in by_layer([edits[i] for i in used]).items()}
    present, group = np.unique(context, return_inverse=True)
    first = min(layers, default=engine.layout.n_layers - 1)
    device = engine.contexts.ids.device
    of_row = torch.from_numpy(present).to(device)
    with engine.active():
        hidden = engine.clean_rows(of_row, first).transpose(0, 1)
        for layer in range(first, engine.layout.n_layers):
            handles = []
            if layer in layers:
                group, parent, change = layers[layer].split(group, edit)
                at = torch.from_numpy(parent).to(device)
                hidden, of_row = hidden[:, at.to(hidden.device)], of_row[at]
                down = engine.layout.mlps[layer].down
                handles.append(down.register_forward_pre_hook(changing(change)))
            with hooks(handles):
                rows = RowSet(of_row.unsqueeze(0), aligned=False)
                hidden = engine.run_layer(layer, hidden, rows)
        targets = engine.contexts.target[of_row].to(hidden.device)
        log_p, _ = answer_probability(
            engine.tail,
            hidden[0],
            targets,
            objective="log_probability",
            gradient=False,
            backend=engine.backend,
        )
        hit = _most_probable(engine.tail, hidden[0], targets) if greedy else None
        logits = None
        if tokens is not None:
            own = tokens[of_row]
            logits = token_logits(engine.tail, hidden[0], own, backend=engine.backend)
    row = torch.from_numpy(group).to(log_p.device)
    hit, logits = (None if found is None else found[row] for found in (hit, logits))
    return log_p[row], hit, logits


def _most_probable(tail: Tail, hidden: Tensor, targets: Tensor) -> Tensor:
    """bool ``[N]``: whether no logit of a row is above its target's; False where it is NaN."""
    found = []
    for some, own in zip(*(torch.split(x, _LOGITS) for x in (hidden, targets)), strict=True):
        logits = tail(some)
        found.append(logits.gather(-1, own.unsqueeze(-1)).squeeze(-1) >= logits.amax(-1))
    return torch.cat(found)


@dataclass(frozen=True, eq=False)
class _Layer:
    """What P edits do in one layer.

    Attributes:
        entries: by edit, in it by neuron.
        start: int64 ``[P + 1]``, where each edit's entries begin, and the end.
        kind: int64 ``[P]``; equal for edits that do the same here, 0 for those that do nothing.
    """

    entries: LayerEdit
    start: NDArray[np.int64]
    kind: NDArray[np.int64]

    @classmethod
    def of(cls, edit: LayerEdit, n_edits: int) -> _Layer:
        order = np.lexsort((edit.index, edit.row))
        entries = LayerEdit(
            edit.row[order], edit.index[order], edit.factor[order], edit.offset[order]
        )
        start = np.searchsorted(entries.row, np.arange(n_edits + 1))
        table = np.stack([entries.index, entries.factor, entries.offset], axis=1)
        kinds: dict[bytes, int] = {b"": 0}
        kind = np.zeros(n_edits, dtype=np.int64)
        for p in np.unique(entries.row).tolist():
            key = table[start[p] : start[p + 1]].tobytes()
            kind[p] = kinds.setdefault(key, len(kinds))
        return cls(entries, start, kind)

    def split(
        self, group: NDArray[np.int64], edit: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], LayerEdit]:
        """New groups of rows that also agree in this layer, ordered by the old ones.

        Args:
            group: int64 ``[N]``; edit: int64 ``[N]``, of each row.

        Returns:
            The new group of each row, the old group of each new one, and what each new one changes.
        """
        code = group * (int(self.kind.max()) + 1) + self.kind[edit]
        _, member, new = np.unique(code, return_index=True, return_inverse=True)
        like = edit[member]  # an edit of each new group; any of them does the same here
        n = self.start[like + 1] - self.start[like]
        row = np.repeat(np.arange(len(member)), n)
        at = np.arange(len(row)) + np.repeat(self.start[like] - np.cumsum(n) + n, n)
        entries = self.entries
        change = LayerEdit(row, entries.index[at], entries.factor[at], entries.offset[at])
        return new, group[member], change
