"""What commands show of a run: its results in short, its summary files, a table."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dkn_engine.cli.console import put
from dkn_engine.cli.options import Output
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from dkn_engine.report import Summary
    from dkn_engine.store import RunPath

ROWS = 40  # of the printed table; the rest is in the files
HELD = 1000  # first results that are held for the tables


@dataclass(frozen=True)
class Overview:
    """Results in short: what is printed of them, without holding them all."""

    first: list[FactResult]
    summary: Summary
    first_unusable: FactResult | None


def read_overview(results: Iterable[FactResult], n: int | None = HELD) -> Overview:
    """Read results once, holding of the first ``n`` (None: of all) what a table shows."""
    from dkn_engine.report import summarize
    from dkn_engine.report.html.files import in_short

    first: list[FactResult] = []
    unusable: list[FactResult] = []

    def each() -> Iterator[FactResult]:
        for result in results:
            if n is None or len(first) < n:
                first.append(in_short(result))
            if result.status in {"skipped", "error"} and not unusable:
                unusable.append(result)
            yield result

    summary = summarize(each())
    return Overview(first, summary, next(iter(unusable), None))


def show_results(
    directory: RunPath,
    overview: Overview,
    problems: Sequence[Mapping[str, Any]],
    seconds: float | None,
    output: Output,
    limit: int | None,
) -> None:
    """Write the summary files, then print the results as a table or one JSON document."""
    from dkn_engine.report import render_report, write_summary
    from dkn_engine.store import as_folder

    summary = replace(overview.summary, seconds=seconds, n_left_out=len(problems))
    refused: OSError | None = None
    try:
        with as_folder(directory, "manifest.json") as folder:
            write_summary(folder, overview.first, summary, problems=problems)
    except OSError as error:  # The results shall be seen all the same.
        refused = error
    if output.json:
        _put_document(directory, summary, problems)
    else:
        put(f"{render_report(overview.first, summary, limit=limit)}\n{_files(directory)}\n")
    if refused is not None:
        raise refused


def _put_document(
    directory: RunPath, summary: Summary, problems: Sequence[Mapping[str, Any]]
) -> None:
    """One JSON document, its list of facts written as it is read."""
    from dkn_engine.report import fact_record
    from dkn_engine.store import iter_results, read_manifest

    manifest = read_manifest(directory)
    document = {
        "run_directory": str(directory),
        "model": manifest["model"],
        "config_hash": manifest["config_hash"],
        "summary": summary.to_dict(),
        "facts": [],
        "problems": list(problems),
    }
    # JSON texts hold no line breaks, so this is the list itself.
    before, _, after = json.dumps(document, indent=2, allow_nan=False).partition('\n  "facts": []')
    put(f'{before}\n  "facts": [')
    comma = ""
    for result in iter_results(directory):
        record = json.dumps(fact_record(result), indent=2, allow_nan=False)
        put(comma + textwrap.indent(f"\n{record}", "    "))
        comma = ","
    put(f"\n  ]{after}\n")


def _files(directory: RunPath) -> str:
    text = (
        f"Files in {directory}: summary.md and summary.json; facts-*.parquet (one row a fact), "
        "neurons-*, components-* and attribution-*.parquet; manifest.json"
    )
    return textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False)
