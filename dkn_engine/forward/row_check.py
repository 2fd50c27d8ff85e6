"""The guard in front of every use of rows: they must reproduce the model's own forward.

Clean rows must come out of every layer as what the model itself fed to the next one: within 1e-4 of
its length; and at the top p(x) within 1e-5 and log p(x) within 1e-3, since p alone would not tell
where every probability is small. A dtype shorter than float32 has 64 of its rounding steps.

A sweep's clean rows climb with its first points and are checked there. That would miss a hook that
treats one place among the rows differently, such as an intervention of the user's at a position;
so where there is anything but the plain layers of a library, two rows are tried before.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dkn_engine.errors import DknError
from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.patched_rows import RowEngine, RowSet, SweepUnsupported
from dkn_engine.forward.prefill import Prefill
from dkn_engine.models.devices import at
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from dkn_engine.models.torch_internals import (
    KNOWN,
    forward_hooks,
    global_forward_hooks,
    own_forward,
)
from dkn_engine.ops.answer_probability import Tail, answer_probability

if TYPE_CHECKING:
    from torch import Tensor, nn


# The longest padded sequences whose rows were tried in a layout of plain layers.
_tried: weakref.WeakKeyDictionary[Layout, int] = weakref.WeakKeyDictionary()


def checked_rows(
    model: nn.Module, layout: Layout, contexts: Contexts, clean: Prefill, backend: str
) -> RowEngine:
    """The rows of a chunk, after a trial run.

    Raises:
        SweepUnsupported: rows cannot run in this model, or give other probabilities than it.
    """
    engine = RowEngine(model, layout, contexts, clean, backend)
    with failures_mean_no_sweep():
        try_rows(engine)
    engine.row_layers = 0
    return engine


def rows_to_check(
    model: nn.Module, layout: Layout, contexts: Contexts, clean: Prefill, backend: str
) -> RowEngine:
    """The rows of a chunk for a caller that checks them as it goes; tried only where need be.

    Raises:
        SweepUnsupported: as in :func:`checked_rows`.
    """
    if is_plain(layout):
        return RowEngine(model, layout, contexts, clean, backend)
    return checked_rows(model, layout, contexts, clean, backend)


def rows_tried_once(
    model: nn.Module, layout: Layout, contexts: Contexts, clean: Prefill, backend: str
) -> RowEngine:
    """As :func:`checked_rows`, but tried only where plain layers were not at this length before.

    A layout lives as long as a call or a run. The caller looks at what unchanged rows give.

    Raises:
        SweepUnsupported: as in :func:`checked_rows`.
    """
    n, plain = contexts.ids.shape[1], is_plain(layout)
    if plain and n <= _tried.get(layout, 0):
        return RowEngine(model, layout, contexts, clean, backend)
    engine = checked_rows(model, layout, contexts, clean, backend)
    if plain:
        _tried[layout] = n
    return engine


def is_plain(layout: Layout) -> bool:
    """Whether nothing but the code of torch and transformers, without hooks, runs in the layers."""
    if global_forward_hooks():
        return False
    return all(
        type(m).__module__.startswith(KNOWN)
        and type(m).forward.__module__.startswith(KNOWN)
        and own_forward(m) is None
        and not forward_hooks(m)
        for layer in layout.layers
        for m in layer.modules()
    )


@contextlib.contextmanager
def failures_mean_no_sweep() -> Iterator[None]:
    """What breaks in a layer of an unforeseen kind raises :class:`SweepUnsupported`.

    An error of the model's own comes back from the general path, which runs it as the user does.
    """
    try:
        yield
    except (torch.OutOfMemoryError, DknError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"rows fail in its layers ({type(error).__name__}: {error})"
        raise SweepUnsupported(message) from error


def warn_of_full_forwards(model: nn.Module, reason: SweepUnsupported, stacklevel: int) -> None:
    """Say that full forward passes stand in for rows; from one place, so that it is shown once."""
    warnings.warn(
        f"{type(model).__name__}: {reason}; using full forward passes (slower, same results)",
        stacklevel=stacklevel + 1,
    )


class Runs(Protocol):
    """What runs a model's layers: rows, or whole sequences."""

    @property
    def layout(self) -> Layout: ...

    @property
    def contexts(self) -> Contexts: ...

    @property
    def clean(self) -> Prefill: ...


