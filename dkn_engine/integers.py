"""Integers as callers have them: Python's own, or those that NumPy computed."""

from __future__ import annotations

from typing import Any

import numpy as np


def integer(value: Any) -> int | None:
    """The plain integer of Python's or NumPy's; None for anything else, and bools."""
    ok = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if ok else None
