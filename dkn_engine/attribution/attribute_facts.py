"""The public verb: integrated-gradient scores of every MLP neuron, for lists of facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores, slowest
from dkn_engine.config import AttributionConfig, FactsConfig, SelectionConfig
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, facts_from
from dkn_engine.files.sections import integer
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence, wrong_answers_of
from dkn_engine.models.layout import Layout, find_layout
from dkn_engine.models.masked_answers import facts_config_of
from dkn_engine.models.prompt_positions import prompt_positions
from dkn_engine.models.tokens import mask_token_id
from dkn_engine.selection import select_neurons
from dkn_engine.types import Attribution, Fact, FactAttribution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Keep = Literal["all", "top", "none"]
FACTS_PER_CHUNK = 8


def attribute(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    config: AttributionConfig | None = None,
    *,
    baselines: ArrayLike | None = None,
    facts_config: FactsConfig | None = None,
) -> Attribution:
    """Scores of every MLP neuron for every fact, all in memory.

    A fact takes ``4 L F`` bytes (184 kB on the demo model, 1.4 MB on LLaMA-2-7B); use
    :func:`iter_attribute` for more than fits.

    Args, errors and sources: see :func:`iter_attribute`.

    Returns:
        See :class:`dkn_engine.Attribution`; empty axes without facts.
    """
    asked = (model, tokenizer, facts, config)
    layout, every = _attributed(*asked, "all", 1, baselines, facts_config)
    found = list(every)
    layers, dense = (len(found), layout.n_layers), (len(found), layout.n_layers, layout.width)
    scores = np.empty(dense, dtype=np.float32)
    for i, one in enumerate(found):
        assert one.scores is not None
        scores[i] = one.scores
    return Attribution(
        fact_ids=tuple(f.fact_id for f in found),
        scores=scores,
        convergence_delta=np.array([f.convergence_delta for f in found], np.float32).reshape(
            layers
        ),
        probability=np.array([f.probability for f in found], dtype=np.float64),
        n_points=np.array([f.n_points for f in found], np.int32).reshape(layers),
        converged=np.array([f.converged for f in found], np.bool_).reshape(layers),
        error=np.array([f.error for f in found], dtype=np.float32),
        path=tuple(f.path for f in found),
        widths=layout.widths,
    )


def iter_attribute(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    config: AttributionConfig | None = None,
    *,
    keep: Keep = "all",
    n_top: int = 1000,
    baselines: ArrayLike | None = None,
    facts_config: FactsConfig | None = None,
) -> Iterator[FactAttribution]:
    """Attributions one by one, in the order of the facts, in memory that does not grow.

    Args:
        model: a language model of transformers that the engine takes; it is left as it was found.
        tokenizer: the model's.
        facts: as for :func:`dkn_engine.find_dkns`; read as they are needed, eight at a time.
        config: how; None for :class:`AttributionConfig`'s defaults.
        keep: of the scores: ``all``, the ``n_top`` highest as neurons, or ``none``.
        n_top: number of neurons with ``keep="top"``.
        baselines: with ``config.baseline="given"``: activations x', real ``[L, F]`` for every
            fact or ``[n_facts, L, F]``; what a narrower layer does not have is not read.
        facts_config: how facts become tokens; None for the defaults.

    Raises:
        FactError: a fact cannot be encoded, or has no wrong answers that the objective needs, or
            not the positions that are asked for; names it.
        UnsupportedModelError: the model is none that the engine knows.
        UserError: an argument has a value that is not allowed.
        BackendError: a backend asked for by name cannot run.

    Source:
        Integrated gradients: Sundararajan et al. 2017, equation 1 (arXiv 1703.01365). Over MLP
        activations: Dai et al. 2022, equation 3 (arXiv 2104.08696).
    """
    whole = (model, tokenizer, facts, config, keep, n_top, baselines, facts_config)
    return _attributed(*whole)[1]


def _attributed(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    config: AttributionConfig | None,
    keep: Keep,
    n_top: int,
    baselines: ArrayLike | None,
    facts_config: FactsConfig | None,
) -> tuple[Layout, Iterator[FactAttribution]]:
    """The model's layout, and :func:`iter_attribute`."""
    config = AttributionConfig() if config is None else config
    facts_config = facts_config_of(model, facts_config or FactsConfig())
    if keep not in get_args(Keep):
        raise UserError(f"keep must be one of {', '.join(get_args(Keep))}; got {keep!r}")
    if (integer(n_top) or 0) < 1:
        raise UserError(f"n_top must be an integer of at least 1; got {n_top!r}")
    read = facts_from(facts, facts_config)
    layout = find_layout(model)
    given = given_baselines(baselines, config, layout)
    top = SelectionConfig(method="top_k", top_k=n_top, max_neurons=n_top)
    masked = config.baseline == "masked"
    mask_id = mask_token_id(tokenizer, config.mask_token) if masked else None

    def encode(fact: Fact) -> AnswerSequence:
        sequence = encode_sequence(
            model,
            tokenizer,
            fact.prompt,
            fact.answer,
            config=facts_config,
            fact_id=fact.id,
            wrong_answers=wrong_answers_of(fact, config),
        )
        if sequence.source and config.positions != "answer":
            raise UserError(
                f"attribution.positions must be 'answer' for encoder-decoders, whose prompt their "
                f"encoder reads; got {config.positions!r}"
            )
        return sequence.at(prompt_positions(tokenizer, fact, config.positions))

    score = partial(attribute_chunk, model, layout, config=config, mask_id=mask_id)
    return layout, _stream(iter(read), encode, score, given, layout.widths, keep, top)


