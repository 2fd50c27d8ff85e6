"""A training that was stopped, in safetensors and JSON: enough to go on to the same weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkn_engine.analysis.experiments.evolvability.trainable import Block
from dkn_engine.errors import RunDirectoryError
from dkn_engine.files.atomic import write_files
from dkn_engine.files.code_digest import code_digest

logger = logging.getLogger(__name__)

_FORMAT = 1
_INDEX = "training.json"
_LOSSES = "losses"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A directory with the newest state of one training.

    Attributes:
        directory: made if it is not there.
        identity: what the training is: a state of another one is refused.
    """

    directory: Path
    identity: Mapping[str, Any]

    def save(
        self, blocks: Sequence[Block], optimiser: torch.optim.Optimizer, losses: Sequence[float]
    ) -> None:
        """Write the state after ``len(losses)`` steps; a kill leaves this one or the last one."""
        from safetensors.torch import save

        tensors = {_LOSSES: torch.tensor(losses, dtype=torch.float64)}
        for i, block in enumerate(blocks):
            tensors[f"{i}.values"] = block.values.detach().contiguous()
            for key, value in optimiser.state.get(block.values, {}).items():
                tensors[f"{i}.{key}"] = value.contiguous()
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"step-{len(losses):06d}.safetensors"
        index = {
            "format": _FORMAT,
            "code": code_digest(),
            "state": name,
            "identity": dict(self.identity),
        }
        text = json.dumps(index, indent=1) + "\n"
        write_files(self.directory, {name: save(tensors), _INDEX: text.encode()})
        for old in self.directory.glob("step-*"):
            if old.name != name:
                old.unlink()

    def load(
        self, blocks: Sequence[Block], optimiser: torch.optim.Optimizer
    ) -> NDArray[np.float64]:
        """Put the saved state back; the losses so far float64 ``[steps]``, empty without a state.

        A state of other code of the engine is none: what it holds may be another training's.

        Raises:
            RunDirectoryError: the state is of another training, or cannot be read.
        """
        index = self._index()
        if index is None:
            return np.empty(0)
        if index.get("code") != code_digest():
            logger.warning("%s is of other code; the training begins anew", self.directory)
            return np.empty(0)
        tensors = self._tensors(index)
        for i, block in enumerate(blocks):
            values = tensors[f"{i}.values"].to(block.values.device)
            with torch.no_grad():
                block.values.copy_(values)
            block.put()
            prefix = f"{i}."
            optimiser.state[block.values] = {
                # torch keeps the count of steps on the CPU unless asked otherwise.
                key.removeprefix(prefix): tensor
                if key.endswith(".step")
                else tensor.to(values.device)
                for key, tensor in tensors.items()
                if key.startswith(prefix) and key != f"{i}.values"
            }
        losses: NDArray[np.float64] = tensors[_LOSSES].numpy()
        return losses

    def _index(self) -> dict[str, Any] | None:
        path = self.directory / _INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"checkpoint {path} cannot be read: {error}") from error
        if not isinstance(index, dict) or index.get("format") != _FORMAT:
            raise RunDirectoryError(f"checkpoint {path}: expected format {_FORMAT}")
        # As JSON, where a tuple is a list.
        mine = json.loads(json.dumps(dict(self.identity)))
        found = index.get("identity")
        if found != mine:
            theirs = found if isinstance(found, dict) else {}
            key = next(k for k in (*mine, *theirs) if mine.get(k) != theirs.get(k))
            raise RunDirectoryError(
                f"checkpoint {self.directory} belongs to another training: its {key} is "
                f"{theirs.get(key)!r}, not {mine.get(key)!r}; give another directory"
            )
        return index

    def _tensors(self, index: Mapping[str, Any]) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.directory / str(index.get("state"))
        try:
            return load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise RunDirectoryError(f"checkpoint {path} cannot be read: {error}") from error
