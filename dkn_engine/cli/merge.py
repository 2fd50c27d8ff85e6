"""``dkn-engine merge``: one run directory out of those of shards."""

from __future__ import annotations

from dataclasses import dataclass

from dkn_engine.cli.arguments import option, run_path, switch
from dkn_engine.cli.console import Console
from dkn_engine.cli.options import Output
from dkn_engine.cli.results import ROWS, read_overview, show_results
from dkn_engine.store import RunPath


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Put the run directories of 'find --shard' together. The result is that of
    a run without shards.
    """

    out: RunPath = option("out", "The run directory to make.", metavar="OUT", type=run_path)
    directories: tuple[RunPath, ...] = option(
        "directories", "The run directories of all shards.", nargs="+", metavar="DIR", type=run_path
    )
    compact: bool = switch(
        "--compact",
        "Put the chunks into few files, which are read faster (done by itself for 64 or more).",
    )
    output: Output


def merge(options: MergeOptions) -> int:
    """``dkn-engine merge``: one run directory out of those of shards, with the table at the end.

    Raises:
        UserError: the shards are not those of one run, or not all of them.
    """
    from dkn_engine import store
    from dkn_engine.report.files import read_summary

    console, directories = Console(quiet=options.output.quiet), options.directories
    console.step(1, 2, f"putting {len(directories)} run directories together ...")
    store.merge(options.out, list(directories), compact=options.compact)
    console.step(2, 2, "summing up ...")
    problems = read_summary(directories[0]).get("problems", [])
    overview = read_overview(store.iter_results(options.out))
    show_results(options.out, overview, problems, None, options.output, ROWS)
    return 0
