"""See ``api.py`` for the contract."""

from dkn_engine.ops.path_activation.api import path_activation

__all__ = ["path_activation"]