class Check:
    """What clean rows give beside what the model gave.

    Args:
        engine: of the rows.
        context: int64 ``[n]``, of each row.
    """

    def __init__(self, engine: Runs, context: Tensor) -> None:
        self._engine, self._context = engine, context
        self._apart: list[Tensor] = []
        dtype = engine.clean.hidden[0].dtype
        self._short = 64 * float(torch.finfo(dtype).eps) if dtype.itemsize < 4 else 0.0

    @staticmethod
    def mlp(output: Tensor, hidden: Tensor) -> None:
        """Require that an MLP returns one row for each row ``[B, R, d]`` of the layer."""
        if output.shape != hidden.shape:
            # Without the shapes, so that the warning is the same for every chunk and shown once.
            raise SweepUnsupported("its MLP does not see one row a position")

    @staticmethod
    def emerged(layer: int, out: Tensor, shape: tuple[int, ...]) -> None:
        """Require that a layer whose MLP returned several rows for one returns as many."""
        if out.shape != shape:
            raise SweepUnsupported(
                f"layer {layer} returns {list(out.shape)} for {shape[1]} rows of its MLP"
            )

    def layer(self, layer: int, out: Tensor) -> None:
        """Note clean rows ``[n, R, d]`` out of a layer; those of the last need only be alike."""
        out, last = out.detach(), layer + 1 == self._engine.layout.n_layers
        clean = self._engine.clean.hidden
        self.note(out, out[:, -1:] if last else at(clean[layer + 1], self._context).unsqueeze(1))

    def note(self, found: Tensor, own: Tensor) -> None:
        """Note vectors ``[..., k]`` and what the model's own forward has in their place."""
        own = own.to(found.device)
        apart = (found - own).norm(dim=-1) / own.norm(dim=-1)
        # Contexts where the model gives NaN are left out.
        worst = apart.where(own.isfinite().all(-1), 0).amax()
        self._apart.append(worst.to(self._context.device))

    def require(self, words: Callable[[int], str]) -> None:
        """Require all that was noted to be the model's own; ``words`` name what rows do in a layer.

        Raises:
            SweepUnsupported: the first that is not.
        """
        allowed = max(1e-4, self._short)
        apart = torch.stack(self._apart).tolist() if self._apart else []
        for layer, found in enumerate(apart):
            if not found <= allowed:
                _refuse(words(layer), found, allowed)

    def scored(self, tail: Tail, rows: Tensor, value: Tensor, objective: str, backend: str) -> None:
        """:meth:`answer` for the objective ``[n]`` of clean rows ``[n, d]`` out of the last layer.

        A logit says nothing beside a probability, so that the rows' own is taken.
        """
        if objective == "logit":
            objective = "log_probability"
            targets = self._engine.contexts.target[self._context]
            value, _ = answer_probability(
                tail, rows, targets, objective=objective, gradient=False, backend=backend
            )
        if objective == "log_probability":
            self.answer(value)
            return
        own, tiny = self._own(), torch.finfo(value.dtype).tiny
        value = value.to(own.device)
        # The logarithm of a probability that underflows says nothing.
        both = (value < tiny) & (own.exp() < tiny)
        self.answer(torch.where(both, own, value.log()))

    def _own(self) -> Tensor:
        return self._engine.clean.log_probability[self._context]

    def answer(self, log_p: Tensor) -> None:
        """Require all that was noted, and log p(x) ``[n]`` at the top, to be the model's own."""
        self.require(lambda layer: f"leave layer {layer}")
        own, log_p = self._own(), log_p.to(self._context.device)
        known = own.isfinite()
        for what, found, allowed in (
            ("give p(x)", (log_p.exp() - own.exp())[known].abs(), max(1e-5, self._short)),
            ("give log p(x)", (log_p - own)[known].abs(), max(1e-3, self._short)),
        ):
            if not bool((found <= allowed).all()):
                _refuse(what, float(found.max()), allowed)


def _refuse(what: str, apart: float, allowed: float) -> None:
    raise SweepUnsupported(f"its rows {what} off by {apart:.1e} (allowed {allowed:.1e})")


@torch.no_grad()
def try_rows(engine: RowEngine) -> None:
    """Run clean rows as the sweep does, one row becoming two at the MLP's output of each layer."""
    context = torch.arange(len(engine.contexts), device=engine.contexts.ids.device)
    rows, check = RowSet(context.unsqueeze(1), aligned=True), Check(engine, context)
    hidden = engine.clean_rows(context, 0)

    def double(_module: Any, _args: Any, output: Tensor) -> Tensor:
        check.mlp(output, hidden)
        return output.expand(-1, 2, -1)

    with engine.active():
        for layer, mlp in enumerate(engine.layout.mlps):
            with hooks([mlp.down.register_forward_hook(double)]):
                out = engine.run_layer(layer, hidden, rows)
            check.emerged(layer, out, (len(context), 2, hidden.shape[-1]))
            # Both rows, since a hook of the user's may treat one place in the batch differently.
            check.layer(layer, out)
            hidden = out[:, 1:]
        log_p, _ = answer_probability(
            engine.tail,
            hidden[:, 0],
            engine.contexts.target,
            objective="log_probability",
            gradient=False,
            backend=engine.backend,
        )
    check.answer(log_p)
