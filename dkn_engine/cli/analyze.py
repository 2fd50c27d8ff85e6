"""``dkn-engine analyze``: the paper's analyses, one of a run or all over a grid of runs."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.cli.console import Console, put
from dkn_engine.cli.inputs import Threads, load_model, read_facts, tell_problems
from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from dkn_engine.analysis.suite.cells import Cell
    from dkn_engine.analysis.suite.engines import Engine
    from dkn_engine.analysis.suite.requests import Options
    from dkn_engine.statistics.table import Table

_LINES = 60  # of each table's figures on the terminal; the rest is in the files


def single(args: argparse.Namespace) -> int:
    """``dkn-engine analyze <analysis>``: one analysis of one model, facts and configuration.

    Raises:
        UserError: options, facts, model or folder cannot be used, or the analysis refuses.
    """
    return _run(args, [args.model], [args.facts], [args.preset], [args.analysis], strict=True)


def every(args: argparse.Namespace) -> int:
    """``dkn-engine analyze all``: every analysis of every model, facts and preset.

    An analysis that refuses a run is noted; the others go on.

    Raises:
        UserError: options, facts, model or folder cannot be used.
    """
    from dkn_engine.analysis.suite.cells import ANALYSES

    analyses = args.analyses or ANALYSES
    return _run(args, args.models, args.facts, args.presets, analyses, strict=args.strict)


@dataclass(frozen=True, eq=False)
class _Source:
    """Facts of the grid under the name that its cells have."""

    name: str
    facts: Sequence[Fact]
    problems: Sequence[Mapping[str, Any]]


def _run(
    args: argparse.Namespace,
    models: Sequence[str],
    sources: Sequence[str],
    presets: Sequence[str],
    analyses: Sequence[str],
    *,
    strict: bool,
) -> int:
    from dkn_engine.analysis.suite.requests import Options

    console = Console(quiet=args.quiet)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out must be a folder; {args.out} is a file")
    configs = {p: config_from_options(p, args.config, args.changes) for p in presets}
    read = [_read(args, source, configs, console) for source in sources]
    options = Options(args.draws, _new_facts(args, console), args.checkpoint)
    with Threads(args.threads):
        cells = dict(_cells(args, models, read, configs, analyses, options, console, strict))
    across = _across(cells, models, sources, presets)
    _write(args.out, cells, across, console)
    _print(args, cells, across)
    return 0


def _new_facts(args: argparse.Namespace, console: Console) -> tuple[Fact, ...] | None:
    """What evolvability teaches: all of its own file, whatever part of --facts is used."""
    if args.new_facts is None:
        if args.new_format is not None:
            raise UserError("--new-format is of --new-facts, which is not given")
        return None
    console.say(f"reading new facts from {args.new_facts} ...")
    facts, problems = read_facts(args.new_facts, args.new_format or "auto", strict=args.strict)
    tell_problems(console, problems, "--strict stops at the first")
    return tuple(facts)


def _read(
    args: argparse.Namespace, source: str, configs: Mapping[str, Config], console: Console
) -> _Source:
    # How files are read is a setting; presets that differ in it cannot share a list of facts.
    ways = {(config.facts.blank, config.facts.dates) for config in configs.values()}
    if len(ways) > 1:
        raise UserError(
            "--presets must read facts alike; of these some differ in facts.blank or facts.dates, "
            "what becomes of blanks inside of sentences and of dates: run them one by one"
        )
    console.say(f"reading facts from {source} ...")
    ((blank, dates),) = ways
    facts, problems = read_facts(
        source, args.format, args.limit, blank=blank, dates=dates, strict=args.strict
    )
    tell_problems(console, problems, "summary.md of the run lists them all")
    return _Source(source, facts, problems)


def _cells(
    args: argparse.Namespace,
    models: Sequence[str],
    sources: Sequence[_Source],
    configs: Mapping[str, Config],
    analyses: Sequence[str],
    options: Options,
    console: Console,
    strict: bool,
) -> Iterator[tuple[str, Cell]]:
    """Every cell under its label."""
    from dkn_engine.analysis.suite.cells import analyze_cell
    from dkn_engine.analysis.suite.engines import Watcher
    from dkn_engine.analysis.suite.labels import labels
    from dkn_engine.analysis.suite.requests import RUN
    from dkn_engine.report import summarize, write_summary
    from dkn_engine.report.html import write_page

    watcher = Watcher(console.say, console.progress)
    names = labels(models, [s.name for s in sources], list(configs))
    for m, model_name in enumerate(models):
        engine = _engine(args, model_name, console)
        for (s, source), preset in itertools.product(enumerate(sources), configs):
            label = names[m, s, preset]
            console.say(f"{label}:")
            cell = analyze_cell(
                args.out / label,
                engine,
                source.facts,
                configs[preset],
                analyses,
                options,
                watcher,
                strict=strict,
            )
            run, summary = cell.folder / RUN, summarize(cell.results)
            write_summary(run, cell.results, summary, problems=source.problems)
            write_page(run, cell.results, summary, problems=source.problems)
            yield label, cell


def _engine(args: argparse.Namespace, model_name: str, console: Console) -> Engine:
    """The model in this process, loaded once for all cells, or the processes that will load it."""
    from dkn_engine.analysis.suite.engines import Here, InWorkers
    from dkn_engine.run.workers.job import ModelSpec

    if args.workers > 1:
        console.say(f"model {model_name}, in {args.workers} processes:")
        spec = ModelSpec(model_name, args.device, args.dtype, args.threads or 1)
        return InWorkers(spec, args.workers)
    console.say(f"loading model {model_name} ...")
    return Here(*load_model(model_name, args.device, args.dtype))


def _across(
    cells: Mapping[str, Cell],
    models: Sequence[str],
    sources: Sequence[str],
    presets: Sequence[str],
) -> dict[str, Table]:
    """Degeneracy against model size, for each list of facts and preset."""
    from dkn_engine.analysis.suite.cells import compare_models
    from dkn_engine.analysis.suite.labels import labels, short_names

    runs = labels(models, sources, presets)
    names, origins = short_names(models), short_names(sources, files=True)
    found: dict[str, Table] = {}
    for (s, origin), preset in itertools.product(enumerate(origins), presets):
        here = {name: cells[runs[m, s, preset]] for m, name in enumerate(names)}
        table = compare_models(here, next(iter(here.values())).seed)
        if table is not None:
            found[f"{origin}-{preset}" if len(presets) > 1 else origin] = table
    return found


def _write(
    out: Path, cells: Mapping[str, Cell], across: Mapping[str, Table], console: Console
) -> None:
    """The tables of all cells as CSV, and the page."""
    from dkn_engine.analysis.suite.page import PAGE, render_grid
    from dkn_engine.files.atomic import write_files
    from dkn_engine.report import figures
    from dkn_engine.report.html import NO_FIGURES
    from dkn_engine.statistics import table_files as files

    written: dict[str, bytes] = {}
    for name, tables in _by_analysis(cells, across).items():
        written[f"{name}.csv"] = files.rows_csv(tables).encode()
        written[f"{name}_comparisons.csv"] = files.comparisons_csv(tables).encode()
        written[f"{name}_values.csv"] = files.samples_csv(tables).encode()
    note = "" if figures.available() else f"{NO_FIGURES}."
    written[PAGE] = render_grid(cells, across, out, note=note).encode()
    write_files(out, written)
    if note:
        console.warn(NO_FIGURES)


def _by_analysis(
    cells: Mapping[str, Cell], across: Mapping[str, Table]
) -> dict[str, dict[str, Table]]:
    found: dict[str, dict[str, Table]] = {}
    for label, cell in cells.items():
        for name, table in cell.tables.items():
            found.setdefault(name, {})[label] = table
    for label, table in across.items():
        found.setdefault(table.analysis, {})[label] = table
    return found


def _print(
    args: argparse.Namespace, cells: Mapping[str, Cell], across: Mapping[str, Table]
) -> None:
    from dkn_engine.analysis.kept_tables import to_json
    from dkn_engine.analysis.suite.headlines import headline_rows
    from dkn_engine.analysis.table_text import render, words

    every = _by_analysis(cells, across)
    if args.json:
        document = {
            "analyses": {
                name: {label: json.loads(to_json(t)) for label, t in tables.items()}
                for name, tables in every.items()
            },
            "not_made": {label: cell.refused for label, cell in cells.items()},
        }
        put(json.dumps(document, indent=1, allow_nan=False) + "\n")
        return
    for name, tables in every.items():
        for label, table in tables.items():
            short = dataclasses.replace(table, rows=headline_rows(table))
            put(f"{words(name).upper()}: {label}\n{render(short, limit=_LINES)}\n")
    for label, cell in cells.items():
        for name, reason in cell.refused.items():
            put(f"{words(name)} of {label} was not made: {reason}\n")
    put(f"All figures are in {args.out}: report.html, and .csv files of each analysis\n")
