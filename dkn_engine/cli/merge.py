"""``dkn-engine merge``: one run directory out of those of shards."""

from __future__ import annotations

import argparse

from dkn_engine.cli.console import Console
from dkn_engine.cli.results import ROWS, read_overview, show_results


def merge(args: argparse.Namespace) -> int:
    """``dkn-engine merge``: one run directory out of those of shards, with the table at the end.

    Raises:
        UserError: the shards are not those of one run, or not all of them.
    """
    from dkn_engine import store
    from dkn_engine.report.files import read_summary

    console = Console(quiet=args.quiet)
    console.step(1, 2, f"putting {len(args.directories)} run directories together ...")
    store.merge(args.out, args.directories, compact=args.compact)
    console.step(2, 2, "summing up ...")
    problems = read_summary(args.directories[0]).get("problems", [])
    overview = read_overview(store.iter_results(args.out))
    show_results(args.out, overview, problems, None, as_json=args.json, limit=ROWS)
    return 0
