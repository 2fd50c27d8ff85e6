"""The commands of the program, each from parsed options to an exit code."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dkn_engine.cli.console import Console, put
from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.types import Fact, FactResult

if TYPE_CHECKING:
    from dkn_engine.cli.console import Progress
    from dkn_engine.report import Summary
    from dkn_engine.run.pipeline import Run
    from dkn_engine.store import RunPath

_ROWS = 40  # of the printed table; the rest is in the files
_HELD = 1000  # first results that are held for the tables


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
    _finish(args.out, overview, problems, seconds, as_json=args.json, limit=_ROWS)
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
    problems = _plain_problems(facts.problems)
    if not run.plan.n_facts:
        _refuse_no_facts(args.facts, problems, args.relations)
    return run, problems


_Find = Callable[["Progress"], Iterator[FactResult]]


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
) -> tuple[_Overview, float | None]:
    """Results in short, and the time they took (None for a continued run)."""
    done, total = _already_done(out), run.plan.n_own
    there = f", {done} of them are there" if done else ""
    console.step(3, 4, f"finding DKNs of {total} facts{there} ...")
    start = time.monotonic()
    with console.progress(total, done) as progress:
        overview = _overview(find(progress))
    return overview, None if done else time.monotonic() - start


@dataclass(frozen=True)
class _Overview:
    """Results in short: what is printed of them, without holding them all."""

    first: list[FactResult]
    summary: Summary
    unusable: int
    first_unusable: FactResult | None


def _overview(results: Iterable[FactResult], n: int | None = _HELD) -> _Overview:
    """Read results once, holding of the first ``n`` (None: of all) what a table shows."""
    from dkn_engine.report import summarize
    from dkn_engine.report.html.files import in_short

    first: list[FactResult] = []
    bad: list[FactResult] = []
    unusable = 0

    def each() -> Iterator[FactResult]:
        nonlocal unusable
        for result in results:
            if n is None or len(first) < n:
                first.append(in_short(result))
            if result.status in {"skipped", "error"}:
                unusable += 1
                bad[:] = bad or [result]
            yield result

    summary = summarize(each())
    return _Overview(first, summary, unusable, bad[0] if bad else None)


def merge(args: argparse.Namespace) -> int:
    """``dkn-engine merge``: one run directory out of those of shards, with the table at the end.

    Raises:
        UserError: the shards are not those of one run, or not all of them.
    """
    from dkn_engine import store
    from dkn_engine.report.files import read_summary

    console = Console(quiet=args.quiet)
    console.step(1, 2, f"putting {len(args.directories)} run directories together ...")
    store.merge(args.out, args.directories)
    console.step(2, 2, "summing up ...")
    problems = read_summary(args.directories[0]).get("problems", [])
    overview = _overview(store.iter_results(args.out))
    _finish(args.out, overview, problems, None, as_json=args.json, limit=_ROWS)
    return 0


def report(args: argparse.Namespace) -> int:
    """``dkn-engine report``: a run directory's results again, complete or not.

    Raises:
        RunDirectoryError: it is not a run directory.
    """
    from dkn_engine.report.files import read_summary
    from dkn_engine.store import Snapshot, count_done

    console = Console(quiet=args.quiet)
    done, total = count_done(args.directory)
    if done < total:
        console.say(
            f"{done} of {total} facts are there; the command that began the run continues it"
        )
    results = Snapshot(args.directory)
    overview = _overview(results, None if args.all else _HELD)
    # What only the run itself knew.
    earlier = read_summary(args.directory)
    figures = earlier.get("summary", {})
    seconds = figures.get("seconds") if figures.get("n_facts") == overview.summary.n_facts else None
    problems = earlier.get("problems", [])
    limit = None if args.all else _ROWS
    try:
        _finish(args.directory, overview, problems, seconds, as_json=args.json, limit=limit)
    except PermissionError as error:  # Someone else's run can still be read.
        console.warn(f"the summary was not rewritten: {error.filename}: {error.strerror}")
        return 0
    summary = replace(overview.summary, seconds=seconds, n_left_out=len(problems))
    _write_page(args, results, summary, problems, console)
    return 0


def _write_page(
    args: argparse.Namespace,
    results: Iterable[FactResult],
    summary: Summary,
    problems: Sequence[Mapping[str, Any]],
    console: Console,
) -> None:
    """The page and its figures; without matplotlib the page alone, which is said."""
    from dkn_engine.report.html import NO_FIGURES, write_page
    from dkn_engine.store import as_folder, place_of

    console.say("drawing figures and writing the page ...")
    with as_folder(args.directory, "manifest.json") as folder:
        written, drawn = write_page(
            folder,
            results,
            summary,
            problems=problems,
            cards=args.cards,
            fact_figures=args.fact_figures,
        )
    place = place_of(args.directory)
    page = place.at(written.name)
    if drawn:
        console.say(f"{page} is written, its figures are in {place.at('figures')}")
    else:
        console.say(f"{page} is written")
        console.warn(NO_FIGURES)


def bench(args: argparse.Namespace) -> int:
    """``dkn-engine bench``: the benchmarks of a source checkout, in a process of their own.

    Raises:
        UserError: the package is installed without its sources.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "speed" / "run.py").is_file():
        raise UserError(
            "the benchmarks travel with the sources, not with the installed package; "
            "run 'make bench' in a checkout"
        )
    options = [f"--{name}" for name in ("list", "table") if getattr(args, name)]
    command = [sys.executable, "-m", "benchmarks.speed.run", *options, *args.cases]
    return subprocess.run(command, cwd=root, check=False).returncode


