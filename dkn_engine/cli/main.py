"""The program ``dkn-engine``: find DKNs, analyse them, report on a run, say what is there."""

from __future__ import annotations

import argparse
import errno
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dkn_engine.cli import analyze, bench, compare_clusterers, find, info, merge, report
from dkn_engine.cli.console import detach_broken_pipes
from dkn_engine.cli.settings import PRESETS
from dkn_engine.errors import DknError, UserError
from dkn_engine.files.local_paths import local_path
from dkn_engine.report.html import CARDS, FACT_FIGURES
from dkn_engine.run.build_info import why_broken
from dkn_engine.store.plan import WHOLE, Shard

PROGRAM = "dkn-engine"
FORMATS = ("auto", "templama", "pararel", "lama", "counterfact", "jsonl")
DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
# What the disk refuses is no bug of the program.
_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}

_EXAMPLES = """\
examples:
  dkn-engine find --model demo --facts demo --limit 8 --out runs/first
  dkn-engine report runs/first
  dkn-engine analyze clusterers --model demo --facts demo
  dkn-engine analyze all --models demo --facts demo --out runs/analyses
  dkn-engine info
"""
_ANALYSES = {
    "robustness": "suppress and enhance neurons under clean and perturbed queries",
    "fact-check": "tell true statements from false ones by neurons' attributions",
    "evolvability": "fine-tune on new facts with only some neurons trainable",
    "complexity": "degeneracy of the same facts in short and long texts",
    "sharing": "how much of a component other facts share",
}
_FIND_EXAMPLES = """\
examples:
  dkn-engine find --model demo --facts demo --out runs/first
  dkn-engine find --model gpt2 --facts facts.jsonl --limit 100 --out runs/gpt2
  dkn-engine find --model demo --facts demo --out runs/paper --preset paper \\
      --set filter.n_random=50 --set topology.end_value=0.2

A run that was stopped goes on where it was: give the same command again.
"""

