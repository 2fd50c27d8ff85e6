"""Attribution beside its peers, on facts of the demo model: time, rate, error, points, memory.

One thread, masked baseline unless said otherwise. Every provider's result is compared with the
engine's before its time counts; a difference ends the run.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import dkn_engine as dkn
from benchmarks.rows import Row, require_equal, row, timed
from benchmarks.speed import peers
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores
from dkn_engine.config import AttributionConfig, FactsConfig
from dkn_engine.degeneracy.controls import subset_edits
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import by_layer
from dkn_engine.degeneracy.edits_by_forwards import change_at
from dkn_engine.forward.encoding import encode_sequence, n_tokens
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import mask_token_id

# T = 12 tokens; a prefix of the text gives the shorter prompts.
PROMPT, ANSWER = "In the far north of Europe, Copenhagen is the capital of", "Denmark"
PROMPTS = {
    6: "Copenhagen is the capital of",
    12: PROMPT,
    24: f"Many people who travel there by train or boat know it. {PROMPT}",
}
N_STEPS = 20
LEFT = AttributionConfig(quadrature="riemann_left", n_steps=N_STEPS)
ADAPTIVE = AttributionConfig()
FACTS_AT_ONCE = 8


def build_case(prompt: str = PROMPT) -> peers.Case:
    """One fact and the demo model."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    sequence = encode_sequence(model, tokenizer, prompt, ANSWER, config=FactsConfig())
    return peers.Case(model, find_layout(model), sequence, mask_token_id(tokenizer))


def engine(case: peers.Case, config: AttributionConfig, copies: int = 1) -> ChunkScores:
    """The engine's own scores; of the fact, and of others like it in one chunk, as in a run.

    The others begin with other tokens, or copies would share what is read of a masked prompt.
    """
    ids = case.sequence.ids
    firsts = [(ids[0] + k) % n_tokens(case.model) for k in range(copies)]
    sequences = [dataclasses.replace(case.sequence, ids=(first, *ids[1:])) for first in firsts]
    return attribute_chunk(case.model, case.layout, sequences, config, mask_id=case.mask_id)


class _Counter(TorchDispatchMode):
    """Counts what torch's registry knows of: products of matrices and attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # The registry does not know the form that adds in place.
        name = torch.ops.aten.addmm if func is torch.ops.aten.addmm_.default else func
        count = flop_registry.get(getattr(name, "overloadpacket", name))
        if count is not None:
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        return out


def gflop(work: Callable[[], object]) -> float:
    """10^9 floating-point operations in products of matrices."""
    with _Counter() as counter:
        work()
    return float(counter.flop / 1e9)


def equal_points() -> Iterator[Row]:
    """The same 20 left points by every provider, and the adaptive rule beside them."""
    case = build_case()
    name = f"left_{N_STEPS}_T{len(case.sequence.ids)}"
    providers: dict[str, Callable[[peers.Case, int], np.ndarray]] = {
        "released": peers.released,
        "released_lean": peers.lean,
        "captum": peers.captum,
    }
    # In float64 and on a part of the model: in float32 the peers' own rounding (backward through
    # the head, 49,152 terms a sum) is 1e-4 of their gradient, and would hide what it should show.
    small = cut(case, 4)
    small.model.double()
    expected = engine(small, LEFT).scores[0]
    for provider, run in providers.items():
        # captum scales its points in float32 whatever the model's dtype.
        allowed = 1e-5 if provider == "captum" else 1e-9
        require_equal(provider, run(small, N_STEPS), expected, allowed)
    providers["eleuther"] = peers.eleuther
    require_equal("eleuther", peers.eleuther(small, N_STEPS), inclusive(small, N_STEPS), 1e-9)
    ours = [
        Ours(case, label, config, copies)
        for config, label in ((LEFT, name), (ADAPTIVE, "adaptive_T12"))
        for copies in (1, FACTS_AT_ONCE)
    ]
    # A peer takes a minute, in which the machine may change: the engine before and after each.
    for provider, run in providers.items():
        for one in ours:
            one.turn()
        times = timed(partial(run, case, N_STEPS), 1, warm=False)
        yield row(name, provider, "seconds_per_fact", times)
    for one in ours:
        one.turn()
        yield from one.rows()


def inclusive(case: peers.Case, n_steps: int) -> np.ndarray:
    """EleutherAI's rule and site by the engine."""
    config = AttributionConfig(site="pre", baseline="zero", quadrature="linspace", n_steps=n_steps)
    found: np.ndarray = engine(case, config).scores[0]
    return found


