"""From scores to knowledge neurons: threshold, top k or percentile; agreement of paraphrases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import SelectionConfig
from dkn_engine.neurons import existing
from dkn_engine.types import Selection

# Scores of other batch sizes agree to this share of a fact's maximum, so closer ones may swap.
BORDERLINE = 1e-5


def select_neurons(
    scores: ArrayLike, config: SelectionConfig, widths: Sequence[int] | None = None
) -> Selection:
    """Neurons whose score passes the rule of ``config`` (Dai et al. 2022, section 3.2).

    Args:
        scores: real ``[L, F]``, or ``[n_prompts, L, F]`` for a prompt and its paraphrases: then
            a neuron must be found by more than ``config.paraphrase_share`` of them, and its score
            is the mean.
        config: ``method`` and its value, ``paraphrase_share``, ``max_neurons``.
        widths: how many neurons each layer has; None for F each. Places behind them are no
            neurons: they are never found, and count in no percentile.

    Raises:
        ValueError: another number of axes, no prompt, or widths of another number of layers.
    """
    table = np.asarray(scores)
    if table.dtype.kind != "f":
        table = table.astype(np.float64)
    if table.ndim == 2:
        table = table[None]
    if table.ndim != 3 or not len(table):
        raise ValueError(f"scores must be [L, F] or [n, L, F] with n >= 1; got {list(table.shape)}")
    real = existing(table.shape[1:], widths)
    found = np.zeros(table.shape[1:], dtype=np.int64)
    close = np.zeros(table.shape[1:], dtype=bool)
    for one in table:
        passes, near = _passing(one, config, real)
        found += passes
        close |= near
    mean = table.mean(0, dtype=np.float64).astype(table.dtype)
    chosen = _by_score(mean, found > config.paraphrase_share * len(table))
    if len(chosen) > config.max_neurons:
        last = mean.flat[chosen[config.max_neurons - 1]]
        close |= np.abs(mean - last) <= BORDERLINE * mean.max()
        chosen = chosen[: config.max_neurons]
    return Selection(
        _pairs(chosen, mean.shape),
        mean.flat[chosen].astype(np.float32),
        _pairs(_by_score(mean, close), mean.shape),
    )


def _passing(
    scores: NDArray[np.floating], config: SelectionConfig, real: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which neurons pass, and which are too close to the threshold to be sure, ``[L, F]`` each."""
    highest = float(scores.max(initial=0.0))
    if not highest > 0:  # No neuron raises the answer's probability.
        nothing = np.zeros(scores.shape, dtype=bool)
        return nothing, nothing
    if config.method == "top_k":
        chosen = _by_score(scores, real)[: config.top_k]
        passes = np.zeros(scores.shape, dtype=bool)
        passes.flat[chosen] = True
        threshold = float(scores.flat[chosen[-1]])
    else:
        threshold = config.threshold * highest
        if config.method == "percentile":
            threshold = float(np.percentile(scores[real], config.percentile))
        passes = real & (scores > threshold)
    return passes, real & (np.abs(scores - threshold) <= BORDERLINE * highest)


def _by_score(scores: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Flat indices of the mask's neurons, by descending score, then by layer and index."""
    flat = np.flatnonzero(mask)
    return flat[np.argsort(-scores.flat[flat], kind="stable")]


def _pairs(flat: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int32]:
    return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int32)
