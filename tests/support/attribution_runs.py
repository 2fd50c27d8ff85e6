"""Attribution of tiny models, as the tests of this folder ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.brute_force_scores import BruteForce, Rule
from tests.support.tiny import MASK_ID, N_LAYERS, WIDTH, relative_error, sequences

# Their attention does not go through transformers' interface (OPT: its MLP has no batch axis).
BLOCKS = ("gptj", "falcon", "opt", "gpt_neo")
# Both sides compute the same in float64, in another order ...
FLOAT64 = 1e-10
# ... but transformers' eager attention rounds its weights to float32, and these families use it
# (Gemma2 for its caps) or multiply queries with keys in float32.
ROUNDED = ("gemma2", "gptj", "gpt_neo")
EAGER = 10 * float(torch.finfo(torch.float32).eps)
S = 3
LEFT: Rule = (np.arange(S) / S, np.full(S, 1 / S))


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
    some = sequences() if some is None else some
    return attribute_chunk(model, find_layout(model), some, config, mask_id=MASK_ID, **options)


def tolerance(name: str) -> float:
    return EAGER if name in ROUNDED else FLOAT64


def given_baselines() -> Tensor:
    """A baseline for each of the usual three sequences, ``[3, L, F]``."""
    random = torch.Generator().manual_seed(5)
    return torch.randn(3, N_LAYERS, WIDTH, generator=random, dtype=torch.float64)


def require_brute_force(
    found: ChunkScores,
    name: str,
    model: Any,
    site: str,
    *,
    rule: Rule = LEFT,
    starts: Sequence[Any] = ("masked",) * 3,
    allowed: float = FLOAT64,
) -> None:
    """The usual three sequences' scores are the oracle's, of paths that begin at ``starts``."""
    oracle = BruteForce(name, model, site)
    for scores, one, start in zip(found.scores, sequences(), starts, strict=True):
        assert relative_error(scores, oracle.scores(one, rule, start).mean(0)) < allowed
