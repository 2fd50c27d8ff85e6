"""The program ``dkn-engine``: find DKNs, analyse them, report on a run, say what is there."""

from __future__ import annotations

import argparse
import errno
import functools
import inspect
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dkn_engine.analysis.config import ANALYSES
from dkn_engine.cli import analyze, bench, find, info, merge, report
from dkn_engine.cli.arguments import add_arguments, make_options
from dkn_engine.cli.compare_clusterers import ClusterersOptions, clusterers
from dkn_engine.cli.console import detach_broken_pipes
from dkn_engine.errors import DknError, UserError
from dkn_engine.run.build_info import version, why_broken

PROGRAM = "dkn-engine"
# What the disk refuses is no bug of the program.
_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}

_EXAMPLES = {
    "": """\
examples:
  dkn-engine find --model demo --facts demo --limit 8 --out runs/first
  dkn-engine report runs/first
  dkn-engine analyze clusterers --model demo --facts demo
  dkn-engine analyze all --models demo --facts demo --out runs/analyses
  dkn-engine info
""",
    "find": """\
examples:
  dkn-engine find --model demo --facts demo --out runs/first
  dkn-engine find --model gpt2 --facts facts.jsonl --limit 100 --out runs/gpt2
  dkn-engine find --model demo --facts demo --out runs/paper --preset paper \\
      --set filter.n_random=50 --set topology.end_value=0.2

A run that was stopped goes on where it was: give the same command again.
""",
    "merge": """\
examples:
  dkn-engine find --model gpt2 --facts facts.jsonl --out runs/0 --shard 0/2
  dkn-engine find --model gpt2 --facts facts.jsonl --out runs/1 --shard 1/2
  dkn-engine merge runs/whole runs/0 runs/1
""",
}


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
        given = _parser().parse_args(argv)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    code: int = given.command(make_options(given.options, given))
    return code


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: {' '.join(message.split())}\n")
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    """Prints the version, which a checkout asks git for, so only where it is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(PROGRAM, version())
        parser.exit()


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        columns = min(80, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=22, width=columns - 2)


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        formatter_class=_Help,
        description="Degenerate knowledge neurons (DKNs) of language models.",
        epilog=_EXAMPLES[""],
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "find", "find the DKNs of facts", find.find, find.FindOptions)
    words = "put the run directories of shards together"
    _add(commands, "merge", words, merge.merge, merge.MergeOptions)
    _add_analyses(commands)
    words = "print a run's results, rewrite its summary, write its page"
    _add(commands, "report", words, report.report, report.ReportOptions)
    words = "measure the engine beside its peers (from a source checkout)"
    _add(commands, "bench", words, bench.bench, bench.BenchOptions)
    words = "say what is installed and which backends can run"
    _add(commands, "info", words, info.info, info.InfoOptions)
    return parser


def _add_analyses(commands: Any) -> None:
    words = "run the paper's analyses, one or all"
    parser = commands.add_parser(
        "analyze", formatter_class=_Help, help=words, description=_sentence(words)
    )
    analyses = parser.add_subparsers(title="analyses", metavar="ANALYSIS", required=True)
    words = "every analysis of every model, facts and preset"
    _add(analyses, "all", words, analyze.every, analyze.AllOptions)
    for name, (words, _) in ANALYSES.items():
        options = analyze.EvolvabilityOptions if name == "evolvability" else analyze.SingleOptions
        single = functools.partial(analyze.single, name)
        _add(analyses, name.replace("_", "-"), words, single, options, _sentence(words))
    words = "compare NTC with other clusterers and with random sets"
    _add(analyses, "clusterers", words, clusterers, ClusterersOptions)


def _add(
    commands: Any,
    name: str,
    words: str,
    command: Callable[[Any], int],
    options: type[Any],
    description: str | None = None,
) -> None:
    """A command; its options' documentation describes it unless something else does."""
    parser = commands.add_parser(
        name,
        formatter_class=_Help,
        help=words,
        description=description or inspect.getdoc(options),
        epilog=_EXAMPLES.get(name),
    )
    add_arguments(parser, options)
    parser.set_defaults(command=command, options=options)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
