"""See ``api.py`` for the contract."""

from dkn_engine.ops.answer_probability.api import answer_probability

__all__ = ["answer_probability"]