class Ours:
    """The engine's time a fact, and its rate beside the machine's, over some turns."""

    def __init__(self, case: peers.Case, name: str, config: AttributionConfig, copies: int) -> None:
        self.name, self.copies = name, copies
        self._work = lambda: engine(case, config, copies)
        self._count = gflop(self._work)
        self._seconds: list[float] = []
        self._shares: list[float] = []

    def turn(self) -> None:
        peak = gemm_rate()
        (seconds,) = timed(self._work, 1, warm=False)
        self._seconds.append(seconds)
        self._shares.append(self._count / seconds / peak)

    def rows(self) -> Iterator[Row]:
        provider = "dkn_engine" if self.copies == 1 else f"dkn_engine_{self.copies}"
        per_fact = [t / self.copies for t in self._seconds]
        yield row(self.name, provider, "seconds_per_fact", per_fact)
        rates = [self._count / t for t in self._seconds]
        yield row(self.name, provider, "gflop_per_second", rates)
        yield row(self.name, provider, "share_of_gemm_peak", self._shares)


def gemm_rate() -> float:
    """The machine's own GFLOP/s on products of the sweep's size, right now."""
    a, b = torch.randn(512, 576), torch.randn(576, 1536)
    times = timed(lambda: [a @ b for _ in range(40)], 7)
    return 40 * 2 * 512 * 576 * 1536 / 1e9 / float(np.median(times))


def peak() -> Iterator[Row]:
    """The rate of products of matrices, as the sweep's share is taken of it."""
    rates = [gemm_rate() for _ in range(3)]
    yield row("gemm_512x576x1536", "torch", "gflop_per_second", rates)


def accuracy() -> Iterator[Row]:
    """Error at equal cost and cost at equal error, over demo facts, both baselines."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    facts = dkn.load_facts("demo")[::4]
    configs: dict[str, dict[str, Any]] = {
        **{f"tolerance {t:g}": {"tolerance": t} for t in (1e-2, 1e-3, 1e-4)},
        **{f"left {n}": {"quadrature": "riemann_left", "n_steps": n} for n in (10, 20)},
        "gauss_legendre 8": {"quadrature": "gauss_legendre", "n_steps": 8},
    }
    for baseline in ("masked", "zero"):
        dense = AttributionConfig(baseline=baseline, tolerance=2e-5, max_points=2048)
        truth = dkn.attribute(model, tokenizer, facts, dense).scores.astype(np.float64)
        for name, options in configs.items():
            config = AttributionConfig(baseline=baseline, **options)
            kept: list[Any] = []
            work = lambda config=config, kept=kept: kept.append(  # noqa: E731
                dkn.attribute(model, tokenizer, facts, config)
            )
            seconds = timed(work, 1, warm=False)[0] / len(facts)
            found = kept[0]
            for part, layers in (("all layers", slice(None)), ("layer 0", slice(0, 1))):
                apart = found.scores[:, layers] - truth[:, layers]
                errors = np.linalg.norm(apart, axis=(1, 2)) / np.linalg.norm(truth, axis=(1, 2))
                case = f"{baseline}, {part}"
                yield row(case, name, "relative_error", [float(e) for e in errors])
            yield row(baseline, name, "points_per_layer", found.n_points.mean(1).tolist())
            yield row(baseline, name, "seconds_per_fact", [seconds])


def subsets() -> Iterator[Row]:
    """All subsets of 8 components of 6 neurons: one sweep against 256 patched forwards."""
    case = build_case()
    rng = np.random.default_rng(0)
    n_layers, width = case.layout.n_layers, case.layout.width
    flat = rng.choice(n_layers * width, size=(8, 6), replace=False)
    sets = [np.stack(np.divmod(f, width), axis=1).astype(np.int32) for f in flat]
    edits = subset_edits(sets, np.arange(256))

    def ours(case: peers.Case, edits: list[Any]) -> np.ndarray:
        return Prompts(case.model, case.layout, [case.sequence]).probabilities(edits)[:, 0]

    # In float64 and on a part of the model, as in ``equal_points``.
    small = cut(case, 4)
    small.model.double()
    few = subset_edits([s % np.array([4, width], dtype=np.int32) for s in sets], np.arange(256))
    require_equal("256 forwards", one_by_one(small, few), ours(small, few), 1e-9)
    times = timed(lambda: one_by_one(case, edits), 1, warm=False)
    yield row("subsets_2^8_T12", "256 forwards", "seconds_per_fact", times)
    times = timed(lambda: ours(case, edits), 5)
    yield row("subsets_2^8_T12", "dkn_engine", "seconds_per_fact", times)


@torch.no_grad()
def one_by_one(case: peers.Case, edits: list[Any]) -> np.ndarray:
    """The answer's probability under each edit, a full forward each, last logits only."""
    found = []
    here = torch.zeros(1, len(case.sequence.ids), dtype=torch.bool)
    here[0, -1] = True
    for edit in edits:
        handles = [
            case.layout.mlps[l].down.register_forward_pre_hook(change_at(one, here))
            for l, one in by_layer([edit]).items()
        ]
        with hooks(handles):
            logits = case.model(input_ids=case.ids, use_cache=False, logits_to_keep=1).logits
        found.append(float(logits[0, -1].double().softmax(-1)[case.target]))
    return np.array(found)


