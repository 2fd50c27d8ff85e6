"""Attribution of tiny models, as the tests of this folder ask for it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dkn_engine.attribution.chunk import ChunkScores, attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.tiny import MASK_ID, sequences

# Their attention does not go through transformers' interface (OPT: its MLP has no batch axis).
GENERAL = ("gptj", "falcon", "opt", "gpt_neo")
S = 3
LEFT = (np.arange(S) / S, np.full(S, 1 / S))


def fixed(**options: Any) -> AttributionConfig:
    """S points of the left Riemann rule: the same points as LEFT, so equality is exact."""
    return AttributionConfig(**{"quadrature": "riemann_left", "n_steps": S, **options})


def attributed(
    name: str,
    model: Any,
    config: AttributionConfig,
    some: Sequence[AnswerSequence] | None = None,
    **options: Any,
) -> ChunkScores:
    """Attribution of the given (or the usual three) sequences, by the path the family takes."""
    general = pytest.warns(UserWarning, match="full forward passes")
    some = sequences() if some is None else some
    with general if name in GENERAL else contextlib.nullcontext():
        return attribute_chunk(model, find_layout(model), some, config, mask_id=MASK_ID, **options)
