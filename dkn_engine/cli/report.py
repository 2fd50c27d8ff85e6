"""``dkn-engine report``: a run directory's results again, and its page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dkn_engine.cli.arguments import natural, number, option, run_path, switch
from dkn_engine.cli.console import Console, number_of
from dkn_engine.cli.options import Output
from dkn_engine.cli.page import write_run_page
from dkn_engine.cli.results import HELD, ROWS, read_overview, show_results
from dkn_engine.errors import UserError
from dkn_engine.report.html import CARDS, FACT_FIGURES, PAGE
from dkn_engine.store import RunPath


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Print the results of a run directory, rewrite its summary.md and
    summary.json, and write report.html, one page that needs no network, with its
    figures as SVG and PNG in figures/. Works while the run goes on.
    """

    directory: RunPath = option(
        "directory", "The run directory: a folder or a URL.", metavar="DIR", type=run_path
    )
    all: bool = switch("--all", "Print every fact, not only the first ones.")
    cards: int = number(
        "--cards", f"Give the first N facts a card in the page (default: {CARDS}).", default=CARDS
    )
    fact_figures: int = number(
        "--fact-figures",
        f"Draw figures of N of them, those with a DKN first (default: {FACT_FIGURES}).",
        default=FACT_FIGURES,
        type=natural,
    )
    output: Output


def report(options: ReportOptions) -> int:
    """``dkn-engine report``: a run directory's results again, complete or not, and its page.

    Raises:
        RunDirectoryError: it is not a run directory.
    """
    from dkn_engine.report.files import read_summary
    from dkn_engine.store import Snapshot, count_done

    console = Console(quiet=options.output.quiet)
    _refuse_analysis(options.directory)
    done, total = count_done(options.directory)
    if done < total:
        console.say(
            f"{done} of {number_of(total, 'fact')} {'is' if done == 1 else 'are'} there; the "
            "command that began the run continues it"
        )
    results = Snapshot(options.directory)
    overview = read_overview(results, None if options.all else HELD)
    # What only the run itself knew.
    earlier = read_summary(options.directory)
    figures = earlier.get("summary", {})
    seconds = figures.get("seconds") if figures.get("n_facts") == overview.summary.n_facts else None
    problems = earlier.get("problems", [])
    limit = None if options.all else ROWS
    try:
        show_results(options.directory, overview, problems, seconds, options.output, limit)
    except PermissionError as error:  # Someone else's run can still be read.
        console.warn(f"the summary was not rewritten: {error.filename}: {error.strerror}")
        return 0
    page = write_run_page(
        options.directory,
        results,
        replace(overview.summary, seconds=seconds, n_left_out=len(problems)),
        problems,
        console,
        cards=options.cards,
        fact_figures=options.fact_figures,
    )
    console.say(f"Open {page}")
    return 0


def _refuse_analysis(directory: RunPath) -> None:
    """Of a folder of analyses name the page that is there already, and the runs in it.

    Raises:
        UserError: it is one.
    """
    folder = Path(directory)
    runs = sorted(str(path.parent) for path in folder.glob("*/run/manifest.json"))
    if (folder / PAGE).is_file() and runs and not (folder / "manifest.json").exists():
        raise UserError(
            f"{folder} holds analyses, whose page is {folder / PAGE}; its runs, which have a "
            f"report each: {', '.join(runs[:3])}{', ...' if len(runs) > 3 else ''}"
        )
