"""Runs that an analysis makes for itself, without what none of its figures is read off."""

from __future__ import annotations

import dataclasses
from typing import Any

from dkn_engine.config import Config


def without_controls(config: Config, **more: Any) -> Config:
    """The configuration without controls of single facts, which a comparison has no use for.

    Args:
        config: of the run that is compared.
        more: settings of its filter that are not to be as they are there, or not 0.
    """
    light = {"n_random": 0, "n_regrouped": 0, "n_unrelated": 0, **more}
    return dataclasses.replace(config, filter=dataclasses.replace(config.filter, **light))
