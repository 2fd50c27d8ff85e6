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
from dkn_engine.cli import (
    analyze,
    bench,
    completion,
    find,
    info,
    list_settings,
    merge,
    report,
)
from dkn_engine.cli.arguments import add_arguments, make_options
from dkn_engine.cli.compare_clusterers import ClusterersOptions, clusterers
from dkn_engine.cli.console import detach_broken_pipes
from dkn_engine.cli.examples import examples
from dkn_engine.cli.find_options import FindOptions
from dkn_engine.errors import DknError, UserError
from dkn_engine.files.near_names import did_you_mean
from dkn_engine.run.build_info import version, why_broken

PROGRAM = "dkn-engine"
# What the disk refuses is no bug of the program.
_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        0; 2 for a mistake of the user, said in one line on stderr; 3 of ``find`` if the model knows
        none of the facts; 130 after Ctrl-C; 141 when the reader of the output has gone. Errors of
        the program itself are raised.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        return _fail(f"interrupted; {str(stop) or 'rerun the same command to continue'}", 130)
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
        given, unknown = _parser().parse_known_args(argv)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    if unknown:
        _refuse_unknown(given.parser, unknown)
    if given.command is None:  # of those that are listed
        given.parser.print_help(sys.stderr)
        return 2
    code: int = given.command(make_options(given.options, given))
    return code


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: {' '.join(message.split())}\n")
    return code


def _refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    options = [o for action in parser._actions for o in action.option_strings]
    meant = did_you_mean(unknown[0].partition("=")[0], options)
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like all others; options are written out."""

    def __init__(self, **told: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **told)
        self.set_defaults(command=None, parser=self)

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
        super().__init__(prog, max_help_position=20, width=columns - 2)


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        description="Degenerate knowledge neurons (DKNs) of language models.",
        epilog=examples(""),
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="Print the version and exit.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.usage = f"{PROGRAM} COMMAND [options]"
    _add(commands, "find", "Find the DKNs of facts.", find.find, FindOptions)
    words = "Print a run's results, rewrite its summary, write its page."
    _add(commands, "report", words, report.report, report.ReportOptions)
    _add_analyses(commands)
    words = "Put the run directories of shards together."
    _add(commands, "merge", words, merge.merge, merge.MergeOptions)
    words = "List every setting with its default and its meaning."
    _add(commands, "settings", words, list_settings.settings, list_settings.SettingsOptions)
    words = "Say what is installed and which backends can run."
    _add(commands, "info", words, info.info, info.InfoOptions)
    words = "Measure the engine beside its peers (from a source checkout)."
    _add(commands, "bench", words, bench.bench, bench.BenchOptions)
    words = "Print a script that completes commands and options in a shell."
    complete = functools.partial(completion.completion, parser)
    _add(commands, "completion", words, complete, completion.CompletionOptions)
    return parser


def _add_analyses(commands: Any) -> None:
    words = "Run the paper's analyses, one or all."
    parser = commands.add_parser(
        "analyze", help=words, description=words, epilog=examples("analyze"), add_help=False
    )
    parser.set_defaults(command=None, parser=parser)
    parser.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    analyses = parser.add_subparsers(title="analyses", metavar="ANALYSIS")
    parser.usage = f"{PROGRAM} analyze ANALYSIS [options]"
    words = "Make every analysis of every model, facts and preset."
    _add(analyses, "all", words, analyze.every, analyze.AllOptions)
    for name, (words, _) in ANALYSES.items():
        options = analyze.EvolvabilityOptions if name == "evolvability" else analyze.SingleOptions
        single = functools.partial(analyze.single, name)
        _add(analyses, analyze.shown(name), _sentence(words), single, options, analysis=True)
    words = "Compare NTC with other clusterers and with random sets."
    _add(analyses, "clusterers", words, clusterers, ClusterersOptions)


def _add(
    commands: Any,
    name: str,
    words: str,
    command: Callable[[Any], int],
    options: type[Any],
    *,
    analysis: bool = False,
) -> None:
    """A command; its options' documentation describes it unless it is one of the analyses."""
    parser = commands.add_parser(
        name,
        help=words,
        description=words if analysis else inspect.getdoc(options),
        epilog=examples(name, analysis=analysis),
        add_help=False,  # It comes last.
    )
    add_arguments(parser, options)
    parser.set_defaults(command=command, options=options, parser=parser)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
