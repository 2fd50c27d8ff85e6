"""One question: a prompt, its answer and a model in, the knowledge neurons and DKN out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.models.load import load_model
from dkn_engine.run.pipeline import find_dkns
from dkn_engine.store import RunPath
from dkn_engine.types import FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def find(
    prompt: str,
    answer: str,
    *,
    model: str | Path | nn.Module = "demo",
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: Config | None = None,
    out: RunPath | None = None,
    progress: Progress | bool | None = None,
) -> FactResult:
    """The degenerate knowledge neurons of one question.

    Args:
        prompt: a text that the model should continue with the answer; for an encoder with a blank,
            ``[MASK]``.
        answer: what is expected there; the space in front of it is the tokenizer's matter.
        model: what :func:`dkn_engine.load_model` takes, loaded for this call; or a loaded model.
        tokenizer: of a loaded model; of another none is given.
        config, out, progress: see :func:`dkn_engine.find_dkns`.

    Raises:
        UserError: a loaded model without a tokenizer, or a name with one.
        FactError: prompt or answer is empty, or the prompt holds another format's blank.
        UserError, UnsupportedModelError, RunDirectoryError: see :func:`dkn_engine.load_model` and
            :func:`dkn_engine.find_dkns`.

    Example:
        >>> import dkn_engine as dkn
        >>> result = dkn.find("The capital of France is", "Paris", model="demo")
        >>> result.is_degenerate, [len(result.components[i].neurons) for i in result.dkn]
        (True, [3, 4])
    """
    is_name = isinstance(model, str | Path)
    if is_name != (tokenizer is None):
        raise UserError(
            "tokenizer must be None where model is a name, which it is loaded by; got both"
            if is_name
            else "tokenizer must be the model's own where model is a loaded one; got None"
        )
    its: Any = tokenizer
    if isinstance(model, str | Path):
        model, its = load_model(model)
    asked = {"prompt": prompt, "answer": answer}
    (result,) = find_dkns(model, its, asked, config, out, progress=progress)
    return result