def read_facts(
    source: str,
    kind: str = "auto",
    limit: int | None = None,
    *,
    blank: str = "skip",
    dates: str = "auto",
    strict: bool = False,
) -> tuple[list[Fact], list[dict[str, Any]]]:
    """The facts, and what the loader says about those it had to leave out.

    Args:
        source, kind, limit, blank, dates, strict: see :func:`dkn_engine.facts.iter_facts`, where
            ``kind`` is ``format``.

    Raises:
        UserError: there is no fact that can be used.
    """
    from dkn_engine.facts import iter_facts

    found: list[Any] = []
    try:
        read = iter_facts(
            source, kind, limit, blank=blank, dates=dates, strict=strict, problems=found
        )
        facts = list(read)
    except OSError as error:
        raise UserError(f"facts {source!r} cannot be read: {error.strerror or error}") from error
    problems = _plain_problems(found)
    if not facts:
        _refuse_no_facts(source, problems)
    return facts, problems


def _plain_problems(found: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {name: _json_value(getattr(p, name, None)) for name in ("file", "line", "id", "reason")}
        for p in found
    ]


def _refuse_no_facts(
    source: str, problems: Sequence[Mapping[str, Any]], relations: Sequence[str] = ()
) -> NoReturn:
    wanted = f" of the relation {' or '.join(relations)}" if relations else ""
    first = f"; the first of {len(problems)}: {_problem_line(problems[0])}" if problems else ""
    raise UserError(f"facts {source!r} hold no fact{wanted} that can be used{first}")


def _json_value(value: Any) -> Any:
    return value if value is None or isinstance(value, int | str) else str(value)


def _problem_line(problem: Mapping[str, Any]) -> str:
    parts = [str(problem[k]) for k in ("file", "line", "id") if problem[k] is not None]
    return f"{':'.join(parts)}: {problem['reason']}"


def tell_problems(
    console: Console,
    problems: Sequence[Mapping[str, Any]],
    rest: str = "summary.md will list them all",
    *,
    counted: bool = False,
) -> None:
    """The first facts that were left out, how many more there are, and where those are said.

    A quiet console says in one line how many, unless they are ``counted`` in what is printed later.
    """
    if console.quiet and problems and not counted:
        some = f"{len(problems)} facts are" if len(problems) > 1 else "1 fact is"
        console.warn(f"{some} left out, first {_problem_line(problems[0])}; {rest}")
    for problem in problems[:3]:
        console.say(f"  left out: {_problem_line(problem)}")
    if len(problems) > 3:
        console.say(f"  ... and {len(problems) - 3} more; {rest}")


def load_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer as the options say."""
    import dkn_engine

    try:
        model, tokenizer = dkn_engine.load_model(name, device=device, dtype=dtype)
    except OSError as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"model {name!r} cannot be loaded: {first}") from error
    return model, tokenizer


class Threads:
    """Torch's CPU threads inside a ``with`` statement; as they were after it."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._before = 0

    def __enter__(self) -> None:
        if self._threads is not None:
            import torch

            self._before = torch.get_num_threads()
            torch.set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._before)


def _already_done(directory: RunPath) -> int:
    from dkn_engine.store import count_done, place_of
    from dkn_engine.store.manifest import exists

    return count_done(directory)[0] if exists(place_of(directory)) else 0


def _finish(
    directory: RunPath,
    overview: _Overview,
    problems: Sequence[Mapping[str, Any]],
    seconds: float | None,
    *,
    as_json: bool,
    limit: int | None,
) -> None:
    """Write the summary files, then print the results as a table or one JSON document."""
    from dkn_engine.report import render_report, write_summary
    from dkn_engine.store import as_folder

    summary = replace(overview.summary, seconds=seconds, n_left_out=len(problems))
    refused: OSError | None = None
    try:
        with as_folder(directory, "manifest.json") as folder:
            write_summary(folder, overview.first, summary, problems=problems)
    except OSError as error:  # The results shall be seen all the same.
        refused = error
    if as_json:
        _put_document(directory, summary, problems)
    else:
        put(f"{render_report(overview.first, summary, limit=limit)}\n{_files(directory)}\n")
    if refused is not None:
        raise refused


def _put_document(
    directory: RunPath, summary: Summary, problems: Sequence[Mapping[str, Any]]
) -> None:
    """One JSON document, its list of facts written as it is read."""
    from dkn_engine.report import fact_record
    from dkn_engine.store import iter_results, read_manifest

    manifest = read_manifest(directory)
    document = {
        "run_directory": str(directory),
        "model": manifest["model"],
        "config_hash": manifest["config_hash"],
        "summary": summary.to_dict(),
        "facts": [],
        "problems": list(problems),
    }
    # JSON texts hold no line breaks, so this is the list itself.
    before, _, after = json.dumps(document, indent=2, allow_nan=False).partition('\n  "facts": []')
    put(f'{before}\n  "facts": [')
    comma = ""
    for result in iter_results(directory):
        record = json.dumps(fact_record(result), indent=2, allow_nan=False)
        put(comma + textwrap.indent(f"\n{record}", "    "))
        comma = ","
    put(f"\n  ]{after}\n")


def _files(directory: RunPath) -> str:
    text = (
        f"Files in {directory}: summary.md and summary.json; facts-*.parquet (one row a fact), "
        "neurons-*, components-* and attribution-*.parquet; manifest.json"
    )
    return textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False)


def _require_usable(overview: _Overview) -> None:
    first = overview.first_unusable
    if first is not None:
        raise UserError(
            f"--strict: {overview.unusable} facts could not be used; the first: {first.fact_id}: "
            f"{first.reason}"
        )
