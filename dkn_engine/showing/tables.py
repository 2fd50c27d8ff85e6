"""Rows as a DataFrame, with pandas imported when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def data_frame(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a DataFrame, which has its columns without any, too.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        text = f"to_pandas needs the package pandas: pip install pandas ({error})"
        raise UserError(text) from error
    return pandas.DataFrame(rows, columns=list(columns))