def _stream(
    facts: Iterator[Fact],
    encode: Callable[[Fact], AnswerSequence],
    score: Callable[..., ChunkScores],
    given: NDArray[np.floating] | None,
    widths: Sequence[int],
    keep: Keep,
    top: SelectionConfig,
) -> Iterator[FactAttribution]:
    done = 0
    while chunk := list(islice(facts, FACTS_PER_CHUNK)):
        sequences = [encode(fact) for fact in chunk]
        baselines = None
        if given is not None:
            if given.ndim == 3 and done + len(chunk) > len(given):
                raise _other_number(given, f"{done + len(chunk)} or more")
            mine = given[done : done + len(chunk)] if given.ndim == 3 else given
            baselines = torch.from_numpy(np.array(mine)).expand(len(chunk), -1, -1)
        scores = score(sequences, baselines=baselines)
        for i, fact in enumerate(chunk):
            yield _one(fact, scores, i, widths, keep, top)
        done += len(chunk)
    # Too many are only known to be when the facts have come to their end.
    if given is not None and given.ndim == 3 and done < len(given):
        raise _other_number(given, str(done))


def _other_number(given: NDArray[np.floating], n_facts: str) -> UserError:
    return UserError(
        f"baselines must have a row for every fact; got {len(given)} rows and {n_facts} facts"
    )


def given_baselines(
    baselines: ArrayLike | None, config: AttributionConfig, layout: Layout
) -> NDArray[np.floating] | None:
    """Baselines that a caller gives, real ``[L, F]`` or ``[n_facts, L, F]``; None without any.

    Raises:
        UserError: ``config`` asks for others, or they have another type or shape.
    """
    if (baselines is not None) != (config.baseline == "given"):
        raise UserError(
            "baselines must be given with baseline='given', and only then; got "
            f"baseline={config.baseline!r} and baselines {'set' if baselines is not None else None}"
        )
    if baselines is None:
        return None
    table = np.asarray(baselines)
    expected = (layout.n_layers, layout.width)
    if table.dtype.kind != "f" or table.ndim not in {2, 3} or table.shape[-2:] != expected:
        raise UserError(
            f"baselines must be real {list(expected)} or [n_facts, {expected[0]}, {expected[1]}]; "
            f"got {table.dtype} {list(table.shape)}"
        )
    return table


def _one(
    fact: Fact,
    chunk: ChunkScores,
    i: int,
    widths: Sequence[int],
    keep: Keep,
    top: SelectionConfig,
) -> FactAttribution:
    scores = chunk.scores[i].astype(np.float32)
    neurons, top_scores = np.empty((0, 2), dtype=np.int32), np.empty(0, dtype=np.float32)
    if keep == "top":
        selection = select_neurons(scores, top, widths)
        neurons, top_scores = selection.neurons, selection.scores
    return FactAttribution(
        fact_id=fact.id,
        scores=scores if keep == "all" else None,
        neurons=neurons,
        top_scores=top_scores,
        convergence_delta=chunk.convergence_delta[i],
        probability=float(chunk.probability[i]),
        n_points=chunk.n_points[i],
        converged=chunk.converged[i],
        error=float(chunk.error[i]),
        path=slowest(chunk.paths[i : i + 1]),
    )
