"""The commands of ``dkn-engine analyze``, each from parsed options to an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.cli.console import Console, put
from dkn_engine.cli.inputs import Threads, load_model, read_facts, tell_problems
from dkn_engine.cli.settings import config_from_options
from dkn_engine.errors import UserError

if TYPE_CHECKING:
    from dkn_engine.analysis import ClustererComparison


def clusterers(args: argparse.Namespace) -> int:
    """``dkn-engine analyze clusterers``: NTC beside other clusterers on the same neurons.

    Raises:
        UserError: options, facts, model or folder cannot be used.
    """
    from dkn_engine import analysis
    from dkn_engine.analysis.experiments.clusterers import text as clusterers_text
    from dkn_engine.store import require_same_config

    console = Console(quiet=args.quiet)
    config = config_from_options(args.preset, args.config, args.changes)
    analysis.require_comparable(config, args.methods)
    run = None if args.out is None else _folder(args.out) / "run"
    if run is not None:
        # Also checked later, but a large model takes minutes to load.
        require_same_config(run, analysis.without_controls(config))
    console.step(1, 3, f"reading facts from {args.facts} ...")
    facts, problems = read_facts(
        args.facts,
        args.format,
        args.limit,
        blank=config.facts.blank,
        dates=config.facts.dates,
        strict=args.strict,
    )
    tell_problems(console, problems, "--json lists them all")
    console.step(2, 3, f"loading model {args.model} ...")
    with Threads(args.threads):
        model, tokenizer = load_model(args.model, args.device, args.dtype)
        console.step(3, 3, f"comparing clusterers on {len(facts)} facts ...")
        with console.progress(len(facts)) as progress:
            comparison = analysis.compare_clusterers(
                model,
                tokenizer,
                facts,
                config,
                methods=args.methods,
                n_draws=args.draws,
                out=run,
                strict=args.strict,
                progress=progress,
            )
    if args.out is not None:
        write_clusterers(args.out, comparison)
    if args.json:
        put(_document(args, config.hash, clusterers_text.document(comparison), problems))
    else:
        put(clusterers_text.render(comparison))
        if args.out is not None:
            put(f"\nFiles in {args.out}: clusterers.csv, clusterers_facts.csv, run/\n")
    return 0


def _folder(path: Path) -> Path:
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
    figures = csv_text(clusterers_text.ROW_COLUMNS, clusterers_text.rows(comparison))
    facts = csv_text(
        list(measured[0]),
        (
            [f"{v:.6g}" if isinstance(v, float) else v for v in record.values()]
            for record in measured
        ),
    )
    write_files(
        folder,
        {
            "clusterers.csv": figures.encode("utf-8", "backslashreplace"),
            "clusterers_facts.csv": facts.encode("utf-8", "backslashreplace"),
        },
    )


def _document(
    args: argparse.Namespace,
    config_hash: str,
    comparison: Mapping[str, Any],
    problems: Sequence[Mapping[str, Any]],
) -> str:
    document = {
        "analysis": "clusterers",
        "model": args.model,
        "facts": args.facts,
        "config_hash": config_hash,
        **comparison,
        "problems": list(problems),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
