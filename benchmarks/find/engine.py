"""One engine at work in a process of its own: asked in lines of JSON, it answers in lines of JSON.

A script that imports only the engine that comes first on the module path, which may be that of
another commit: ``PYTHONPATH=TREE python -P benchmarks/find/engine.py``. The first line loads a
model and facts, each later one asks for ``time``, ``count``, ``stages`` or ``peak``; ``Engine`` in
``benchmarks.find.turns`` is the other end.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import dkn_engine as dkn
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import encode_fact
from dkn_engine.run import stages as run_stages

STAGES = ("clean", "attribution", "filter")


class Work:
    """A model, facts and a configuration; see the functions for what may be asked of them.

    Args:
        model: ``demo`` or a folder.
        facts: ``demo`` or a facts file.
        n: how many of them; see :func:`taken`.
        config: as in a manifest.
        paraphrases: keep those of the facts.
    """

    def __init__(
        self, model: str, facts: str, n: int, config: dict[str, Any], paraphrases: bool = True
    ) -> None:
        self.model, self.tokenizer = dkn.load_model(model, device="cpu")
        self.config = dkn.Config.from_dict(config)
        self.facts = taken(dkn.load_facts(facts), n)
        if not paraphrases:
            self.facts = [dataclasses.replace(f, paraphrases=()) for f in self.facts]

    def find(self) -> dkn.Results:
        return dkn.find_dkns(self.model, self.tokenizer, self.facts, self.config)


def taken(facts: list[dkn.Fact], n: int) -> list[dkn.Fact]:
    """``n`` facts spread over all; of more than there are, all again and again by other ids."""
    if n <= len(facts):
        return facts[:: len(facts) // n][:n]
    rounds = range(-(-n // len(facts)))
    copies = (dataclasses.replace(f, id=f"{f.id}-{i}") if i else f for i in rounds for f in facts)
    return [fact for fact, _ in zip(copies, range(n), strict=False)]


def measured_time(work: Work) -> dict[str, Any]:
    """Processor seconds of one run, GFLOP/s of the machine just before, and what was found."""
    rate = gemm_rate()
    start = time.process_time()
    results = work.find()
    seconds = time.process_time() - start
    return {"seconds": seconds, "rate": rate, "results": [summary(r) for r in results]}


def summary(result: dkn.FactResult) -> dict[str, Any]:
    """What two engines are compared by."""
    return {
        "status": result.status,
        "neurons": len(result.neurons),
        "components": len(result.components),
        "dkn": [int(i) for i in result.dkn],
        "drops": [result.partial_drop, result.full_drop],
    }


def gemm_rate() -> float:
    """The machine's own GFLOP/s on products of the sweep's size, the median of five."""
    a, b, times = torch.randn(512, 576), torch.randn(576, 1536), []
    for _ in range(6):
        start = time.process_time()
        for _ in range(20):
            a @ b
        times.append(time.process_time() - start)
    return 20 * 2 * 512 * 576 * 1536 / 1e9 / statistics.median(times[1:])


class Counts(TorchDispatchMode):
    """Operations in products of matrices, and rows that climb the layers, by stage.

    Rows are read off the products with the MLPs' output projections, forward ones alone.

    Attributes:
        stage: what is at work.
        flop: operations by stage and by ``layers`` or ``head``.
        calls: layers that rows went through, by stage.
        climbs: rows in the last layer of each climb, by stage; those whose gradients are taken
            under the stage's name and ``_backward``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        layout = find_layout(model)
        self.stage = STAGES[0]
        self.flop: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[str] = Counter()
        self.climbs: defaultdict[str, list[int]] = defaultdict(list)
        self._head = storage(model.get_output_embeddings().weight)
        weights: list[Any] = [mlp.down.weight for mlp in layout.mlps]
        self._layer = {storage(weight): i for i, weight in enumerate(weights)}
        self._width, self._last = layout.width, layout.n_layers - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # The registry does not know the form that adds in place.
        name = torch.ops.aten.addmm if func is torch.ops.aten.addmm_.default else func
        count = flop_registry.get(getattr(name, "overloadpacket", name))
        if count is not None:
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            kind = "head" if any(storage(t) == self._head for t in tensors) else "layers"
            self.flop[self.stage, kind] += count(*args, **(kwargs or {}), out_val=out)
            self._climb(tensors)
        return out

    def _climb(self, tensors: list[torch.Tensor]) -> None:
        layer = next((self._layer[s] for t in tensors if (s := storage(t)) in self._layer), None)
        left = tensors[-2]  # [rows, F] forward, [rows, d] backward
        if layer is None or left.shape[-1] != self._width:
            return
        self.calls[self.stage] += 1
        if layer == self._last:
            where = f"{self.stage}_backward" if torch.is_grad_enabled() else self.stage
            self.climbs[where].append(left.numel() // self._width)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Follow the stages inside the block: what comes after attribution is the filter."""

        def attribute(*args: Any, **kwargs: Any) -> Any:
            self.stage = "attribution"
            try:
                return before(*args, **kwargs)
            finally:
                self.stage = "filter"

        stages: Any = run_stages
        before = stages.attribute_chunk
        with patch.object(stages, "attribute_chunk", attribute), self:
            yield


def storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def counted(work: Work) -> dict[str, Any]:
    """Operations of one run, in 10^9, in products of matrices."""
    counts = Counts(work.model)
    with counts:
        work.find()
    return {"gflop": sum(counts.flop.values()) / 1e9}


def counted_stages(work: Work) -> dict[str, Any]:
    """Operations and rows of the facts as one chunk, by stage; the reference facts are not in it.

    Raises:
        SystemExit: the model does not know a fact.
    """
    stages = run_stages.Stages(work.model, work.tokenizer, work.facts, work.config)
    getattr(stages, "reference", None)  # made once a run, when it is first asked for
    counts = Counts(work.model)
    with counts.told():
        results = stages.results(work.facts)
    unknown = [r.fact_id for r in results if r.status != "ok"]
    if unknown:
        raise SystemExit(f"the model does not know {unknown[0]!r}")
    tokens = [
        len(encode_fact(work.tokenizer, f.prompt, f.answer, config=work.config.facts).answer_ids)
        for f in work.facts
    ]
    return {
        "facts": len(work.facts),
        "answer_tokens": statistics.mean(tokens),
        "components": statistics.mean(len(r.components) for r in results),
        "flop": {f"{stage}_{kind}": n for (stage, kind), n in counts.flop.items()},
        "calls": dict(counts.calls),
        "climbs": dict(counts.climbs),
    }


def resident() -> float:
    """MiB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak(work: Work) -> dict[str, Any]:
    """The most resident MiB in one run above those with the model loaded; once a process."""
    for parameter in work.model.parameters():
        parameter.sum()  # weights are mapped from the file until they are touched
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading has freed is not the model's
    loaded, seen, done = resident(), [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            seen.append(resident())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    work.find()
    done.set()
    sampler.join()
    return {"mib": max(seen) - loaded}


TASKS = {"time": measured_time, "count": counted, "stages": counted_stages, "peak": peak}


def main() -> None:
    """Answer until there is no further line; what libraries print goes to standard error."""
    torch.set_num_threads(1)
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work = Work(**json.loads(sys.stdin.readline()))
    reply: dict[str, Any] = {"engine": dkn.__file__}
    print(json.dumps(reply), file=said, flush=True)
    for line in sys.stdin:
        print(json.dumps(TASKS[json.loads(line)](work)), file=said, flush=True)


if __name__ == "__main__":
    main()
