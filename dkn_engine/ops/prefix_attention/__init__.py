"""See ``api.py`` for the contract."""

from dkn_engine.ops.prefix_attention.api import prefix_attention

__all__ = ["prefix_attention"]
