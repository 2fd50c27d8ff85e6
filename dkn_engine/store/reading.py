"""Results of a run directory, complete or not; every reader goes through the same checks."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from dkn_engine.errors import UserError
from dkn_engine.results import Results
from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.open_place import RunPath, place_of
from dkn_engine.store.reader import Reader
from dkn_engine.store.schema import TABLES
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa

As = Literal["facts", "pandas", "datasets"]
Table = Literal["facts", "neurons", "components", "attribution"]


def read_manifest(path: RunPath) -> dict[str, Any]:
    """The manifest of a run directory as plain data.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    return manifests.read(place_of(path))


class Snapshot:
    """The results that are on disk now, read anew each time that they are iterated over.

    Later iterations give the same facts, also while a run writes the directory or puts its chunks
    into fewer files. One window of results is in memory at a time; chunks not done are left out.

    Args:
        path: of the run directory.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read; iterating
            also: a file in it is damaged or of another run; names the file.
    """

    def __init__(self, path: RunPath) -> None:
        self._reader = Reader(place_of(path))
        self._chunks = list(self._reader.parts)

    def __iter__(self) -> Iterator[FactResult]:
        for _, window in itertools.groupby(self._chunks, self._reader.plan.window_of):
            yield from tables.decode(self._reader.tables(window))


def iter_results(path: RunPath) -> Iterator[FactResult]:
    """Results in the order of the facts; see :class:`Snapshot`, whose first iteration this is."""
    yield from Snapshot(path)


def read_results(path: RunPath) -> Results:
    """All results of a run directory, in the order of the facts; see :func:`iter_results`."""
    return Results(iter_results(path))


def read_tables(path: RunPath) -> dict[str, pa.Table]:
    """The four tables of a run directory, rows in the order of the facts.

    Raises:
        RunDirectoryError: see :func:`iter_results`.
    """
    reader = Reader(place_of(path))
    return reader.tables(reader.parts)


@overload
def load_results(path: RunPath, as_: Literal["facts"] = "facts") -> Results: ...
@overload
def load_results(
    path: RunPath, as_: Literal["pandas"], *, table: Table = "facts"
) -> pd.DataFrame: ...
@overload
def load_results(
    path: RunPath, as_: Literal["datasets"], *, table: Table = "facts"
) -> datasets.Dataset: ...
def load_results(path: RunPath, as_: As = "facts", *, table: Table = "facts") -> Any:
    """The results of a run directory, complete or not, in the order of the facts.

    Every chunk is checked before anything of it is returned: its digests, the columns of its
    tables, and what they say of one another.

    Args:
        path: a run directory, or the URL of one that fsspec knows.
        as_: ``facts``, :class:`dkn_engine.Results` whose every array is bit-equal to what was
            written; ``pandas``, a DataFrame, or ``datasets``, a ``datasets.Dataset`` of one
            table with the columns of ``docs/interchange.md``. In a DataFrame a column of integers
            with empty cells holds floats, as is pandas' way.
        table: for ``pandas`` and ``datasets``: ``facts`` (a row a fact), ``neurons``,
            ``components`` or ``attribution`` (a row a fact and layer).

    Raises:
        RunDirectoryError: ``path`` is not a run directory, or a file in it is damaged.
        UserError: an argument has a value that is not allowed, or the package is not installed.
    """
    if as_ not in get_args(As):
        raise UserError(f"as_ must be one of {', '.join(get_args(As))}; got {as_!r}")
    if table not in TABLES:
        raise UserError(f"table must be one of {', '.join(get_args(Table))}; got {table!r}")
    if as_ == "facts":
        if table != "facts":
            raise UserError(
                f"table must be 'facts' with as_='facts', whose records hold all tables; "
                f"got {table!r}"
            )
        return read_results(path)
    package = _package(as_)
    whole = read_tables(path)[table]
    return whole.to_pandas() if as_ == "pandas" else package.Dataset(whole)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"load_results(as_={name!r}) needs the package {name}: pip install {name} ({error})"
        ) from error


def count_done(path: RunPath) -> tuple[int, int]:
    """Number of facts whose results are on disk, and of all facts of the run (or its shard).

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    reader = Reader(place_of(path))
    return sum(map(reader.plan.size, reader.done())), reader.plan.n_own
