"""What a model and the process are before and after: nothing of a guest may stay."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.support.tiny import down_of, tiny


def state(model: Any) -> dict[str, Any]:
    """Everything about a model that a guest could leave behind, comparable with ``==``."""
    return {
        "weights": {n: p.detach().numpy().tobytes() for n, p in model.named_parameters()},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "modules": [id(m) for m in model.modules()],
        "attention": model.config._attn_implementation,
        "random": (torch.get_rng_state().tolist(), random.getstate()),
        "numpy's random": np.random.get_state(legacy=False)["state"]["key"].tolist(),  # noqa: NPY002  (the global one)
        "threads": torch.get_num_threads(),
    }


def mixed_model(name: str) -> Any:
    """Half frozen, partly in training mode, with a hook of the user's."""
    model = tiny(name)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    down_of(name, model, 1).train()
    down_of(name, model, 0).register_forward_hook(lambda *_: None)
    return model


class Boom(Exception):
    pass


@contextlib.contextmanager
def broken(module: nn.Module) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise Boom

    handle = module.register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()
