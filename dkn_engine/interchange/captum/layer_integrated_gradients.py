"""captum's ``LayerIntegratedGradients`` for the layers of MLPs, by the engine's way of counting.

The input of a dense projection (the ``post`` site) is integrated behind that projection, where the
path is straight too: steps and gradients are of width d, and the gradient goes through the
projection once, whatever the number of steps.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.errors import UserError
from dkn_engine.interchange.captum.arguments import (
    baseline_inputs,
    positive,
    repeated,
    require_supported,
    rule,
    select,
    single,
)
from dkn_engine.models.dense import dense_matrix
from dkn_engine.models.guest import guest, hooks
from dkn_engine.models.model_lock import locked
from dkn_engine.models.projections import does_more
from dkn_engine.models.torch_internals import backward_hooks, global_backward_hooks

_FUNCTIONS = threading.RLock()
Target = int | Tensor | Sequence[int] | tuple[int, ...] | Sequence[tuple[int, ...]] | None


class LayerIntegratedGradients:
    """Integrated gradients of a forward function's output over one layer's activation.

    Args:
        forward_func: from tokens (and further arguments) to ``[B, ...]``, or a causal language
            model of transformers itself, which then stands for the probability of each token
            ``[B, V]`` after the last position, in eval mode.
        layer: the module whose output or input is attributed: of an MLP the down projection or
            the non-linearity with ``attribute_to_layer_input=True``, or the up projection. A list
            of one gives a list of one.
        device_ids: only None or empty.
        multiply_by_inputs: whether scores are multiplied by (activation - baseline).

    Raises:
        UserError: an argument is of a kind that is not supported.

    Source:
        Names and meaning of captum's class of the same name (captum.ai).
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | list[nn.Module],
        device_ids: Sequence[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        if not callable(forward_func):
            raise UserError(
                f"forward_func must be a function or a model; got {type(forward_func).__name__}"
            )
        self._in_a_list = isinstance(layer, list) and len(layer) == 1
        if isinstance(layer, list) and len(layer) == 1:
            layer = layer[0]
        if isinstance(layer, list | tuple):
            raise UserError(
                "layer must be one module; a list, whose layers would move together along one "
                f"path, is not supported; got {len(layer)}: make one object a layer"
            )
        if not isinstance(layer, nn.Module):
            raise UserError(f"layer must be a module of the model; got {type(layer).__name__}")
        if device_ids is not None and len(device_ids):
            raise UserError(
                "device_ids must be None or empty, since DataParallel is not supported; got "
                f"{device_ids!r}"
            )
        self.forward_func, self.layer = forward_func, layer
        self.multiplies_by_inputs = multiply_by_inputs  # as in captum

    def has_convergence_delta(self) -> bool:
        """As in captum."""
        return True

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        baselines: Tensor | float | tuple[Tensor | float] | None = None,
        target: Target = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Scores in the shape of the layer's activation, every position along the path at once.

        Args:
            inputs: ``[B, ...]``, usually tokens; it or its baseline may be a tuple of one.
            baselines: of the inputs: a tensor of their shape (or one row), a number, or None for 0.
            target: which output of each example: None where there is one, a number for all, a
                tensor or list with one for each, a tuple of indices into more than one axis, or a
                list of such tuples, one an example. No bools.
            additional_forward_args: one or a tuple; tensors must have B rows or no axis.
            n_steps: points of the rule.
            method: ``gausslegendre``, ``riemann_left``, ``riemann_middle``, ``riemann_right`` or
                ``riemann_trapezoid`` (with captum's weights, which sum to (n - 1) / n).
            internal_batch_size: most rows (examples times steps) in one forward; None for all.
            return_convergence_delta: also return ``[B]``, the sum of an example's scores minus the
                change of the output between baselines and inputs. It is not small where
                something leads past the layer, as the residual stream does.
            attribute_to_layer_input: the layer's first input instead of its output.
            grad_kwargs: only None or empty.

        Returns:
            The scores, or (scores, delta); at least float32. Where a model has flattened its batch
            (OPT: ``[B * T, F]``) they have that shape, too, an example's rows behind one another.

        Raises:
            UserError: an argument is of a kind that is not supported, or the layer's activation is
                not one tensor with a row, or equally many, an example.
        """
        ids: Tensor = single(inputs)
        require_supported(ids, grad_kwargs)
        start = baseline_inputs(ids, single(baselines))
        alphas, weights = rule(method, positive("n_steps", n_steps))
        most = len(alphas) * len(ids)
        if internal_batch_size is not None:
            most = positive("internal_batch_size", internal_batch_size)
        more = additional_forward_args
        more = more if isinstance(more, tuple) else (() if more is None else (more,))
        with self._grad():
            task = _Task(self._forward(), self.layer, attribute_to_layer_input, target, more)
            value, out_value = task.clean(ids)
            origin, out_origin = task.clean(start)
            gradient = task.integrate(ids, origin, value, (alphas, weights), most)
        scores = gradient * (value - origin) if self.multiplies_by_inputs else gradient
        found = [scores] if self._in_a_list else scores
        if not return_convergence_delta:
            return found
        return found, scores.reshape(len(ids), -1).sum(1) - (out_value - out_origin)

    @contextlib.contextmanager
    def _grad(self) -> Iterator[None]:
        if isinstance(self.forward_func, nn.Module):
            with guest(self.forward_func, grad=True):
                yield
            return
        # What a function runs beside the layer is not known: one of them at a time.
        with _FUNCTIONS, locked(self.layer), torch.enable_grad():
            yield

    def _forward(self) -> Callable[..., Any]:
        model = self.forward_func
        if not hasattr(model, "get_output_embeddings"):
            return model

        def probabilities(ids: Tensor, *more: Any) -> Tensor:
            logits: Tensor = model(ids, *more, use_cache=False).logits[:, -1]
            return torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)

        return probabilities


class _Task:
    """One forward function and layer: activations at two ends, and gradients between them."""

    def __init__(
        self,
        forward: Callable[..., Any],
        layer: nn.Module,
        of_input: bool,
        target: Target,
        more: tuple[Any, ...],
    ) -> None:
        self.forward, self.layer, self.of_input = forward, layer, of_input
        self.target, self.more = target, more
        # Behind the projection a backward hook of the user's on it would not run.
        hooked = backward_hooks(layer) or global_backward_hooks()
        self.matrix = dense_matrix(layer) if of_input and not hooked else None

    @torch.no_grad()
    def clean(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's activation in at least float32, and the target's output ``[B]``."""
        seen: list[Any] = []
        outputs: list[Any] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen.append(args[0] if self.of_input and args else output)
            outputs.append(output.flatten(0, -2) if self.matrix is not None else output)

        with hooks([self.layer.register_forward_hook(keep)]):
            out = self._output(inputs, 1)
        name = type(self.layer).__name__
        if len(seen) != 1:
            raise UserError(
                f"layer must run once in a forward of forward_func; {name} ran {len(seen)} times"
            )
        x = seen[0]
        if not isinstance(x, Tensor) or not x.ndim or not len(x) or len(x) % len(inputs):
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise self._other_rows(f"{len(inputs)} rows, one an example, or a multiple", found)
        if (
            self.matrix is not None
            and x.ndim > 1
            and does_more(self.layer, x.flatten(0, -2), outputs[0])
        ):
            self.matrix = None  # a hook of the user's
        self.dtype = x.dtype  # of what the layer is given or gives
        return x.to(torch.promote_types(x.dtype, torch.float32)), out

    def _other_rows(self, expected: str, found: Any) -> UserError:
        return UserError(
            f"layer's activation must be one tensor with {expected}; {type(self.layer).__name__} "
            f"has {found}"
        )

    def integrate(
        self, inputs: Tensor, origin: Tensor, value: Tensor, points: tuple[Any, Any], most: int
    ) -> Tensor:
        """Weighted sum over the path of the gradients at the layer's activation."""
        change, matrix = value - origin, None
        if self.matrix is not None:
            matrix = self.matrix.to(value.dtype)
            bias: Any = self.layer.bias
            change, origin = change @ matrix, origin @ matrix
            origin = origin if bias is None else origin + bias.detach().to(value.dtype)
        total = torch.zeros_like(origin)
        step = max(1, most // len(inputs))
        alphas, weights = (torch.as_tensor(p, dtype=value.dtype).to(value.device) for p in points)
        parts = zip(torch.split(alphas, step), torch.split(weights, step), strict=True)
        for along, share in parts:
            path = origin + along.view(-1, *[1] * origin.ndim) * change
            total += torch.tensordot(share, self._gradients(inputs, path), dims=1)
        return total if matrix is None else total @ matrix.T

    def _gradients(self, inputs: Tensor, path: Tensor) -> Tensor:
        """Gradients ``[S, B, ...]`` at points of the path, each a forward of the whole input."""
        n = len(path)
        leaf = path.flatten(0, 1).to(self.dtype).detach().requires_grad_(True)

        # Copies, since a model may change what it is given in place (Falcon adds to it).
        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (instead(args[0]), *args[1:])

        def after(_module: nn.Module, _args: Any, output: Any) -> Tensor:
            return instead(output)

        def instead(x: Tensor) -> Tensor:
            # Rows that are not the examples' do not grow with them.
            if len(x) != len(leaf):
                raise self._other_rows(f"{len(leaf)} rows for {n} steps", list(x.shape))
            return leaf.clone()

        if self.of_input and self.matrix is None:
            handle = self.layer.register_forward_pre_hook(before)
        else:
            handle = self.layer.register_forward_hook(after)
        with hooks([handle]):
            out = self._output(inputs.repeat(n, *[1] * (inputs.ndim - 1)), n)
        (found,) = torch.autograd.grad(out.sum(), leaf)
        return found.reshape(path.shape).to(path.dtype)

    def _output(self, inputs: Tensor, copies: int) -> Tensor:
        """The target's output ``[copies * B]``."""
        more = [repeated(arg, len(inputs) // copies, copies) for arg in self.more]
        out: Any = self.forward(inputs, *more)
        if not isinstance(out, Tensor) or out.shape[:1] != inputs.shape[:1]:
            found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"forward_func must return one tensor with {len(inputs)} rows; got {found}"
            )
        return select(out, self.target, copies)
