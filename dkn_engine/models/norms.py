"""The norm in front of an MLP and its gain, found by what they do rather than by their names.

Libraries keep the gain itself, or its distance from 1, under one name; and give one name to norms
in front of an MLP and behind it. So the model is run to see whose output an MLP reads, and the norm
is run on inputs whose normalised values are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dkn_engine.models.devices import input_device, with_data
from dkn_engine.models.guest import guest, hooks

if TYPE_CHECKING:
    from torch import Tensor, nn

_N_TOKENS = 4
_SCALE = 32.0  # so large that no epsilon counts, so small that squares fit in float16
_FINEST = 1e-6  # rounding of norms that compute in float32 whatever they are given


def norms_in_front(
    model: nn.Module,
    layers: Sequence[tuple[nn.Module, nn.Module]],
    inputs: Callable[[Tensor], dict[str, Any]],
) -> tuple[tuple[str, nn.Module] | None, ...]:
    """For each layer, the module whose output its MLP reads, with its path in the layer.

    None where the MLP reads something else, such as the residual stream itself.

    The model is run once on a few tokens; ``layers`` are each decoder layer and the first
    projection of its MLP, ``inputs`` what makes tokens the model's arguments.
    """
    import torch

    found: dict[int, tuple[str, nn.Module]] = {}
    ids = torch.arange(_N_TOKENS, device=input_device(model))[None]
    handles = [h for i, (layer, gate) in enumerate(layers) for h in _watch(layer, gate, found, i)]
    with guest(model, grad=False), hooks(handles):
        model(**inputs(ids), use_cache=False)
    return tuple(found.get(i) for i in range(len(layers)))


def _watch(
    layer: nn.Module, gate: nn.Module, found: dict[int, tuple[str, nn.Module]], number: int
) -> Iterator[Any]:
    """Handles of hooks that note in a forward pass whose output the layer's ``gate`` reads."""
    import torch

    ended: list[tuple[str, nn.Module, Tensor]] = []

    def keep(path: str, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            ended.append((path, module, output))

    def look_up(_gate: nn.Module, args: tuple[Tensor, ...]) -> None:
        read = args[0]
        # The first: a dropout behind it, or a module around it, passes the same on.
        for path, module, output in ended:
            if output.numel() == read.numel() and bool(read.any()):
                same = output.reshape(read.shape).to(read.dtype) == read
                if bool(same.all()):
                    found[number] = (path, module)
                    return

    for path, module in layer.named_modules():
        if path:
            yield module.register_forward_hook(partial(keep, path))
    yield gate.register_forward_pre_hook(look_up)


def measured_gain(norm: nn.Module, like: Tensor) -> Tensor | None:
    """The factor ``[d]`` by which a norm multiplies each normalised input; None if it is no norm.

    In at least float32; arguments as for :func:`fitted_norm`.
    """
    found = fitted_norm(norm, like)
    return None if found is None else found[0]


def fitted_norm(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor, bool] | None:
    """Gain ``[d]`` and bias ``[d]`` of a norm, and whether it takes its input's mean away.

    Args:
        norm: divides by the root mean square of its input or by its standard deviation,
            multiplies by the gain, and may add a bias; with its hooks.
        like: a tensor ``[n, d]`` of the dtype and on the device of the norm's inputs.

    Returns:
        In at least float32: the gain ``weight`` or ``1 + weight`` without any rounding where the
        norm multiplies by that, else what was measured; the bias as measured. None if outputs are
        not a constant gain times the normalised input plus a constant, or the module does not run
        on one tensor.
    """
    import torch

    probe = _probe(like.shape[-1]).to(like.device)
    with torch.inference_mode(False), torch.no_grad():
        inputs = torch.cat([probe, -probe, _random(like).double()]).mul(_SCALE).to(like.dtype)
        try:
            outputs = norm(inputs[None])
        except (TypeError, AttributeError):  # it takes more than one tensor, such as a gate
            return None
        if not isinstance(outputs, torch.Tensor) or outputs.shape != inputs[None].shape:
            return None
        eps = max(_FINEST, float(torch.finfo(outputs.dtype).eps))
        y = outputs[0].double()
        normed = probe[0] / probe.square().mean().sqrt()
        gain, bias = (y[0] - y[1]) / 2 / normed, (y[0] + y[1]) / 2
        centred = _centred(inputs[2:].double(), y[2:], gain, bias, max(1e-4, 2 * eps))
        if centred is None:
            return None
        wide = torch.promote_types(like.dtype, torch.float32)
        allowed = 2 * eps * (y[0].abs() + y[1].abs()) / normed.abs()
        return _exact(norm, gain, allowed, wide), bias.to(wide), centred


def _probe(d: int) -> Tensor:
    """Float64 ``[1, d]`` of mean zero and without zeros: the same for both ways to normalise."""
    import torch

    probe = torch.ones(1, d, dtype=torch.float64)
    probe[:, 1::2] = -1
    if d % 2:
        probe[:, :3] = torch.tensor([2.0, -1.0, -1.0])
        probe[:, 3::2], probe[:, 4::2] = 1, -1
    return probe


def _random(like: Tensor) -> Tensor:
    """Float32 ``[4, d]`` with means that are not zero, without the user's random state."""
    import torch

    drawn = torch.randn(4, like.shape[-1], generator=torch.Generator().manual_seed(0))
    drawn += torch.tensor([[0.0], [0.5], [-1.0], [1.0]])
    drawn[3] *= 2
    return drawn.to(like.device)


def _centred(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor, allowed: float) -> bool | None:
    """Whether outputs are the gain times the input without its mean, normalised, plus the bias.

    False if with it, None if neither. ``x, y`` float64 ``[n, d]``.
    """
    for shift in (0.0, x.mean(-1, keepdim=True)):
        centred = x - shift
        expected = gain * centred / centred.square().mean(-1, keepdim=True).sqrt() + bias
        if bool(((y - expected).norm(dim=-1) <= allowed * y.norm(dim=-1)).all()):
            return not isinstance(shift, float)
    return None


def _exact(norm: nn.Module, gain: Tensor, allowed: Tensor, wide: Any) -> Tensor:
    """The kept gain that was measured, free of the measurement's rounding; else the measured."""
    near = [c for c in _kept(norm, wide) if bool(((c.double() - gain).abs() <= allowed).all())]
    if not near:
        return gain.to(wide)
    return min(near, key=lambda c: float((c.double() - gain).abs().sum()))


def _kept(norm: nn.Module, wide: Any) -> Iterator[Tensor]:
    """What libraries mean by a norm's weight, ``[d]`` of dtype ``wide``."""
    with with_data(norm):
        weight: Any = getattr(norm, "weight", None)
    if getattr(weight, "ndim", 0) == 1:
        yield weight.detach().to(wide)
        yield 1 + weight.detach().to(wide)