_MERGE_EXAMPLES = """\
examples:
  dkn-engine find --model gpt2 --facts facts.jsonl --out runs/0 --shard 0/2
  dkn-engine find --model gpt2 --facts facts.jsonl --out runs/1 --shard 1/2
  dkn-engine merge runs/whole runs/0 runs/1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        0; 2 for a mistake of the user, said in one line on stderr; 130 after Ctrl-C; 141 when the
        reader of the output has gone. Errors of the program itself are raised.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted; rerun the same command to continue", 130)
    except BrokenPipeError:
        detach_broken_pipes()
        return 141
    except DknError as error:
        return _fail(f"error: {error}", 2)
    except (ImportError, OSError) as error:
        broken = why_broken(error)
        if broken is not None:
            return _fail(f"error: {broken}", 2)
        if not isinstance(error, OSError) or error.errno not in _DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {where}{error.strerror}", 2)
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    code: int = args.command(args)
    return code


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: {' '.join(message.split())}\n")
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        columns = min(80, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=22, width=columns - 2)


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        formatter_class=_Help,
        description="Degenerate knowledge neurons (DKNs) of language models.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_find(subparsers)
    _add_merge(subparsers)
    _add_analyze(subparsers)
    _add_report(subparsers)
    _add_bench(subparsers)
    _add_info(subparsers)
    return parser


def _add_find(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "find",
        formatter_class=_Help,
        help="find the DKNs of facts",
        description="Find the degenerate knowledge neurons of facts and write a run directory.",
        epilog=_FIND_EXAMPLES,
    )
    parser.set_defaults(command=find.find)
    _add_input(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        type=_run_path,
        help="run directory, new or to continue: a folder, or a URL that fsspec knows",
    )
    parser.add_argument(
        "--relation",
        action="append",
        default=[],
        dest="relations",
        metavar="R",
        help="use facts of this relation only; may be repeated",
    )
    parser.add_argument(
        "--where",
        metavar="known>P",
        help="count facts as known above this probability only (or known>=P)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="compute in N processes of --threads threads, 1 if not given",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="compute on a Ray cluster (default: one on this machine), by a worker for each "
        "GPU or CPU, or by --workers of them",
    )
    parser.add_argument(
        "--shard",
        default=WHOLE,
        type=_shard,
        metavar="I/N",
        help="compute part I of N (from 0), for 'merge' to put together",
    )
    _add_output(parser)


def _add_merge(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "merge",
        formatter_class=_Help,
        help="put the run directories of shards together",
        description="Put the run directories of 'find --shard' together. The result is that of\n"
        "a run without shards.",
        epilog=_MERGE_EXAMPLES,
    )
    parser.set_defaults(command=merge.merge)
    parser.add_argument("out", metavar="OUT", type=_run_path, help="run directory to make")
    parser.add_argument(
        "directories",
        metavar="DIR",
        type=_run_path,
        nargs="+",
        help="run directories of all shards",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="put the chunks into few files, which are read faster (done by itself for 64 or more)",
    )
    _add_output(parser)


def _add_analyze(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "analyze",
        formatter_class=_Help,
        help="run the paper's analyses, one or all",
        description="Run the paper's analyses, one or all.",
    )
    analyses = parser.add_subparsers(title="analyses", metavar="ANALYSIS", required=True)
    _add_all(analyses)
    for name, words in _ANALYSES.items():
        _add_single(analyses, name, words)
    _add_clusterers(analyses)


def _add_all(analyses: Any) -> None:
    every = analyses.add_parser(
        "all",
        formatter_class=_Help,
        help="every analysis of every model, facts and preset",
        description="Find DKNs and make every analysis for every model, file of facts and preset,\n"
        "with tables, figures and a page. What is there already is not made again.",
    )
    every.set_defaults(command=analyze.every)
    add = every.add_argument
    add("--models", required=True, nargs="+", metavar="M", help="'demo', hub ids or local paths")
    add("--facts", required=True, nargs="+", metavar="F", help="'demo' or files of facts")
    add(
        "--presets",
        nargs="+",
        default=["default"],
        choices=tuple(PRESETS),
        metavar="P",
        help=f"of settings: {', '.join(PRESETS)} (default: default)",
    )
    add(
        "--analyses",
        nargs="+",
        choices=tuple(name.replace("-", "_") for name in _ANALYSES),
        metavar="A",
        help=f"make these only: {', '.join(n.replace('-', '_') for n in _ANALYSES)}",
    )
    every.set_defaults(config=None)
    _add_changes(every)
    _add_reading(every)
    _add_analysis(every)
    _add_training(every)
    _add_output(every)


def _add_single(analyses: Any, name: str, words: str) -> None:
    single = analyses.add_parser(
        name, formatter_class=_Help, help=words, description=f"{words[0].upper()}{words[1:]}."
    )
    single.set_defaults(
        command=analyze.single,
        analysis=name.replace("-", "_"),
        new_facts=None,
        new_format=None,
        checkpoint=False,
    )
    _add_input(single)
    _add_analysis(single)
    if name == "evolvability":
        _add_training(single)
    _add_output(single)


def _add_analysis(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", type=_folder, help="for runs, tables and the page")
    add("--draws", type=_positive, metavar="N", help="of random neurons")
    add(
        "--workers",
        default=1,
        type=_positive,
        metavar="N",
        help="find, then make analyses, in N processes of --threads threads, 1 if not given",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--new-facts", metavar="FILE", help="for evolvability to teach (default: made-up ones)")
    add("--new-format", choices=FORMATS, help="of the new facts (default: auto)")
    add(
        "--checkpoint",
        action="store_true",
        help="keep states of trainings, three times the size of the model, so that one that was "
        "stopped goes on",
    )


def _add_clusterers(analyses: Any) -> None:
    clusterers = analyses.add_parser(
        "clusterers",
        formatter_class=_Help,
        help="compare NTC with other clusterers and with random sets",
        description="Group the same neurons by NTC, DBSCAN, HDBSCAN, average linkage, k-means,\n"
        "AMIG pairs and at random, and put all through the same functional filter.",
    )
    clusterers.set_defaults(command=compare_clusterers.clusterers)
    _add_input(clusterers)
    add = clusterers.add_argument
    add(
        "--out", metavar="DIR", type=_folder, help="for the tables, and a run that can be continued"
    )
    add(
        "--method",
        action="append",
        dest="methods",
        metavar="NAME",
        help="compare with this clusterer only; may be repeated (default: all)",
    )
    add("--draws", default=5, type=_positive, metavar="N", help="of random sets (default: 5)")
    _add_output(clusterers)


def _add_input(parser: argparse.ArgumentParser) -> None:
    """What a run reads: a model, facts and settings."""
    add = parser.add_argument
    add("--model", required=True, help="'demo', a hub id or a local path")
    add("--facts", required=True, help="'demo' or a file of facts")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--preset", default="default", choices=tuple(PRESETS), help="of settings (default: default)"
    )
    source.add_argument("--config", metavar="FILE", help="settings from a .toml or .json file")
    _add_changes(parser)
    _add_reading(parser)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="change one setting, as in selection.threshold=0.1; may be repeated",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How facts and models are read."""
    add = parser.add_argument
    add("--format", default="auto", choices=FORMATS, help="of the facts (default: auto)")
    add("--limit", type=_positive, metavar="N", help="use the first N facts only")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    add("--dtype", default="auto", choices=DTYPES, help="of the weights (default: auto)")
    add("--threads", type=_positive, metavar="N", help="CPU threads of torch")
    add("--strict", action="store_true", help="stop at a fact that cannot be used")


