"""``dkn-engine find``: facts to DKNs in a run directory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dkn_engine.cli.arguments import number, option, run_path
from dkn_engine.cli.console import Console
from dkn_engine.cli.inputs import (
    Problem,
    fact_file,
    load_model,
    plain_problems,
    readable,
    refuse_no_facts,
    tell_problems,
    torch_threads,
)
from dkn_engine.cli.options import Input, Output
from dkn_engine.cli.results import ROWS, Overview, read_overview, show_results
from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.store import RunPath
from dkn_engine.store.plan import WHOLE, Shard
from dkn_engine.types import FactResult, Progress

if TYPE_CHECKING:
    from dkn_engine.run.pipeline import Run


def _shard(text: str) -> Shard:
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise argparse.ArgumentTypeError(
            f"must be I/N with I from 0 to N - 1, as in 0/4; got {text!r}"
        )
    return Shard(int(index), int(of))


@dataclass(frozen=True, kw_only=True)
class FindOptions:
    """Find the degenerate knowledge neurons of facts and write a run directory."""

    input: Input
    out: RunPath = option(
        "--out",
        "run directory, new or to continue: a folder, or a URL that fsspec knows",
        metavar="DIR",
        type=run_path,
    )
    relations: tuple[str, ...] = option(
        "--relation",
        "use facts of this relation only; may be repeated",
        default=(),
        action="append",
        metavar="R",
    )
    where: str | None = option(
        "--where",
        "count facts as known above this probability only (or known>=P)",
        default=None,
        metavar="known>P",
    )
    workers: int | None = number(
        "--workers", "compute in N processes of --threads threads, 1 if not given"
    )
    ray: str | None = option(
        "--ray",
        "compute on a Ray cluster (default: one on this machine), by a worker for each "
        "GPU or CPU, or by --workers of them",
        default=None,
        nargs="?",
        const="local",
        metavar="ADDRESS",
    )
    shard: Shard = option(
        "--shard",
        "compute part I of N (from 0), for 'merge' to put together",
        default=WHOLE,
        type=_shard,
        metavar="I/N",
    )
    output: Output


def find(options: FindOptions) -> int:
    """``dkn-engine find``: facts to DKNs in a run directory, with the table at the end.

    Raises:
        UserError: options, facts, model or run directory cannot be used.
    """
    from dkn_engine.store import require_same_config

    console, given = Console(quiet=options.output.quiet), options.input
    config = config_from_options(given.preset, given.config, given.changes, options.where)
    # Also checked later, but a large model takes minutes to load.
    require_same_config(options.out, config)
    console.step(1, 4, f"reading facts from {given.facts} ...")
    run, problems = _prepare(options, config)
    tell_problems(console, problems, counted=True)
    if options.ray is not None or (options.workers or 1) > 1:
        where = "" if options.ray is None else " on Ray"
        console.step(2, 4, f"starting workers{where} that load {given.model} ...")
        overview, seconds = _find_all(options.out, _in_workers(options, run), run, console)
    else:
        console.step(2, 4, f"loading model {given.model} ...")
        with torch_threads(given.reading.threads):
            overview, seconds = _find_all(options.out, _here(options, run, console), run, console)
    console.step(4, 4, "summing up ...")
    show_results(options.out, overview, problems, seconds, options.output, ROWS)
    if given.reading.strict:
        _require_usable(overview)
    return 0


def _prepare(options: FindOptions, config: Config) -> tuple[Run, list[Problem]]:
    """What the run is about, and what the loader says about facts it had to leave out."""
    from dkn_engine.run.pipeline import prepare

    given = options.input
    facts = fact_file(given.facts, given.reading, config.facts, options.relations)
    with readable(facts):
        run = prepare(facts, config, options.shard)
    problems = plain_problems(facts.problems)
    if not run.plan.n_facts:
        refuse_no_facts(facts, problems)
    return run, problems


_Find = Callable[[Progress], Iterator[FactResult]]


def _here(options: FindOptions, run: Run, console: Console) -> _Find:
    """The run in this process; loads the model now."""
    from dkn_engine.run.pipeline import iter_run

    model, tokenizer = load_model(options.input.model, options.input.reading, console)
    return lambda progress: iter_run(model, tokenizer, run, options.out, progress=progress)


def _in_workers(options: FindOptions, run: Run) -> _Find:
    """The run in processes, which load the model when they start."""
    from dkn_engine.run.workers.job import ModelSpec
    from dkn_engine.run.workers.processes import iter_run_in_workers
    from dkn_engine.run.workers.ray import iter_run_on_ray

    reading, out, ray, workers = options.input.reading, options.out, options.ray, options.workers
    spec = ModelSpec(options.input.model, reading.device, reading.dtype, reading.threads or 1)
    if ray is not None:
        return lambda progress: iter_run_on_ray(
            spec, run, out, address=ray, workers=workers, progress=progress
        )
    return lambda progress: iter_run_in_workers(
        spec, run, out, workers=workers or 1, progress=progress
    )


def _find_all(
    out: RunPath, find: _Find, run: Run, console: Console
) -> tuple[Overview, float | None]:
    """Results in short, and the time they took (None for a continued run)."""
    from dkn_engine.store import count_done, place_of
    from dkn_engine.store.manifest import exists

    done = count_done(out)[0] if exists(place_of(out)) else 0
    total = run.plan.n_own
    there = f", {done} of them are there" if done else ""
    console.step(3, 4, f"finding DKNs of {total} facts{there} ...")
    start = time.monotonic()
    with console.progress(total, done) as progress:
        overview = read_overview(find(progress))
    return overview, None if done else time.monotonic() - start


def _require_usable(overview: Overview) -> None:
    first, by_status = overview.first_unusable, overview.summary.by_status
    if first is not None:
        raise UserError(
            f"--strict: {by_status['skipped'] + by_status['error']} facts could not be used; "
            f"the first: {first.fact_id}: {first.reason}"
        )
