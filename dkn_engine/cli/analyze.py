"""``dkn-engine analyze``: the paper's analyses, one of a run or all over a grid of runs."""

from __future__ import annotations

import argparse
import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.analysis.config import ANALYSES
from dkn_engine.cli.arguments import option
from dkn_engine.cli.console import Console, put
from dkn_engine.cli.inputs import (
    Problem,
    fact_file,
    for_model,
    load_model,
    model_spec,
    read_facts,
    require_loadable,
    tell_problems,
    torch_threads,
)
from dkn_engine.cli.options import Input, Output, Reading, Training, Work, changes, required_facts
from dkn_engine.cli.settings import PRESETS, require_not_set, settings_from_options
from dkn_engine.config import Config, FactsConfig
from dkn_engine.errors import UserError
from dkn_engine.files.sections import Section
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from dkn_engine.analysis.suite.cells import Cell
    from dkn_engine.analysis.suite.requests import Options
    from dkn_engine.analysis.suite.tasks import InWorkers, Loaded
    from dkn_engine.statistics.table import Table

_LINES = 60  # of each table's figures on the terminal; the rest is in the files


def shown(name: str) -> str:
    """The name of an analysis as people read and write it."""
    return name.replace("_", "-")


def _analysis(text: str) -> str:
    """An analysis by its name, in either spelling."""
    name = text.replace("-", "_")
    if name not in ANALYSES:
        known = ", ".join(map(shown, ANALYSES))
        raise argparse.ArgumentTypeError(f"must be among {known}; got {text!r}")
    return name


@dataclass(frozen=True, kw_only=True)
class SingleOptions:
    """What ``analyze <analysis>`` is told."""

    input: Input
    facts: str = required_facts()
    work: Work
    output: Output


@dataclass(frozen=True, kw_only=True)
class EvolvabilityOptions:
    """What ``analyze evolvability`` is told."""

    input: Input
    facts: str = required_facts()
    work: Work
    training: Training
    output: Output


@dataclass(frozen=True, kw_only=True)
class AllOptions:
    """Find DKNs and make every analysis for every model, file of facts and preset,
    with tables, figures and a page. What is there already is not made again.
    """

    models: tuple[str, ...] = option(
        "--models", "The models: demo, hub ids or local folders.", nargs="+", metavar="M"
    )
    facts: tuple[str, ...] = option(
        "--facts", "The facts: files, folders or packaged lists.", nargs="+", metavar="F"
    )
    presets: tuple[str, ...] = option(
        "--presets",
        f"The presets of settings: {', '.join(PRESETS)} (default: default).",
        default=("default",),
        nargs="+",
        choices=tuple(PRESETS),
        metavar="P",
    )
    analyses: tuple[str, ...] = option(
        "--analyses",
        f"Make these analyses only: {', '.join(map(shown, ANALYSES))}.",
        default=tuple(ANALYSES),
        nargs="+",
        type=_analysis,
        metavar="A",
    )
    changes: tuple[str, ...] = changes()
    reading: Reading
    work: Work
    training: Training
    output: Output

    @property
    def folder(self) -> Path:
        """``--out``, or a folder in ``runs`` named after models and facts."""
        from dkn_engine.analysis.suite.labels import short_names

        if self.work.out is not None:
            return self.work.out
        names = [*short_names(self.models), *short_names(self.facts, files=True)]
        return Path("runs") / "-".join(["analyses", *names])


def single(name: str, options: SingleOptions | EvolvabilityOptions) -> int:
    """``dkn-engine analyze <analysis>``: one analysis of one model, facts and configuration.

    Raises:
        UserError: options, facts, model or folder cannot be used, or the analysis refuses.
    """
    given = options.input
    settings = given.settings
    suite = AllOptions(
        models=(given.model,),
        facts=(options.facts,),
        presets=(settings.preset,),
        analyses=(name,),
        changes=settings.changes,
        reading=given.reading,
        work=options.work,
        training=getattr(options, "training", Training()),
        output=options.output,
    )
    return _run(suite, settings.config, strict=True)


def every(options: AllOptions) -> int:
    """``dkn-engine analyze all``: every analysis of every model, facts and preset.

    An analysis that refuses a run is noted; the others go on.

    Raises:
        UserError: options, facts, model or folder cannot be used.
    """
    return _run(options, None, strict=options.reading.strict)


def _settings(suite: AllOptions, file: str | None) -> tuple[dict[str, Config], dict[str, Section]]:
    """The configuration of each preset, and the settings of each analysis."""
    draws = suite.work.draws
    sections = {name: ANALYSES[name].section() for name in suite.analyses}
    for name, section in sections.items():
        if draws is not None and hasattr(section, "n_random"):
            require_not_set(suite.changes, f"{name}.n_random", "--draws")
            sections[name] = section.of(section, n_random=draws)
    made = {p: settings_from_options(p, file, suite.changes, sections) for p in suite.presets}
    return {p: config for p, (config, _) in made.items()}, made[suite.presets[0]][1]


_Facts = tuple[list[Fact], list[Problem]]  # and what was left out of them


def _run(suite: AllOptions, file: str | None, *, strict: bool) -> int:
    from dkn_engine.analysis.suite.requests import Options
    from dkn_engine.run.build_info import require_whole

    console, out = Console(quiet=suite.output.quiet), suite.folder
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder; {out} is a file")
    require_loadable(suite.reading, suite.work.workers > 1)
    configs, sections = _settings(suite, file)
    for model in suite.models:  # of which the first encoder decides how all read their facts
        configs = {preset: for_model(config, model) for preset, config in configs.items()}
    require_whole()  # A large model takes minutes to load.
    read = [_read(suite.reading, source, configs, console) for source in suite.facts]
    new_facts = _new_facts(suite.training, suite.reading, console)
    options = Options(sections, new_facts, suite.training.checkpoint, strict)
    with torch_threads(suite.reading.threads):
        cells = dict(_cells(suite, read, configs, options, console))
    across = _across(suite, cells)
    _write(out, cells, across, console)
    _print(suite, cells, across)
    return 0


