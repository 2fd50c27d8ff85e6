"""Tables as CSV with lines that end in a line feed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def csv_text(head: Sequence[str], body: Iterable[Iterable[object]]) -> str:
    """Rows under their columns' names.

    Raises:
        ValueError: two columns have one name.
    """
    if len(set(head)) < len(head):
        raise ValueError(f"columns must not be named as other columns are; got {list(head)}")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(body)
    return text.getvalue()


def records_csv(records: Sequence[Mapping[str, object]]) -> str:
    """Records that have the same keys in the same order, of which the columns get their names."""
    return csv_text(list(records[0]), (record.values() for record in records))


def write_csv(path: Path, text: str) -> None:
    """Put the text of one of these into a file, on every platform the same bytes."""
    path.write_text(text, encoding="utf-8", newline="")