def _add_report(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        formatter_class=_Help,
        help="print a run's results, rewrite its summary, write its page",
        description="Print the results of a run directory, rewrite its summary.md and\n"
        "summary.json, and write report.html, one page that needs no network, with its\n"
        "figures as SVG and PNG in figures/. Works while the run goes on.",
    )
    parser.set_defaults(command=report.report)
    parser.add_argument("directory", metavar="DIR", type=_run_path, help="a run directory")
    parser.add_argument("--all", action="store_true", help="print every fact, not only the first")
    parser.add_argument(
        "--cards",
        type=_positive,
        default=CARDS,
        metavar="N",
        help=f"give the first N facts a card in the page (default: {CARDS})",
    )
    parser.add_argument(
        "--fact-figures",
        type=_natural,
        default=FACT_FIGURES,
        metavar="N",
        help=f"draw figures of N of them, those with a DKN first (default: {FACT_FIGURES})",
    )
    _add_output(parser)


def _add_bench(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        formatter_class=_Help,
        help="measure the engine beside its peers (from a source checkout)",
        description="Measure the engine beside its peers on the demo model, and print the table\n"
        "of targets. Takes some minutes; run it alone on the machine.",
    )
    parser.set_defaults(command=bench.bench)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure (default: all)")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument(
        "--table", action="store_true", help="print the last table, measure nothing"
    )


def _add_info(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "info",
        formatter_class=_Help,
        help="say what is installed and which backends can run",
        description="Say what is installed, which backends can run, and what a run\n"
        "directory holds.",
    )
    parser.set_defaults(command=info.info)
    parser.add_argument(
        "directory", metavar="DIR", type=_run_path, nargs="?", help="a run directory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document, no table")
    parser.add_argument("--quiet", action="store_true", help="no steps and no progress")


def _natural(text: str) -> int:
    return 0 if text.strip() == "0" else _positive(text)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text!r}")
    return value


def _shard(text: str) -> Shard:
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise argparse.ArgumentTypeError(
            f"must be I/N with I from 0 to N - 1, as in 0/4; got {text!r}"
        )
    return Shard(int(index), int(of))


def _run_path(text: str) -> str | Path:
    return text if "://" in text else _at_home(text)


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a folder of this machine; got {text!r}")
    return _at_home(text)


def _at_home(text: str) -> Path:
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("dkn-engine")
    except metadata.PackageNotFoundError:
        return "(not installed)"
