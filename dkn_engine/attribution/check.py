"""The guard in front of every use of rows: they must reproduce the model's own probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dkn_engine.attribution.contexts import Contexts
from dkn_engine.attribution.prefill import Prefill
from dkn_engine.attribution.rows import RowEngine, RowSet, SweepUnsupported
from dkn_engine.errors import BackendError
from dkn_engine.guest import hooks
from dkn_engine.layout import Layout
from dkn_engine.ops.answer_probability import answer_probability

if TYPE_CHECKING:
    from torch import Tensor, nn


def checked_rows(
    model: nn.Module, layout: Layout, contexts: Contexts, clean: Prefill, backend: str
) -> RowEngine:
    """The rows of a chunk, after a trial run.

    What breaks in a layer of an unforeseen kind also means no sweep. An error of the model's own
    comes back from the general path, which runs it as the user does.

    Raises:
        SweepUnsupported: rows cannot run in this model, or give other probabilities than it.
    """
    engine = RowEngine(model, layout, contexts, clean, backend)
    try:
        _try(engine)
    except (torch.OutOfMemoryError, BackendError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"rows fail in its layers ({type(error).__name__}: {error})"
        raise SweepUnsupported(message) from error
    engine.row_layers = 0
    return engine


@torch.no_grad()
def _try(engine: RowEngine) -> None:
    """Refuse the sweep unless its rows reproduce the model's own forward.

    Each layer is run as the sweep runs it, one row becoming two at the MLP's output. What comes
    out must be what the model itself fed to the next layer: within 1e-4 of its length, and at the
    top p(x) within 1e-5 and log p(x) within 1e-3; or 64 rounding steps of a dtype shorter than
    float32. p alone would not tell where every probability is small.
    """
    context = torch.arange(len(engine.contexts), device=engine.contexts.ids.device)
    rows = RowSet(context.unsqueeze(1), aligned=True)
    hidden = engine.clean_rows(context, 0)
    short = 64 * float(torch.finfo(hidden.dtype).eps) if hidden.dtype.itemsize < 4 else 0.0

    def double(_module: Any, _args: Any, output: Tensor) -> Tensor:
        if output.shape != hidden.shape:
            # Without the shapes, so that the warning is the same for every chunk and shown once.
            raise SweepUnsupported("its MLP does not see one row a position")
        return output.expand(-1, 2, -1)

    with engine.active():
        for layer, mlp in enumerate(engine.layout.mlps):
            with hooks([mlp.down.register_forward_hook(double)]):
                out = engine.run_layer(layer, hidden, rows)
            if out.shape != (len(context), 2, hidden.shape[-1]):
                raise SweepUnsupported(f"layer {layer} returns {list(out.shape)} for two rows")
            hidden, last = out[:, 1:], layer + 1 == engine.layout.n_layers
            # Both rows, since a hook of the user's may treat one place in the batch differently.
            own = hidden if last else engine.clean_rows(context, layer + 1)
            apart = (out - own).norm(dim=-1) / own.norm(dim=-1)
            finite = own.isfinite().all(-1).squeeze(1)
            _require(f"leave layer {layer}", apart[finite], max(1e-4, short))
        log_p, _ = answer_probability(
            engine.tail,
            hidden[:, 0],
            engine.contexts.target,
            objective="log_probability",
            gradient=False,
            backend=engine.backend,
        )
    own = engine.clean.log_probability
    apart = torch.stack([(log_p.exp() - own.exp()).abs(), (log_p - own).abs()])[:, own.isfinite()]
    _require("give p(x)", apart[0], max(1e-5, short))
    _require("give log p(x)", apart[1], max(1e-3, short))


def _require(what: str, apart: Tensor, allowed: float) -> None:
    """Refuse unless all are within ``allowed``; contexts where the model gives NaN are left out."""
    if not bool((apart <= allowed).all()):
        worst = float(apart.max())
        raise SweepUnsupported(f"its rows {what} off by {worst:.1e} (allowed {allowed:.1e})")
