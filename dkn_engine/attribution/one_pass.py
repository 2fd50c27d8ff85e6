"""Scores of one gradient: (x - x') times that at the unmodified activation, for all layers at once.

Three gradients, each behind one clean forward:

``attribution_patching``: the model's own. To first order in (x - x'), what the objective loses if
the activation becomes x'; the last point of integrated gradients' path.

``grad_drop``: L gradients, each with one layer that passes none on to what is below it, but for the
residual stream around it; the mean size of their scores. A neuron whose direct effect and whose
effect by way of one layer cancel shows in the gradient without that layer. It is what AtP* mends
for neurons of an MLP; its other repair, of queries and keys, is of attention's nodes.

``relp``: by rules of relevance propagation, see :mod:`dkn_engine.attribution.relevance_rules`.

Sources: Nanda 2023, Attribution patching; Kramár et al. 2024, AtP*, section 3.1.2 (arXiv
2403.00745); Jafari et al. 2025, RelP (arXiv 2508.21258).
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dkn_engine.attribution.full_forwards import General
from dkn_engine.attribution.paths import Paths
from dkn_engine.attribution.quadrature import Integrals
from dkn_engine.attribution.relevance_rules import relevance_rules
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.forward.row_check import Check, failures_mean_no_sweep
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.guest import hooks
from dkn_engine.ops.answer_probability import answer_probability


def clean_end_scores(paths: Paths, gradients: Tensor, method: str) -> Integrals:
    """Scores of gradients ``[R, C, L, d]`` at every MLP's output, of R variants of one gradient.

    No point of a path but its clean end is evaluated, so there is no delta and no error estimate.
    """
    n_variants, n, n_layers, d = gradients.shape
    device, wide = gradients.device, torch.promote_types(gradients.dtype, torch.float32)
    alpha = torch.ones(n_variants * n, dtype=torch.float64, device=device)
    segment = torch.arange(n_variants * n, device=device)
    scores = []
    for layer in range(n_layers):
        found = paths.scores(
            layer,
            gradients[:, :, layer].reshape(-1, d),
            alpha,
            torch.ones(1, n_variants * n, dtype=wide, device=device),
            segment,
            segment % n,
        )
        table = found[0].view(n_variants, n, -1)
        # The variant without a neuron's own layer passes it nothing.
        unsigned = method == "grad_drop"
        scores.append(table.abs().sum(0) / max(1, n_layers - 1) if unsigned else table[0])
    shape = (n, n_layers)
    nothing, nan = np.zeros(shape, dtype=np.int64), np.full(shape, np.nan)
    done = np.ones(shape, dtype=bool)
    return Integrals(torch.stack([s.cpu() for s in scores], 1).numpy(), nan, nothing, nan, done)


class CleanRows:
    """The gradients by rows: of every context one, with ``grad_drop`` one for each layer."""

    def __init__(self, engine: RowEngine, config: AttributionConfig, rows_per_batch: int) -> None:
        self.engine, self.config, self.rows_per_batch = engine, config, rows_per_batch
        self.n_variants = engine.layout.n_layers if config.method == "grad_drop" else 1

    def gradients(self) -> Tensor:
        """``[R, C, L, d]`` at every MLP's output.

        Raises:
            SweepUnsupported: clean rows do not reproduce the model's own forward.
            UnsupportedModelError: ``relp`` has no rule for a part of the model.
        """
        clean, layout = self.engine.clean.hidden[0], self.engine.layout
        found = clean.new_empty(self.n_variants, len(clean), layout.n_layers, layout.d_model)

        def climb(start: int, stop: int) -> None:
            found[:, start:stop] = self._climb(torch.arange(start, stop, device=clean.device))

        ruled = self.config.method == "relp"
        rules = relevance_rules(self.engine) if ruled else contextlib.nullcontext()
        with rules, failures_mean_no_sweep():
            in_batches(len(clean), max(1, self.rows_per_batch // self.n_variants), climb)
        return found

    def _climb(self, context: Tensor) -> Tensor:
        engine, outputs = self.engine, list[Tensor]()
        rows, check = RowSet(context.unsqueeze(1), aligned=True), Check(engine, context)
        hidden = engine.clean_rows(context, 0).repeat(1, self.n_variants, 1).requires_grad_(True)
        with engine.active():
            for layer, mlp in enumerate(engine.layout.mlps):
                before = hidden

                def keep(_module: Any, _args: Any, output: Tensor, before: Tensor = before) -> None:
                    Check.mlp(output, before)
                    outputs.append(output)

                with hooks([mlp.down.register_forward_hook(keep)]):
                    out = engine.run_layer(layer, before, rows)
                check.layer(layer, out)
                hidden = self._dropped(layer, before, out) if self.n_variants > 1 else out
            flat = hidden.flatten(0, 1)
            check.answer(self._tail(flat.detach(), context, "log_probability")[0])
            _, top = self._tail(flat, context, self.config.objective, gradient=True)
            found = torch.autograd.grad(flat, outputs, top)
        return torch.stack([g.to(context.device) for g in found], dim=2).transpose(0, 1)

    def _dropped(self, layer: int, before: Tensor, out: Tensor) -> Tensor:
        """What a layer returns, in its own variant with no gradient but the stream's around it."""
        own = torch.arange(self.n_variants, device=out.device) == layer
        return torch.where(own.unsqueeze(-1), past(before.to(out.device), out), out)

    def _tail(
        self, flat: Tensor, context: Tensor, objective: str, gradient: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        value, slope = answer_probability(
            self.engine.tail,
            flat,
            self.engine.contexts.target[context].repeat_interleave(self.n_variants),
            objective=objective,
            gradient=gradient,
            backend=self.engine.backend,
        )
        return value.view(len(context), self.n_variants)[:, 0], slope


class CleanForwards:
    """The gradients by full forward passes, with ``grad_drop`` one for each layer."""

    def __init__(self, general: General, method: str) -> None:
        self.general, self.method = general, method

    def gradients(self) -> Tensor:
        """As :meth:`CleanRows.gradients`.

        Raises:
            UnsupportedModelError: with ``relp``, whose rules are for rows.
        """
        if self.method == "relp":
            raise UnsupportedModelError(
                "method='relp' needs a model whose attention goes through transformers' interface, "
                "and whose rows reproduce its forward; this one takes full forward passes: use "
                "method='attribution_patching'"
            )
        if self.method == "attribution_patching":
            return self.general.ends().gradients.unsqueeze(0)
        found = []
        for layer in self.general.paths.layout.layers:
            with hooks([layer.register_forward_hook(_pass_by, with_kwargs=True)]):
                found.append(self.general.ends().gradients)
        return torch.stack(found)


def _pass_by(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    before = args[0] if args else kwargs["hidden_states"]
    first = output if isinstance(output, Tensor) else output[0]
    before = before.to(first.device)
    if isinstance(output, Tensor):
        return past(before, output)
    return (past(before, output[0]), *output[1:])


def past(before: Tensor, out: Tensor) -> Tensor:
    """``out``, with the gradient of the residual stream ``before`` it alone."""
    return before + (out - before).detach()
