"""Tokens that enter a model when tokens of its own follow a prompt, written as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dkn_engine.errors import FactError
from dkn_engine.models.tokens import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[int, ...]
# From tokens behind the prompt to all that enter the model.
Continuation = Callable[[Tokens], Tokens]

_BLANKS = ("_X_", "MASK")


@dataclass(frozen=True, eq=False)
class ByText:
    """Each token's text is written behind the prompt's and the whole is tokenised anew.

    The published code's way. Tokens before may change, too: SentencePiece loses the space in front
    of a token that is decoded by itself, so that it is glued to the word before. Where a blank has
    stayed in the prompt, spaces at the ends are cut off.

    Attributes:
        tokenizer, prompt: of the fact.
        max_length: the model's context, in tokens; None if unknown.
        where: begins the messages.

    Raises:
        FactError: the text is longer than the context.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: str
    max_length: int | None
    where: str

    def __call__(self, tokens: Tokens) -> Tokens:
        text = self.prompt + "".join(str(self.tokenizer.decode([t])) for t in tokens)
        if any(blank in text for blank in _BLANKS):
            text = text.strip()
        ids = encode_prompt(self.tokenizer, text)
        if self.max_length is not None and len(ids) > self.max_length:
            raise FactError(
                f"{self.where}prompt and continuation need {len(ids)} positions; the model's "
                f"context has {self.max_length}"
            )
        return ids
