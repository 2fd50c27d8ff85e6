"""``dkn-engine analyze clusterers``: NTC beside other clusterers on the same neurons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dkn_engine.analysis.config import ClusterersConfig
from dkn_engine.cli.arguments import folder, number, option
from dkn_engine.cli.console import Console, number_of, put
from dkn_engine.cli.inputs import (
    Problem,
    fact_file,
    for_model,
    load_model,
    read_facts,
    require_loadable,
    tell_problems,
    torch_threads,
)
from dkn_engine.cli.options import Input, Output, required_facts
from dkn_engine.cli.settings import require_not_set, settings_from_options
from dkn_engine.config import Config
from dkn_engine.errors import UserError

if TYPE_CHECKING:
    from dkn_engine.analysis import ClustererComparison


@dataclass(frozen=True, kw_only=True)
class ClusterersOptions:
    """Group the same neurons by NTC, DBSCAN, HDBSCAN, average linkage, k-means,
    AMIG pairs and at random, and put all through the same functional filter.
    """

    input: Input
    facts: str = required_facts()
    out: Path | None = option(
        "--out",
        "The folder for the tables, and for a run that can be continued.",
        default=None,
        metavar="DIR",
        type=folder,
    )
    methods: tuple[str, ...] = option(
        "--method",
        "Compare with this clusterer only; may be repeated (default: all).",
        default=(),
        action="append",
        metavar="NAME",
    )
    draws: int | None = number(
        "--draws", f"Draw random sets N times (default: {ClusterersConfig().n_draws})."
    )
    output: Output

    def settings(self) -> tuple[Config, ClusterersConfig]:
        """The configuration of the run, and the settings of the comparison."""
        given = self.input.settings
        told = {
            "methods": ("--method", self.methods or None),
            "n_draws": ("--draws", self.draws),
        }
        asked = {name: value for name, (_, value) in told.items() if value is not None}
        for name in asked:
            require_not_set(given.changes, f"clusterers.{name}", told[name][0])
        section = ClusterersConfig.of(None, **asked)
        config, sections = settings_from_options(
            given.preset, given.config, given.changes, {"clusterers": section}
        )
        return config, sections["clusterers"]


def clusterers(options: ClusterersOptions) -> int:
    """``dkn-engine analyze clusterers``: NTC beside other clusterers on the same neurons.

    Raises:
        UserError: options, facts, model or folder cannot be used.
    """
    from dkn_engine import analysis
    from dkn_engine.run.build_info import require_whole
    from dkn_engine.store import require_same_config

    console, given, out = Console(quiet=options.output.quiet), options.input, options.out
    source = options.facts
    require_loadable(given.reading, processes=False)
    config, settings = options.settings()
    config = for_model(config, given.model)
    analysis.require_comparable(config, settings.methods)
    require_whole()
    run = None if out is None else _made_folder(out) / "run"
    if run is not None:
        # Also checked later, but a large model takes minutes to load.
        require_same_config(run, analysis.without_controls(config))
    console.step(1, 3, f"reading facts from {source} ...")
    facts, problems = read_facts(fact_file(source, given.reading, config.facts))
    tell_problems(console, problems, "--json lists them all")
    console.step(2, 3, f"loading model {given.model} ...")
    with torch_threads(given.reading.threads):
        model, tokenizer = load_model(given.model, given.reading, console)
        console.step(3, 3, f"comparing clusterers on {number_of(len(facts), 'fact')} ...")
        with console.progress(len(facts)) as progress:
            comparison = analysis.compare_clusterers(
                model,
                tokenizer,
                facts,
                config,
                settings,
                out=run,
                strict=given.reading.strict,
                progress=progress,
            )
    if out is not None:
        write_clusterers(out, comparison)
    _put(options, config, comparison, problems)
    return 0


def _put(
    options: ClusterersOptions,
    config: Config,
    comparison: ClustererComparison,
    problems: Sequence[Problem],
) -> None:
    """The tables, or with ``--json`` all of it as a document."""
    from dkn_engine.analysis.experiments.clusterers import text as clusterers_text

    out = options.out
    if options.output.json:
        document = {
            "analysis": "clusterers",
            "model": options.input.model,
            "facts": options.facts,
            "config_hash": config.hash,
            **clusterers_text.document(comparison),
            "problems": problems,
        }
        put(json.dumps(document, indent=2, allow_nan=False) + "\n")
    else:
        put(clusterers_text.render(comparison))
        if out is not None:
            put(f"\nFiles in {out}: clusterers.csv, clusterers_facts.csv, run/\n")


def _made_folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise UserError(f"--out must be a folder; {path} is a file")
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_clusterers(folder: Path, comparison: ClustererComparison) -> None:
    """The table (one row a clusterer and figure) and what it was made of (one row a fact).

    Raises:
        OSError: the folder cannot be written; both files are as they were.
    """
    from dkn_engine.analysis.experiments.clusterers import text as clusterers_text
    from dkn_engine.files.atomic import write_files
    from dkn_engine.files.csv import csv_text

    measured = [dataclasses.asdict(m) for m in comparison.measurements]
    tables = {
        "clusterers.csv": csv_text(clusterers_text.ROW_COLUMNS, clusterers_text.rows(comparison)),
        "clusterers_facts.csv": csv_text(
            list(measured[0]),
            ([f"{v:.6g}" if isinstance(v, float) else v for v in m.values()] for m in measured),
        ),
    }
    write_files(folder, {n: t.encode("utf-8", "backslashreplace") for n, t in tables.items()})
