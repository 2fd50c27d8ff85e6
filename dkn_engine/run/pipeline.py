"""The whole way in one call: facts and a model in, degenerate knowledge neurons out."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import Config
from dkn_engine.degeneracy.reference_facts import reference_order
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts.given import Facts, facts_from
from dkn_engine.facts.scan import FactFile, Scan, pick, scan
from dkn_engine.models.fingerprint import Identity, identity_of
from dkn_engine.models.masked_answers import config_of, encode_masked_answer
from dkn_engine.models.tokens import encode_fact, mask_token_text, sentinel_id
from dkn_engine.models.written_answers import encode_written_answer
from dkn_engine.results import Results
from dkn_engine.run.build_info import versions
from dkn_engine.run.progress import Watch, watched
from dkn_engine.run.stages import Stages
from dkn_engine.run.tasks import Task, iter_tasks
from dkn_engine.showing import shown
from dkn_engine.store import RunDirectory, RunPath, count_done, place_of, read_manifest
from dkn_engine.store.manifest import exists
from dkn_engine.store.plan import WHOLE, Plan, Shard
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# From tasks, taken when there is room for one, to chunks and their files, in any order.
Files = Mapping[str, bytes]
Compute = Callable[[Iterator[Task]], Iterator[tuple[int, Files]]]


def find_dkns(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    config: Config | None = None,
    out: RunPath | None = None,
    *,
    shard: Shard = WHOLE,
    progress: Progress | bool | None = None,
    baselines: ArrayLike | None = None,
) -> Results:
    """The degenerate knowledge neurons of every fact, in the order of the facts.

    A run directory has ``summary.md`` and ``summary.json`` at the end, as after ``dkn-engine
    find``; ``dkn-engine report`` writes its page.

    Args:
        model, tokenizer, facts, config, out, shard, progress: see :func:`iter_dkns`, also for
            errors and sources.
        baselines: with ``config.attribution.baseline="given"``: activations x', real ``[L, F]`` for
            every fact or ``[n_facts, L, F]``, as for :func:`dkn_engine.attribute`. A run directory
            is continued with the same ones only.
    """
    run = prepare(facts, config_of(model, config or Config()), shard, out, baselines)
    results = Results(_watched(model, tokenizer, run, out, progress))
    if out is not None:
        left_out = run.facts.problems if isinstance(run.facts, FactFile) else []
        shown("write_summaries", results, out, [problem.plain() for problem in left_out])
    return results


def iter_dkns(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    config: Config | None = None,
    out: RunPath | None = None,
    *,
    shard: Shard = WHOLE,
    progress: Progress | bool | None = None,
) -> Iterator[FactResult]:
    """Results one by one, in the order of the facts, in memory that does not grow with them.

    Facts are taken in windows of ``16 * config.facts_per_chunk``, and swept in chunks of about
    the same length; a window's results come when all its chunks are there.

    A fact that cannot be used is not fatal: its result has the status ``skipped`` (it cannot be
    encoded) or ``error`` (the model gives no finite probability) and a reason. A fact that the
    model does not know has the status ``not_known`` and no neurons.

    Args:
        model: a language model of transformers that the engine takes; it is left as it was found.
        tokenizer: the model's.
        facts: a file, which is read several times and never held; or facts with unique ids, also
            as mappings with the keys of a facts file; of a mere iterator a list is made.
        config: all choices; None for :class:`dkn_engine.Config`'s measured defaults.
        out: run directory, created or continued: what is there is not computed again, also where
            ``facts`` are more than it has and begin with those; a path, or a URL that fsspec knows.
            None keeps nothing on disk.
        shard: compute this part of the chunks only; see :func:`dkn_engine.store.merge`.
        progress: True shows a bar (in a log, a line now and then) on stderr or in the notebook; a
            callable is called with (facts done, facts of the run) after every chunk.

    Raises:
        UnsupportedModelError: the model is none that the engine knows.
        RunDirectoryError: ``out`` belongs to another configuration, model, tokenizer or list of
            facts.
        TypeError, FactError: ``facts`` are none, or a mapping among them does not make one.
        UserError: ``facts`` have no unique ids, or an option does not fit the model.
        BackendError: a backend asked for by name cannot run.

    Source:
        Chen et al., Cracking Factual Knowledge (arXiv 2402.13731), sections 3 and 4.
    """
    run = prepare(facts, config_of(model, config or Config()), shard, out)
    return _watched(model, tokenizer, run, out, progress)


def _watched(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    out: RunPath | None,
    progress: Progress | bool | None,
) -> Iterator[FactResult]:
    def find(progress: Progress | None) -> Iterator[FactResult]:
        return iter_run(model, tokenizer, run, out, progress=progress)

    return watched(progress, run.plan.n_own, lambda: done_before(out), find)


def facts_before(out: RunPath | None) -> list[int]:
    """How many facts a run directory has had each time that it got some; none if there is none."""
    if out is None or not exists(place_of(out)):
        return []
    manifest = read_manifest(out)
    return [*manifest.get("grown", []), manifest["facts"]["n"]]


def done_before(out: RunPath | None) -> int:
    """Facts that a run directory holds already; 0 if there is none yet."""
    return count_done(out)[0] if out is not None and exists(place_of(out)) else 0


def iter_run(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    out: RunPath | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[FactResult]:
    """As :func:`iter_dkns`, with facts that :func:`prepare` has read."""
    tell = progress.stage if isinstance(progress, Watch) else None
    stages = Stages(model, tokenizer, run.sample, run.config, tell, run.baselines)
    if out is None:
        return _in_memory(run, stages, tokenizer, progress)
    identity = identity_of(model, tokenizer)
    if run.baselines is not None:
        given = {"baselines": {"digest": digest_of(run.baselines)}}
        identity = dataclasses.replace(identity, traits={**identity.traits, **given})

    def compute(tasks: Iterator[Task]) -> Iterator[tuple[int, Files]]:
        return ((task.chunk, stages.files(task)) for task in tasks)

    return on_disk(run, out, identity, tokenizer, compute, progress)


@dataclass(frozen=True)
class Run:
    """What a run is about, before any model.

    Attributes:
        facts: read anew at each iteration.
        scanned: what one pass over them said.
        sample: the facts for controls on other facts.
        config: all choices.
        plan: chunks and windows.
        baselines: that attribution starts from, where they are given.
    """

    facts: Iterable[Fact]
    scanned: Scan
    sample: tuple[Fact, ...]
    config: Config
    plan: Plan
    baselines: NDArray[Any] | None = None


def prepare(
    facts: Facts,
    config: Config | None,
    shard: Shard = WHOLE,
    out: RunPath | None = None,
    baselines: ArrayLike | None = None,
) -> Run:
    """Count and identify the facts, and choose those for controls.

    If the run directory ``out`` is there, the facts may be more than it has: those before keep
    their chunks, and those for controls are chosen among what the run began with.

    Arguments and errors as in :func:`iter_dkns`.
    """
    config = Config() if config is None else config
    if config.attribution.baseline == "given" and baselines is None:
        raise UserError(
            "baseline must be 'masked' or 'zero' for DKNs; got 'given' (find_dkns takes baselines)"
        )
    read = facts_from(facts, config.facts)
    if isinstance(read, Iterator):
        read = list(read)
    scanned = scan(read, Plan(0, config.facts_per_chunk).window, facts_before(out))
    first = scanned.grown[0] if scanned.grown else scanned.n
    sample = pick(read, reference_order(first, config.seed))
    plan = Plan(scanned.n, config.facts_per_chunk, shard=shard, grown=scanned.grown)
    given = None if baselines is None else np.asarray(baselines)
    if given is not None and given.ndim == 3 and len(given) != scanned.n:
        raise UserError(
            f"baselines must have a row for every fact; got {len(given)} rows and {scanned.n} facts"
        )
    return Run(read, scanned, sample, config, plan, given)


def digest_of(baselines: NDArray[Any]) -> str:
    """What tells baselines from others: of their type, shape and values."""
    found = hashlib.blake2b(f"{baselines.dtype.str} {baselines.shape}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(baselines).tobytes())
    return found.hexdigest()


def on_disk(
    run: Run,
    out: RunPath,
    identity: Identity,
    tokenizer: PreTrainedTokenizerBase,
    compute: Compute,
    progress: Progress | None,
) -> Iterator[FactResult]:
    """Results of a run directory, created or continued, in the order of the facts.

    ``compute`` makes the files of chunks, here or elsewhere, with the model and tokenizer of that
    ``identity``; this process is the directory's only writer. Errors as in :func:`iter_dkns`.
    """
    with RunDirectory.open(
        out,
        config=run.config,
        identity=identity,
        mask_token=mask_token_text(tokenizer, run.config.attribution),
        facts=run.scanned,
        plan=run.plan,
        versions=versions(),
    ) as directory:

        def store(tasks: Iterator[Task]) -> Iterator[int]:
            for chunk, files in compute(tasks):
                directory.write_chunk(chunk, files)
                yield chunk

        # Also fresh results are read back, so that a run gives what a later reader will see.
        yield from _in_order(
            run, tokenizer, store, directory.read_window, progress, directory.done_chunks()
        )
        directory.finish()


def _in_memory(
    run: Run, stages: Stages, tokenizer: PreTrainedTokenizerBase, progress: Progress | None
) -> Iterator[FactResult]:
    held: dict[int, FactResult] = {}

    def hold(tasks: Iterator[Task]) -> Iterator[int]:
        for task in tasks:
            held.update(zip(task.positions, stages.of_task(task), strict=True))
            yield task.chunk

    def take(window: int) -> list[FactResult]:
        return [held.pop(position) for position in sorted(held)]

    yield from _in_order(run, tokenizer, hold, take, progress, set())


def _in_order(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    finish: Callable[[Iterator[Task]], Iterator[int]],
    read_window: Callable[[int], list[FactResult]],
    progress: Progress | None,
    done: set[int],
) -> Iterator[FactResult]:
    """Results window by window, each as soon as its chunks and all windows before it are done.

    ``finish`` does tasks and yields their chunks, in any order; ``done`` are those that need not
    be. ``read_window`` gives the results of a window once its chunks are done.
    """
    plan, config = run.plan, run.config.facts

    def length(fact: Fact) -> int:
        try:
            if config.blank == "keep" and tokenizer.mask_token_id is not None:
                return len(encode_masked_answer(tokenizer, fact.prompt, fact.answer).ids)
            if config.blank == "keep" and sentinel_id(tokenizer, 0) is not None:
                return len(encode_written_answer(tokenizer, fact.prompt, fact.answer).source)
            encoded = encode_fact(tokenizer, fact.prompt, fact.answer, config=config)
        except FactError:
            return 0
        return len(encoded.prompt_ids) + len(encoded.answer_ids)

    window = n = 0
    tasks = iter_tasks(plan, run.facts, run.scanned, length, frozenset(done))
    for chunks in itertools.chain([tuple(done)], ((chunk,) for chunk in finish(tasks))):
        done.update(chunks)
        n += sum(map(plan.size, chunks))
        if progress is not None and chunks:
            progress(n, plan.n_own)
        while window < plan.n_windows and done.issuperset(plan.chunks_of(window)):
            yield from read_window(window)
            window += 1
