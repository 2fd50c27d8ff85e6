"""Dense projections by their weight and bias alone, and refusals of those that do something else.

Scores, connections and gradients of single neurons are read off a projection's weight. A hook of
the user's that changes what comes out of it would make them wrong without a word. What a hook
does to the input is no matter: an activation is what the projection multiplies.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.affine import random_input
from dkn_engine.models.dense import is_conv1d, is_dense
from dkn_engine.models.devices import beside, with_data
from dkn_engine.models.guest import guest, hooks
from dkn_engine.models.layout import Layout
from dkn_engine.models.torch_internals import class_forward, output_hooks

_PROBES = 16


def project(module: nn.Module, x: Tensor) -> Tensor:
    """``x W + b`` ``[..., out]`` in the dtype of ``x`` ``[..., in]``, past hooks on the module.

    On the device of the module, wherever ``x`` is. What is not dense runs as it is, in the dtype
    that it takes.
    """
    if not is_dense(module):
        own: Tensor = class_forward(module)(beside(module, x))
        return own
    with with_data(module):
        weight: Any = module.weight
        bias: Any = getattr(module, "bias", None)
        weight, bias = (None if p is None else p.detach().to(x.dtype) for p in (weight, bias))
    x = x.to(weight.device)
    if not is_conv1d(module):
        return functional.linear(x, weight, bias)
    flat = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)
    return flat.view(*x.shape[:-1], -1)


def does_more(module: nn.Module, x: Tensor, output: Tensor) -> float | None:
    """How far ``output`` is from :func:`project`, as a share of its length; None where it is it.

    Args:
        module: a dense projection.
        x: ``[n, in]``, what it multiplied.
        output: ``[n, out]``, what came out behind all hooks. Rows that are not finite are left out.
    """
    own = project(module, x)
    finite = (own.isfinite() & output.isfinite()).all(-1)
    own, output = own[finite].double(), output[finite].double()
    # The same product with other batches: short dtypes round partial sums.
    allowed = max(1e-3, 4 * float(torch.finfo(x.dtype).eps))
    apart, length = float((output - own).norm()), float(own.norm())
    return apart / max(length, 1e-30) if apart > allowed * length else None


@contextlib.contextmanager
def refuse_changed_outputs(layout: Layout, pick: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Refuse down projections that give something else than their weight and bias, or do not run.

    Args:
        layout: of the model that runs in the block.
        pick: from a projection's input or output to the rows ``[n, F or d]`` to compare.

    Raises:
        UnsupportedModelError: names the projection.
    """
    ran: set[int] = set()

    def compare(layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        ran.add(layer)
        with torch.no_grad():
            apart = does_more(module, pick(args[0]), pick(output))
        if apart is not None:
            _refuse(layout, layer, module, f"something {apart:.1e} of its length away")

    downs = [mlp.down for mlp in layout.mlps]
    with hooks([d.register_forward_hook(partial(compare, i)) for i, d in enumerate(downs)]):
        yield
    for layer, down in enumerate(downs):
        if layer not in ran:
            require_once(layout, layer, down, 0)


def require_once(layout: Layout, layer: int, module: nn.Module, n: int) -> None:
    """Refuse a part of a layer that did not run exactly once in a forward pass, but ``n`` times.

    Raises:
        UnsupportedModelError: names the part.
    """
    if n != 1:
        why = (
            "an operation reads its weights past it" if n == 0 else "its runs cannot be told apart"
        )
        raise UnsupportedModelError(
            f"{layout.name_of(layer, module)} ({type(module).__name__}): expected it to run once "
            f"in a forward pass, to read and change its activations; found {n} runs: {why}"
        )


def refuse_unless_run(
    layout: Layout, layer: int, modules: Sequence[nn.Module]
) -> list[RemovableHandle]:
    """Hooks that refuse parts of a layer that do not run in a forward pass of it; their handles.

    The passes raise UnsupportedModelError, which names the first of the parts that did not run.
    """
    passes = threading.local()  # own forwards may run in several threads

    def begin(_module: Any, _args: Any) -> None:
        passes.ran = set()

    def mark(module: nn.Module, _args: Any) -> None:
        if hasattr(passes, "ran"):  # else it was called outside of its layer
            passes.ran.add(id(module))

    def end(_module: Any, _args: Any, _output: Any) -> None:
        for module in modules:
            if id(module) not in passes.ran:
                require_once(layout, layer, module, 0)

    whole = layout.layers[layer]
    return [
        whole.register_forward_pre_hook(begin),
        *(module.register_forward_pre_hook(mark) for module in modules),
        whole.register_forward_hook(end),
    ]


def refuse_changed_weight(layout: Layout, layer: int, module: nn.Module) -> None:
    """Refuse a projection whose output hooks change, by running it alone; without hooks it is not.

    Raises:
        UnsupportedModelError: names the projection.
    """
    if not output_hooks(module):
        return
    random = torch.Generator().manual_seed(0)
    probe = random_input(module, _PROBES, random).unsqueeze(0)
    seen: list[Any] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(does_more(module, args[0][0], output[0]))

    # As it is in a call of the engine: without dropout, say, of an adapter.
    with guest(module, grad=False), hooks([module.register_forward_hook(keep)]):
        try:
            module(probe)
        except Exception as error:  # of a hook that takes only what the model gives
            _refuse(layout, layer, module, f"{type(error).__name__} from one on a try", error)
    if seen[0] is not None:
        _refuse(layout, layer, module, f"something {seen[0]:.1e} of its length away")


def _refuse(
    layout: Layout, layer: int, module: nn.Module, found: str, cause: Exception | None = None
) -> None:
    raise UnsupportedModelError(
        f"{layout.name_of(layer, module)}: expected an output that is its input times "
        f"its weight and bias, which are read for single neurons; found {found}: remove the "
        "forward hook that changes it, or put it on the MLP or the layer"
    ) from cause