def _new_facts(training: Training, reading: Reading, console: Console) -> tuple[Fact, ...] | None:
    """What evolvability teaches: all of its own file, whatever part of --facts is used."""
    if training.new_facts is None:
        if training.new_format is not None:
            raise UserError("--new-format is of --new-facts, which is not given")
        return None
    console.say(f"reading new facts from {training.new_facts} ...")
    whole = replace(reading, format=training.new_format or "auto", limit=None)
    facts, problems = read_facts(fact_file(training.new_facts, whole, FactsConfig()))
    tell_problems(console, problems, "--strict stops at the first")
    return tuple(facts)


def _read(reading: Reading, source: str, configs: Mapping[str, Config], console: Console) -> _Facts:
    # How files are read is a setting; presets that differ in it cannot share a list of facts.
    if len({(config.facts.blank, config.facts.dates) for config in configs.values()}) > 1:
        raise UserError(
            "--presets must read facts alike; of these some differ in facts.blank or facts.dates, "
            "what becomes of blanks inside of sentences and of dates: run them one by one"
        )
    console.say(f"reading facts from {source} ...")
    config = next(iter(configs.values())).facts
    facts, problems = read_facts(fact_file(source, reading, config))
    tell_problems(console, problems, "summary.md of the run lists them all")
    return facts, problems


def _cells(
    suite: AllOptions,
    sources: Sequence[_Facts],
    configs: Mapping[str, Config],
    options: Options,
    console: Console,
) -> Iterator[tuple[str, Cell]]:
    """Every cell under its label."""
    from dkn_engine.analysis.suite.cells import analyze_cell
    from dkn_engine.analysis.suite.labels import labels
    from dkn_engine.analysis.suite.requests import RUN
    from dkn_engine.report import summarize, write_summary
    from dkn_engine.report.html import write_page

    names = labels(suite.models, suite.facts, suite.presets)
    for m, model_name in enumerate(suite.models):
        model = _model(suite, model_name, console)
        for (s, (facts, problems)), preset in itertools.product(enumerate(sources), configs):
            label = names[m, s, preset]
            console.say(f"{label}:")
            folder = suite.folder / label
            cell = analyze_cell(folder, facts, configs[preset], options, model, console)
            run, summary = folder / RUN, summarize(cell.results)
            write_summary(run, cell.results, summary, problems=problems)
            write_page(run, cell.results, summary, problems=problems)
            yield label, cell


def _model(suite: AllOptions, name: str, console: Console) -> Loaded | InWorkers:
    """The model in this process, loaded once for all cells, or the processes that will load it."""
    from dkn_engine.analysis.suite.tasks import InWorkers, Loaded

    reading, workers = suite.reading, suite.work.workers
    if workers > 1:
        console.say(f"model {name}, in {workers} processes:")
        return InWorkers(model_spec(name, reading), workers)
    console.say(f"loading model {name} ...")
    return Loaded(*load_model(name, reading, console))


def _across(suite: AllOptions, cells: Mapping[str, Cell]) -> dict[str, Table]:
    """Degeneracy against model size, for each list of facts and preset."""
    from dkn_engine.analysis import complexity_of_models
    from dkn_engine.analysis.suite.labels import labels, short_names

    runs = labels(suite.models, suite.facts, suite.presets)
    names, origins = short_names(suite.models), short_names(suite.facts, files=True)
    tables: dict[str, Table] = {}
    if len(names) < 2:
        return tables
    for (s, origin), preset in itertools.product(enumerate(origins), suite.presets):
        here = {name: cells[runs[m, s, preset]] for m, name in enumerate(names)}
        results = {name: cell.results for name, cell in here.items()}
        sizes = {name: cell.size for name, cell in here.items()}
        first = here[names[0]]
        table = complexity_of_models(first.facts, results, sizes, seed=first.seed)
        tables[f"{origin}-{preset}" if len(suite.presets) > 1 else origin] = table
    return tables


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
    tables: dict[str, dict[str, Table]] = {}
    for label, cell in cells.items():
        for name, table in cell.tables.items():
            tables.setdefault(name, {})[label] = table
    for label, table in across.items():
        tables.setdefault(table.analysis, {})[label] = table
    return tables


def _print(suite: AllOptions, cells: Mapping[str, Cell], across: Mapping[str, Table]) -> None:
    from dkn_engine.analysis.kept_tables import to_json
    from dkn_engine.analysis.suite.headlines import headline_rows
    from dkn_engine.analysis.suite.page import GROUPS
    from dkn_engine.report.analysis_text import render, words

    by_analysis = _by_analysis(cells, across)
    if suite.output.json:
        document: dict[str, Any] = {
            "analyses": {
                name: {label: json.loads(to_json(t)) for label, t in tables.items()}
                for name, tables in by_analysis.items()
            },
            "not_made": {label: cell.refused for label, cell in cells.items()},
        }
        put(json.dumps(document, indent=1, allow_nan=False) + "\n")
        return
    for name, tables in by_analysis.items():
        for label, table in tables.items():
            short = replace(table, rows=headline_rows(table))
            put(f"{words(name).upper()}: {label}\n{render(short, limit=_LINES)}\n")
    for label, cell in cells.items():
        for name, reason in cell.refused.items():
            put(f"{words(name)} of {label} was not made: {reason}\n")
    put(f"{textwrap.fill(GROUPS, 79)}\n\n")
    put(f"All figures are in {suite.folder}: report.html, and .csv files of each analysis\n")
