"""See ``api.py`` for the contract."""

from dkn_engine.ops.ig_accumulate.api import ig_accumulate

__all__ = ["ig_accumulate"]
