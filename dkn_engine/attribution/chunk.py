"""Integrated gradients of one chunk of facts: prefill, baselines, paths, quadrature, in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dkn_engine.attribution.baselines import (
    masked_baselines,
    masked_positions,
    masked_rows,
    prefixes_pay,
    shared_masked_baselines,
)
from dkn_engine.attribution.block_sweep import Blocks
from dkn_engine.attribution.chunk_scores import ChunkScores, joined, summed
from dkn_engine.attribution.full_forwards import General
from dkn_engine.attribution.logit_difference import contrasted
from dkn_engine.attribution.one_pass import CleanForwards, CleanRows, clean_end_scores
from dkn_engine.attribution.path_points import Evaluator
from dkn_engine.attribution.paths import Paths
from dkn_engine.attribution.quadrature import Integrals, integrate_adaptive, integrate_fixed
from dkn_engine.attribution.sites import require_site, site_activation
from dkn_engine.attribution.suffix_blocks import SuffixBlocks
from dkn_engine.attribution.sweep import Sweep
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import UserError
from dkn_engine.forward.backward_hooks import refuse_backward_hooks
from dkn_engine.forward.batch_rows import most_path_points
from dkn_engine.forward.causality import require_causal
from dkn_engine.forward.contexts import AnswerSequence, Contexts, scored_contexts
from dkn_engine.forward.encoder_states import with_states
from dkn_engine.forward.encoding import clean_probability, n_tokens
from dkn_engine.forward.gradient_check import refuse_cut_gradients
from dkn_engine.forward.lengths import sequence_groups
from dkn_engine.forward.patched_rows import SweepUnsupported
from dkn_engine.forward.prefill import Prefill, prefill
from dkn_engine.forward.routing import Routing, reached
from dkn_engine.forward.row_check import (
    failures_mean_no_sweep,
    rows_to_check,
    warn_of_full_forwards,
)
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import Layout
from dkn_engine.models.projections import refuse_changed_outputs
from dkn_engine.types import Path

_MINUTE = 60.0


def attribute_chunk(
    model: nn.Module,
    layout: Layout,
    sequences: Sequence[AnswerSequence],
    config: AttributionConfig,
    *,
    mask_id: int | None = None,
    baselines: Tensor | None = None,
) -> ChunkScores:
    """Integrated gradients of every sequence's answer over all layers' activations.

    Sequences are swept together, as far as the model reads them together as it does alone and the
    device's memory holds them.

    Args:
        sequences: of the answers; they may differ in length.
        mask_id: token that masks a prompt token (``baseline="masked"``).
        baselines: ``[B, L, F]`` (``baseline="given"``).

    Raises:
        UnsupportedModelError: the model's MLPs have no such site, a module cuts gradients off, a
            hook changes what a down projection gives, a backward hook is set, or the model is not
            causal.
        UserError: the mask is no token of the model, or a sequence has no wrong answers
            (``objective="logit_difference"``).
    """
    if config.objective == "logit_difference":

        def score(
            some: Sequence[AnswerSequence], given: Tensor | None, tolerance: float
        ) -> ChunkScores:
            by_logit = dataclasses.replace(config, objective="logit", tolerance=tolerance)
            return attribute_chunk(model, layout, some, by_logit, mask_id=mask_id, baselines=given)

        return contrasted(score, sequences, baselines, config.tolerance)
    require_site(layout, config.site)
    if config.baseline == "masked":
        _require_mask(model, mask_id)
    refuse_backward_hooks(model)
    require_causal(layout)
    parts: list[tuple[list[int], ChunkScores]] = []
    for group in sequence_groups(model, sequences):

        def add(start: int, stop: int, group: list[int] = group) -> None:
            index = group[start:stop]
            some = [sequences[i] for i in index]
            given = None if baselines is None else baselines[index]
            parts.append((index, _attribute_batch(model, layout, some, config, mask_id, given)))

        in_batches(len(group), len(group), add, of="prompts", option="facts_per_chunk")
    return _joined(parts)


def _joined(parts: Sequence[tuple[list[int], ChunkScores]]) -> ChunkScores:
    """Scores of batches in the order of the chunk, of which each batch has its indices."""
    back = np.argsort(np.concatenate([index for index, _ in parts]))
    return joined([scores for _, scores in parts]).take(back)


def _attribute_batch(
    model: nn.Module,
    layout: Layout,
    sequences: Sequence[AnswerSequence],
    config: AttributionConfig,
    mask_id: int | None,
    baselines: Tensor | None,
) -> ChunkScores:
    """:func:`attribute_chunk` of sequences that are padded to one length."""
    contexts = scored_contexts(sequences, layout.device, config.masked_tokens)
    rows = most_path_points(config, model, layout)
    with guest(model, grad=True):
        refuse_cut_gradients(layout, contexts.ids)
        started = time.perf_counter()
        with refuse_changed_outputs(layout, contexts.rows):
            clean = prefill(model, layout, contexts)
        contexts = with_states(model, contexts, clean)
        # The product over all of an answer's tokens, whatever is attributed, and where.
        logs, answer = clean.log_probability.double().cpu().numpy(), contexts.answer.cpu().numpy()
        logs = logs / np.array([max(1, len(s.changed)) for s in sequences])[answer]
        probability: NDArray[np.float64] = np.exp(np.bincount(answer, weights=logs))
        for b, one in enumerate(sequences):
            # Its tokens are attributed behind others than the model goes on with.
            if one.steps and not one.masks:
                probability[b] = clean_probability(model, one)
        if config.baseline == "masked":
            pace = (time.perf_counter() - started) / contexts.ids.numel()
            warn_of_cost(contexts, config.max_masked, pace, shared=prefixes_pay(layout, clean))
        if config.answer_tokens == "first":
            first = torch.nonzero(contexts.token == 0).squeeze(1)
            contexts, clean = contexts.take(first), clean.take(first)
        chunk = _Chunk(model, layout, contexts, clean, config, mask_id, baselines, rows)
        integrals, row_layers, path = chunk.integrals()
        groups, weights = chunk.groups()
    return _combine(integrals, groups, weights, probability, path, row_layers)


def warn_of_cost(contexts: Contexts, max_masked: int | None, pace: float, *, shared: bool) -> None:
    """Say how long the masked copies of long prompts will take, if that is more than a minute.

    ``pace`` is seconds a position, as the clean pass took them; ``shared`` is whether the copies
    share their prefixes.
    """
    seconds = pace * masked_rows(contexts, max_masked, shared)
    if seconds < _MINUTE:
        return
    n_masked = sum(
        len(masked_positions(contexts.maskable(b), max_masked)) for b in range(len(contexts.ids))
    )
    warnings.warn(
        f"masked baseline: {n_masked:,} masked copies of {len(contexts.n_prompt)} prompts of up to "
        f"{max(contexts.n_prompt):,} tokens will take about {seconds / 60:.0f} min; "
        "attribution.max_masked masks fewer tokens",
        stacklevel=2,
    )


def _require_mask(model: nn.Module, mask_id: int | None) -> None:
    n = n_tokens(model)
    if mask_id is not None and mask_id >= n:
        raise UserError(
            f"baseline='masked' masks with token {mask_id}, which is not among the model's {n}; do "
            "tokenizer and model belong together? baseline='zero' needs no mask"
        )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """What is integrated: by rows; in blocks or by full forwards where rows do not fit a model."""

    model: nn.Module
    layout: Layout
    contexts: Contexts
    clean: Prefill
    config: AttributionConfig
    mask_id: int | None
    baselines: Tensor | None
    rows: int

    def integrals(self) -> tuple[Integrals, int, Path]:
        """Integrals, the (row, layer) pairs they took, and by which path they were had."""
        try:
            return *self.swept(), Sweep.name
        except SweepUnsupported as reason:
            why = reason  # Not said where blocks do, since results name the path.
        if self.config.method != "integrated_gradients":
            # One clean pass, whose whole sequences are what blocks would be.
            return self.in_full(), 0, General.name
        try:
            return self.in_blocks(), 0, Blocks.name
        except SweepUnsupported as reason:
            both = SweepUnsupported(f"{why}; in blocks, {reason}")
            warn_of_full_forwards(self.model, both, stacklevel=1)
            return self.in_full(), 0, General.name

    def swept(self) -> tuple[Integrals, int]:
        """Integrals, and the (row, layer) pairs they took.

        Raises:
            SweepUnsupported: see :mod:`dkn_engine.forward.row_check`.
        """
        if self.contexts.changed is not None:
            raise SweepUnsupported("rows are of the positions that predict")
        whole = (self.model, self.layout, self.contexts, self.clean)
        engine = rows_to_check(*whole, self.config.backend)
        if prefixes_pay(self.layout, self.clean):
            with failures_mean_no_sweep():  # The rows are not checked yet.
                masked = partial(shared_masked_baselines, engine, max_tokens=4 * self.rows)
                paths = self._paths(masked)
        else:
            paths = self._plain_paths()
        if self.config.method != "integrated_gradients":
            gradients = CleanRows(engine, self.config, self.rows).gradients()
            return clean_end_scores(paths, gradients, self.config.method), engine.row_layers
        sweep = Sweep(engine, paths, self.config.objective, self.rows)
        return self._integrate(sweep, paths), engine.row_layers

    def in_blocks(self) -> Integrals:
        """By blocks of sequences, in a causal model from the changed position on if possible.

        Raises:
            SweepUnsupported: unchanged blocks do not reproduce the model's own forward.
        """
        paths, objective = self._plain_paths(), self.config.objective
        whole = (self.layout, self.contexts, self.clean, paths, objective, self.rows)
        if self.layout.alone:
            # Blocks of whole sequences do where these do not fit.
            with contextlib.suppress(SweepUnsupported):
                return self._integrate(SuffixBlocks(*whole, self._routing()), paths)
        return self._integrate(Blocks(*whole, self._routing()), paths)

    def in_full(self) -> Integrals:
        """By full forward passes."""
        paths = self._plain_paths()
        whole = (self.model, self.contexts, paths, self.config.objective, self.rows)
        general = General(*whole, self._routing())
        if self.config.method != "integrated_gradients":
            gradients = CleanForwards(general, self.config.method).gradients()
            return clean_end_scores(paths, gradients, self.config.method)
        return self._integrate(general, paths)

    def _plain_paths(self) -> Paths:
        whole = (self.model, self.layout, self.contexts)
        options: dict[str, Any] = {"max_tokens": self.rows, "routing": self._routing()}
        return self._paths(partial(masked_baselines, *whole, **options))

    def _routing(self) -> Routing | None:
        """To which mixtures of experts keep at the contexts' positions."""
        return self.clean.routing if self.config.routing == "frozen" else None

    def _paths(self, masked: Callable[..., Tensor]) -> Paths:
        value, fixed = site_activation(self.layout, self.clean, self.config.site)
        baseline = self._baseline(value, masked)
        choices = (self.config.multiply_by, self.config.backend)
        # Answers are numbered in order, and so are their first tokens.
        first = torch.nonzero(self.contexts.token == 0).squeeze(1)[self.contexts.answer]
        return Paths(self.layout, self.config.site, value, baseline, fixed, *choices, first)

    def _baseline(self, value: Tensor, masked: Callable[..., Tensor]) -> Tensor:
        """x' at every context, ``[C, L, F]``."""
        if self.config.baseline == "zero":
            return torch.zeros_like(value)
        if self.config.baseline == "given":
            assert self.baselines is not None
            given = self.baselines[self.contexts.answer.cpu()].to(value.device)
            for layer, width in enumerate(self.layout.widths):
                given[:, layer, width:] = 0
            if routing := self._routing():
                given = given * reached(self.layout, routing, len(given)).to(given.device)
            return given
        assert self.mask_id is not None
        config = self.config
        return masked(site=config.site, mask_id=self.mask_id, most=config.max_masked)

    def groups(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The answer of each context, and the context's weight in its scores."""
        groups = self.contexts.answer.cpu().numpy()
        if self.config.answer_tokens == "sum":
            return groups, np.ones(len(groups))
        # Scores of several positions are summed, those of several tokens averaged.
        first = self.contexts.token.cpu().numpy() == 0
        n_tokens = np.bincount(groups) / np.bincount(groups[first])
        return groups, 1 / n_tokens[groups]

    def _integrate(self, evaluator: Evaluator, paths: Paths) -> Integrals:
        config = self.config
        if config.quadrature != "adaptive":
            assert config.n_steps is not None
            return integrate_fixed(evaluator, paths, config.quadrature, config.n_steps)
        return integrate_adaptive(
            evaluator,
            paths,
            *self.groups(),
            config.tolerance,
            config.max_points,
            complete=config.multiply_by == "delta",
        )


def _combine(
    integrals: Integrals,
    groups: NDArray[np.int64],
    weights: NDArray[np.float64],
    probability: NDArray[np.float64],
    path: Path,
    row_layers: int,
) -> ChunkScores:
    """From contexts (answer tokens) to answers."""
    scores = summed(integrals.scores, groups, weights)
    norm = np.sqrt(np.square(scores, dtype=np.float64).sum((1, 2)))
    error = np.linalg.norm(summed(integrals.error, groups, weights), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(error > 0, error / norm, error)
    n_points = np.zeros((len(scores), integrals.n_points.shape[1]), dtype=np.int32)
    np.add.at(n_points, groups, integrals.n_points)
    converged = np.ones(n_points.shape, dtype=bool)
    np.logical_and.at(converged, groups, integrals.converged)
    return ChunkScores(
        scores,
        summed(integrals.delta, groups, weights).astype(np.float32),
        probability,
        n_points,
        converged,
        relative.astype(np.float32),
        np.full(len(scores), path),
        row_layers,
    )
