"""``dkn-engine find``: facts to DKNs in a run directory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dkn_engine.cli.console import Console
from dkn_engine.cli.inputs import (
    Threads,
    load_model,
    plain_problems,
    refuse_no_facts,
    tell_problems,
)
from dkn_engine.cli.results import ROWS, Overview, read_overview, show_results
from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.types import FactResult, Progress

if TYPE_CHECKING:
    from dkn_engine.run.pipeline import Run
    from dkn_engine.store import RunPath


def find(args: argparse.Namespace) -> int:
    """``dkn-engine find``: facts to DKNs in a run directory, with the table at the end.

    Raises:
        UserError: options, facts, model or run directory cannot be used.
    """
    from dkn_engine.store import require_same_config

    console = Console(quiet=args.quiet)
    config = config_from_options(args.preset, args.config, args.changes, args.where)
    # Also checked later, but a large model takes minutes to load.
    require_same_config(args.out, config)
    console.step(1, 4, f"reading facts from {args.facts} ...")
    run, problems = _prepare(args, config)
    tell_problems(console, problems, counted=True)
    if args.ray is not None or (args.workers or 1) > 1:
        where = "" if args.ray is None else " on Ray"
        console.step(2, 4, f"starting workers{where} that load {args.model} ...")
        overview, seconds = _find_all(args.out, _in_workers(args, run), run, console)
    else:
        console.step(2, 4, f"loading model {args.model} ...")
        with Threads(args.threads):
            overview, seconds = _find_all(args.out, _here(args, run), run, console)
    console.step(4, 4, "summing up ...")
    show_results(args.out, overview, problems, seconds, as_json=args.json, limit=ROWS)
    if args.strict:
        _require_usable(overview)
    return 0


def _prepare(args: argparse.Namespace, config: Config) -> tuple[Run, list[dict[str, Any]]]:
    """What the run is about, and what the loader says about facts it had to leave out."""
    from dkn_engine.facts.scan import FactFile
    from dkn_engine.run.pipeline import prepare

    facts = FactFile(
        args.facts,
        args.format,
        args.limit,
        tuple(args.relations),
        blank=config.facts.blank,
        dates=config.facts.dates,
        strict=args.strict,
    )
    try:
        run = prepare(facts, config, args.shard)
    except OSError as error:
        raise UserError(
            f"facts {args.facts!r} cannot be read: {error.strerror or error}"
        ) from error
    problems = plain_problems(facts.problems)
    if not run.plan.n_facts:
        refuse_no_facts(args.facts, problems, args.relations)
    return run, problems


_Find = Callable[[Progress], Iterator[FactResult]]


def _here(args: argparse.Namespace, run: Run) -> _Find:
    """The run in this process; loads the model now."""
    from dkn_engine.run.pipeline import iter_run

    model, tokenizer = load_model(args.model, args.device, args.dtype)
    return lambda progress: iter_run(model, tokenizer, run, args.out, progress=progress)


def _in_workers(args: argparse.Namespace, run: Run) -> _Find:
    """The run in processes, which load the model when they start."""
    from dkn_engine.run.workers.job import ModelSpec
    from dkn_engine.run.workers.processes import iter_run_in_workers

    spec = ModelSpec(args.model, args.device, args.dtype, args.threads or 1)
    if args.ray is not None:
        from dkn_engine.run.workers.ray import iter_run_on_ray

        return lambda progress: iter_run_on_ray(
            spec, run, args.out, address=args.ray, workers=args.workers, progress=progress
        )
    return lambda progress: iter_run_in_workers(
        spec, run, args.out, workers=args.workers, progress=progress
    )


def _find_all(
    out: RunPath, find: _Find, run: Run, console: Console
) -> tuple[Overview, float | None]:
    """Results in short, and the time they took (None for a continued run)."""
    done, total = _already_done(out), run.plan.n_own
    there = f", {done} of them are there" if done else ""
    console.step(3, 4, f"finding DKNs of {total} facts{there} ...")
    start = time.monotonic()
    with console.progress(total, done) as progress:
        overview = read_overview(find(progress))
    return overview, None if done else time.monotonic() - start


def _already_done(directory: RunPath) -> int:
    from dkn_engine.store import count_done, place_of
    from dkn_engine.store.manifest import exists

    return count_done(directory)[0] if exists(place_of(directory)) else 0


def _require_usable(overview: Overview) -> None:
    first = overview.first_unusable
    if first is not None:
        raise UserError(
            f"--strict: {overview.unusable} facts could not be used; the first: {first.fact_id}: "
            f"{first.reason}"
        )
