"""What a worker is given, and what it does: load a model once, then chunk after chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkn_engine.config import Config
from dkn_engine.run.pipeline import Files
from dkn_engine.types import Fact


@dataclass(frozen=True)
class ModelSpec:
    """How a worker gets its model; see :func:`dkn_engine.load_model`.

    Attributes:
        name: ``"demo"``, a hub id or a local folder.
        device, dtype: of the weights. With ``auto`` or ``cuda`` and several GPUs, worker i takes
            GPU i modulo their number.
        threads: torch's CPU threads in a worker.
        dequantize: whether quantised weights are unpacked.
    """

    name: str | Path
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    dequantize: bool = False


@dataclass(frozen=True)
class Job:
    """All that a worker must know beside its tasks.

    Attributes:
        model: what to load.
        config: all choices.
        sample: facts for controls on other facts.
    """

    model: ModelSpec
    config: Config
    sample: tuple[Fact, ...]

    def start(self, number: int = 0) -> ChunkWorker:
        """A worker for it; see there."""
        return ChunkWorker(self, number)


class ChunkWorker:
    """A loaded model and the stages for it; by its number, from 0, a worker takes one of the GPUs.

    Raises:
        UserError: the model cannot be loaded.
        UnsupportedModelError: it is none that the engine knows.
    """

    def __init__(self, job: Job, number: int = 0) -> None:
        import torch
        from transformers.utils import logging

        from dkn_engine.models.fingerprint import identity_of
        from dkn_engine.models.load import load_model
        from dkn_engine.run.stages import Stages

        torch.set_num_threads(job.model.threads)
        logging.disable_progress_bar()
        spec = job.model
        device = device_of(spec.device, number, torch.cuda.device_count())
        self.model, self.tokenizer = load_model(
            spec.name, device, spec.dtype, dequantize=spec.dequantize
        )
        self._stages = Stages(self.model, self.tokenizer, job.sample, job.config)
        self.identity = identity_of(self.model, self.tokenizer)

    def do(self, task: Any, tell: Callable[[int, int], None]) -> Any:
        """What becomes of a task: of a chunk, its tables as Parquet files by table name.

        Args:
            task: a chunk's :class:`dkn_engine.run.tasks.Task`; or a function of (model, tokenizer,
                tell), whose value is what becomes of it.
            tell: takes how far it is, (done, total); a chunk is too short for that.
        """
        if callable(task):
            return task(self.model, self.tokenizer, tell)
        files: Files = self._stages.files(task)
        return files


def device_of(device: str, number: int, n_gpus: int) -> str:
    """The device of a worker: its own GPU where there are several and none was named."""
    if device in {"auto", "cuda"} and n_gpus > 1:
        return f"cuda:{number % n_gpus}"
    return device
