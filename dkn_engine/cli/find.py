"""``dkn-engine find``: facts to DKNs in a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dkn_engine.cli.console import Console, number_of, put
from dkn_engine.cli.ending import NOTHING_KNOWN, ending
from dkn_engine.cli.find_options import FindOptions
from dkn_engine.cli.inputs import (
    Problem,
    fact_file,
    for_model,
    load_model,
    model_spec,
    readable,
    refuse_no_facts,
    require_loadable,
    tell_problems,
    torch_threads,
)
from dkn_engine.cli.page import write_run_page
from dkn_engine.cli.results import ROWS, Overview, read_overview, show_results
from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.store import RunPath
from dkn_engine.types import FactResult, Progress

if TYPE_CHECKING:
    from dkn_engine.run.pipeline import Run


def find(options: FindOptions) -> int:
    """``dkn-engine find``: facts to DKNs in a run directory, with table and page at the end.

    Returns:
        0, or ``NOTHING_KNOWN`` if the model knows none of the facts.

    Raises:
        UserError: options, facts, model or run directory cannot be used.
    """
    from dkn_engine.run.build_info import require_whole
    from dkn_engine.store import require_same_config

    console, given = Console(quiet=options.output.quiet), options.input
    told = given.settings
    require_loadable(given.reading, options.machines.several)
    config = config_from_options(told.preset, told.config, told.changes, options.selection.where)
    config = for_model(config, given.model)
    options = replace(options, out=options.directory)
    out = options.directory
    # Also checked later, but a large model takes minutes to load.
    require_same_config(out, config)
    require_whole()
    console.step(1, 4, f"{options.question.words} ...")
    run, problems = _prepare(options, config)
    tell_problems(console, problems, counted=True)
    if options.machines.several:
        where = "" if options.machines.ray is None else " on Ray"
        console.step(2, 4, f"starting workers{where} that load {given.model} ...")
        overview, seconds = _find_all(out, _in_workers(options, run), run, console)
    else:
        console.step(2, 4, f"loading model {given.model} ...")
        with torch_threads(given.reading.threads):
            overview, seconds = _find_all(out, _here(options, run, console), run, console)
    console.step(4, 4, "summing up ...")
    show_results(out, overview, problems, seconds, options.output, ROWS)
    if given.reading.strict:
        _require_usable(overview)
    return _finish(options, config, overview, problems, seconds, console)


def _finish(
    options: FindOptions,
    config: Config,
    overview: Overview,
    problems: Sequence[Problem],
    seconds: float | None,
    console: Console,
) -> int:
    """Write the page, and say in the last lines what was found and where to go on."""
    from dkn_engine.store import Snapshot

    out, page = options.directory, None
    if not options.no_report:
        summary = replace(overview.summary, seconds=seconds, n_left_out=len(problems))
        page = write_run_page(out, Snapshot(out), summary, problems, console)
    last = ending(options, config, overview, page)
    if options.output.json:
        console.say(last.rstrip())
    else:
        put(f"\n{last}")
    summary = overview.summary
    return NOTHING_KNOWN if summary.n_facts and not summary.n_known else 0


def _prepare(options: FindOptions, config: Config) -> tuple[Run, list[Problem]]:
    """What the run is about, and what the loader says about facts it had to leave out."""
    from dkn_engine.run.pipeline import prepare

    one, shard = options.question.one(config.facts), options.machines.shard
    if one is not None:
        return prepare([one], config, shard, options.directory), []
    source = options.question.facts or ""
    facts = fact_file(source, options.input.reading, config.facts, options.selection.relations)
    with readable(facts):
        run = prepare(facts, config, shard, options.directory)
    problems = [problem.plain() for problem in facts.problems]
    if not run.plan.n_facts:
        refuse_no_facts(facts, problems)
    return run, problems


_Find = Callable[[Progress], Iterator[FactResult]]


def _here(options: FindOptions, run: Run, console: Console) -> _Find:
    """The run in this process; loads the model now."""
    from dkn_engine.run.pipeline import iter_run

    model, tokenizer = load_model(options.input.model, options.input.reading, console)
    return lambda progress: iter_run(model, tokenizer, run, options.directory, progress=progress)


def _in_workers(options: FindOptions, run: Run) -> _Find:
    """The run in processes, which load the model when they start."""
    from dkn_engine.run.workers.processes import iter_run_in_workers
    from dkn_engine.run.workers.ray import iter_run_on_ray

    out = options.directory
    ray, workers = options.machines.ray, options.machines.workers
    spec = model_spec(options.input.model, options.input.reading)
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
    from dkn_engine.run.pipeline import done_before

    done = done_before(out)
    total = run.plan.n_own
    there = f", of which {done} {'is' if done == 1 else 'are'} there" if done else ""
    console.step(3, 4, f"finding DKNs of {number_of(total, 'fact')}{there} ...")
    if not total:
        plan = run.plan
        chunks = f"{number_of(plan.n_chunks, 'chunk')} of {plan.facts_per_chunk} (facts_per_chunk)"
        console.warn(
            f"shard {plan.shard} has nothing to do: {number_of(plan.n_facts, 'fact')} make "
            f"{chunks}, which the {plan.shard.of} shards take in turn"
        )
    start = time.monotonic()
    try:
        with console.progress(total, done) as progress:
            overview = read_overview(find(progress))
    except KeyboardInterrupt:
        done = done_before(out)
        on_disk = f"{done} of {number_of(total, 'fact')} {'is' if done == 1 else 'are'} on disk"
        raise KeyboardInterrupt(f"{on_disk}; give the same command again to go on") from None
    return overview, None if done else time.monotonic() - start


def _require_usable(overview: Overview) -> None:
    first, by_status = overview.first_unusable, overview.summary.by_status
    if first is not None:
        n = by_status["skipped"] + by_status["error"]
        raise UserError(
            f"--strict: {number_of(n, 'fact')} could not be used; "
            f"the first: {first.fact_id}: {first.reason}"
        )