def scaling() -> Iterator[Row]:
    """Time against prompt length, the number of facts in a chunk, and layers."""
    for length, prompt in PROMPTS.items():
        case = build_case(prompt)
        found = len(case.sequence.ids)
        if found != length:
            raise SystemExit(f"the prompt for T = {length} has {found} tokens")
        times = timed(partial(engine, case, ADAPTIVE, FACTS_AT_ONCE), 3)
        per_fact = [t / FACTS_AT_ONCE for t in times]
        yield row(f"prompt length {length}", "dkn_engine", "seconds_per_fact", per_fact)
    case = build_case()
    for copies in (1, 2, 4, 8, 16):
        times = timed(partial(engine, case, ADAPTIVE, copies), 3)
        per_fact = [t / copies for t in times]
        yield row(f"facts at once {copies}", "dkn_engine", "seconds_per_fact", per_fact)
    for n_layers in (8, 15, 30):
        short = cut(case, n_layers)
        times = timed(partial(engine, short, ADAPTIVE, FACTS_AT_ONCE), 3)
        per_fact = [t / FACTS_AT_ONCE for t in times]
        yield row(f"layers {n_layers}", "dkn_engine", "seconds_per_fact", per_fact)


def cut(case: peers.Case, n_layers: int) -> peers.Case:
    """The same fact asked of the demo model's first layers; what it answers is of no matter."""
    model: Any = case.model
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = n_layers
    cut_model = type(model)(config).eval()
    cut_model.load_state_dict(model.state_dict(), strict=False)
    return dataclasses.replace(case, model=cut_model, layout=find_layout(cut_model))


# A process of its own for each figure, since freed memory is not always given back. Loading the
# model needs more than attribution, so resident memory is sampled instead of its maximum read.
_MEMORY = """
import ctypes, gc, json, sys, threading, time
import torch
torch.set_num_threads(1)
import dkn_engine as dkn

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def sample():
    while True:
        seen.append(resident())
        time.sleep(0.005)

n, rows = json.loads(sys.argv[1])
model, tokenizer = dkn.load_model("demo", device="cpu")
facts = (dkn.load_facts("demo") * 8)[:n]
for parameter in model.parameters():
    parameter.sum()  # weights are mapped from the file until they are touched
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # what loading has freed is not the model's
loaded, seen = resident(), []
threading.Thread(target=sample, daemon=True).start()
config = dkn.AttributionConfig(rows_per_batch=rows)
for _ in dkn.iter_attribute(model, tokenizer, facts, config, keep="none"):
    pass
print(json.dumps([loaded, max(seen)]))
"""


def memory() -> Iterator[Row]:
    """Peak resident memory above the loaded model, in MiB: by facts, and by rows a batch."""
    cases: list[tuple[int, int | str]] = [
        (8, "auto"),
        (32, "auto"),
        (96, "auto"),
        (8, 64),
        (8, 256),
    ]
    for n, rows in cases:
        command = [sys.executable, "-c", _MEMORY, json.dumps([n, rows])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        loaded, top = json.loads(done.stdout)
        name = f"{n} facts, rows_per_batch {rows}"
        yield row(name, "dkn_engine", "peak_mib_above_model", [top - loaded])
