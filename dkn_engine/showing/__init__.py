"""The way from a record to what draws it, which is further down and imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any


def shown(name: str, *args: Any) -> Any:
    """What a function of :mod:`dkn_engine.report.notebook` makes of a record.

    Records know nothing of pictures and pages, but a notebook asks them to show themselves. Here
    alone a call goes down the rooms.
    """
    return getattr(importlib.import_module("dkn_engine.report.notebook"), name)(*args)
