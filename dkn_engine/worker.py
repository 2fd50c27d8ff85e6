"""What a worker is given, and what it does: load a model once, then chunk after chunk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dkn_engine.config import Config
from dkn_engine.pipeline import Files, Identity, model_name
from dkn_engine.plan import Task
from dkn_engine.types import Fact


@dataclass(frozen=True)
class ModelSpec:
    """How a worker gets its model; see :func:`dkn_engine.load_model`.

    Attributes:
        name: ``"demo"``, a hub id or a local folder.
        device, dtype: of the weights. With ``auto`` or ``cuda`` and several GPUs, worker i takes
            GPU i modulo their number.
        threads: torch's CPU threads in a worker.
    """

    name: str | Path
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Job:
    """All that a worker must know beside its chunks.

    Attributes:
        model: what to load.
        config: all choices.
        sample: facts for controls on other facts.
    """

    model: ModelSpec
    config: Config
    sample: tuple[Fact, ...]


class ChunkWorker:
    """A loaded model and the stages for it.

    Args:
        job: what to do.
        number: of the worker, from 0, to spread workers over GPUs.

    Raises:
        UserError: the model cannot be loaded.
        UnsupportedModelError: it is not a causal decoder that the engine knows.
    """

    def __init__(self, job: Job, number: int = 0) -> None:
        import torch
        from transformers.utils import logging

        from dkn_engine.models import load_model, model_fingerprint
        from dkn_engine.stages import Stages

        torch.set_num_threads(job.model.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers
        device = device_of(job.model.device, number, torch.cuda.device_count())
        model, tokenizer = load_model(job.model.name, device, job.model.dtype)
        self.identity = Identity(model_fingerprint(model), model_name(model))
        self._stages = Stages(model, tokenizer, job.sample, job.config)

    def files(self, task: Task) -> Files:
        """A chunk's tables as Parquet files by table name."""
        return self._stages.files(task)


def device_of(device: str, number: int, n_gpus: int) -> str:
    """The device of a worker: its own GPU where there are several and none was named."""
    if device in {"auto", "cuda"} and n_gpus > 1:
        return f"cuda:{number % n_gpus}"
    return device
