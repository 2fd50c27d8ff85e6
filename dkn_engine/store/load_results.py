"""A run's results read back: the engine's own records, or a table for pandas or datasets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from dkn_engine.errors import UserError
from dkn_engine.store import RunPath, read_results, read_tables
from dkn_engine.store.schema import TABLES
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    import datasets
    import pandas as pd

As = Literal["facts", "pandas", "datasets"]
Table = Literal["facts", "neurons", "components", "attribution"]


@overload
def load_results(path: RunPath, as_: Literal["facts"] = "facts") -> list[FactResult]: ...
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
        as_: ``facts``, a list of :class:`dkn_engine.FactResult` with every array bit-equal to what
            was written; ``pandas``, a DataFrame, or ``datasets``, a ``datasets.Dataset`` of one
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
