"""See ``api.py`` for the contract."""

from dkn_engine.ops.answer_probability.api import answer_probability, token_logits
from dkn_engine.ops.answer_probability.tail import Head, Tail

__all__ = ["Head", "Tail", "answer_probability", "token_logits"]
