"""Fine-tuning on facts in which only chosen neurons, all MLP neurons, or all weights may change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dkn_engine.analysis.config import TrainingConfig
from dkn_engine.analysis.experiments.evolvability.answers import batches
from dkn_engine.analysis.experiments.evolvability.row_gradients import RowGradients
from dkn_engine.analysis.experiments.evolvability.trainable import (
    Block,
    Trainable,
    neuron_change,
    places_digest,
    standing_in,
    trainable_blocks,
)
from dkn_engine.analysis.experiments.evolvability.training_checkpoint import Checkpoint
from dkn_engine.analysis.experiments.evolvability.unchanged_layers import UnchangedLayers
from dkn_engine.config import FactsConfig
from dkn_engine.errors import DknError, UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.files.local_paths import local_path
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.forward.log_probability import log_probabilities
from dkn_engine.models.fingerprint import model_traits
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import Layout, decoder_layout
from dkn_engine.models.model_lock import locked
from dkn_engine.seeds import generator
from dkn_engine.types import Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# By identity. Two trainings of one model in one thread (of asyncio tasks, say) need not nest, and
# the one that ended last would put back the other's weights.
_in_training: set[int] = set()


class Diverged(DknError):
    """The loss of a fine-tuning is no longer finite."""


@dataclass(frozen=True, eq=False)
class FineTuning:
    """A model while it is changed by training.

    Attributes:
        losses: float64 ``[steps taken]``, of each step's facts before the step: mean negative
            log-probability of an answer token.
        n_trainable: weights that could change.
        n_state: values that the optimiser holds, its counts of steps aside.
        sequences: the facts as they are trained on.
    """

    losses: NDArray[np.float64]
    n_trainable: int
    n_state: int
    sequences: Sequence[AnswerSequence]
    _layout: Layout
    _blocks: tuple[Block, ...]

    def neuron_change(self) -> NDArray[np.float64]:
        """Relative L2 change of each MLP neuron, float64 ``[L, F]``; only inside the block.

        See :func:`dkn_engine.analysis.experiments.evolvability.trainable.neuron_change`.
        """
        return neuron_change(self._layout, self._blocks)


@contextlib.contextmanager
def finetuned(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    trainable: Trainable,
    settings: TrainingConfig | None = None,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Iterator[FineTuning]:
    """Train the model on facts for the length of the block; afterwards it is as it was.

    AdamW without weight decay, constant rate, dropout off, on the mean negative log-probability
    of the teacher-forced answer tokens. The optimiser holds state for the trainable values alone.
    The model runs with copies of the parameters that they are in: its own are never written to.

    Args:
        model: a causal decoder in float32 or float64.
        tokenizer: the model's.
        facts: prompts and answers; their paraphrases are not trained on.
        trainable: neurons int ``[n, 2]`` (layer, index): their rows of the gate and up projections
            (with biases) and of the down projection; ``"mlp"``: those of all neurons; ``"all"``.
        settings: of the training; None: those that ``changes`` give.
        seed: of the order of facts.
        checkpoint: directory of the training's state. What is found there goes on, to the same
            weights, bit for bit, as without the interruption.
        progress: called as ``progress(done, steps)``; at the end with ``done == steps``.
        changes: of single settings, by their names; ``steps`` and ``lr`` have no default.

    Yields:
        What was trained; the model carries the trained weights until the block ends or raises,
        and calls on it in other threads wait for that.

    Raises:
        UserError: a setting that is not allowed, no fact, a checkpoint of another training, or
            another training of the model that is open in this thread.
        FactError: a fact that cannot be encoded.
        UnsupportedModelError: a layout that the engine does not know, or an MLP's weight on which
            the answers do not depend.
        Diverged: the loss is not finite.
    """
    settings = TrainingConfig.of(settings, **changes)
    config = FactsConfig()
    facts = fact_list(facts, config)
    if not facts:
        raise UserError("facts must hold at least one fact to train on; got none")
    layout = decoder_layout(model, "finetune")
    sequences = [
        encode_sequence(model, tokenizer, f.prompt, f.answer, config=config, fact_id=f.id)
        for f in facts
    ]
    with locked(model), _alone(layout):
        blocks = trainable_blocks(model, layout, trainable)
        plan = _Plan(sequences, settings, seed)
        kept = None
        if checkpoint is not None:
            identity = plan.identity() | {
                "weights": model_traits(model)["weights"],
                "trained weights": places_digest(blocks),
            }
            kept = Checkpoint(local_path(checkpoint), identity)
        with standing_in(model, blocks):
            layers = UnchangedLayers(model, layout, blocks)
            gradients = RowGradients(model, layout, blocks)
            losses, n_state = _train(model, blocks, plan, layers, gradients, kept, progress)
            n = sum(b.values.numel() for b in blocks)
            yield FineTuning(losses, n, n_state, sequences, layout, tuple(blocks))


@contextlib.contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Refuse a second training of the model until the block ends."""
    if id(layout.base) in _in_training:
        raise UserError("model must not be in training; another training of this model is open")
    _in_training.add(id(layout.base))
    try:
        yield
    finally:
        _in_training.remove(id(layout.base))


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which facts are trained on in which step, and how."""

    sequences: Sequence[AnswerSequence]
    settings: TrainingConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        tokens = json.dumps([[s.ids, s.n_prompt, s.targets] for s in self.sequences])
        return {
            "facts": hashlib.sha256(tokens.encode()).hexdigest(),
            "steps": self.settings.steps,
            "lr": self.settings.lr,
            "stop_loss": self.settings.stop_loss,
            "batch_size": self.settings.batch_size,
            "seed": self.seed,
        }

    def done(self, losses: Sequence[float]) -> bool:
        """Whether the step of the last of these losses is the last one."""
        enough = self.settings.stop_loss
        learnt = enough is not None and len(losses) > 0 and losses[-1] <= enough
        return learnt or len(losses) >= self.settings.steps

    @property
    def all_at_once(self) -> bool:
        """Whether every step is on all facts, in the same order."""
        size = self.settings.batch_size
        return size is None or size >= len(self.sequences)

    def batch(self, step: int) -> list[AnswerSequence]:
        """The facts of a step, which depend on nothing but the seed and the step."""
        n, size = len(self.sequences), self.settings.batch_size
        if size is None or self.all_at_once:
            return list(self.sequences)
        epoch, part = divmod(step, -(-n // size))
        order = generator(self.seed, "fine-tuning", str(epoch)).permutation(n)
        chosen = order[part * size : (part + 1) * size]
        return [self.sequences[i] for i in chosen]


def _train(
    model: nn.Module,
    blocks: Sequence[Block],
    plan: _Plan,
    layers: UnchangedLayers,
    gradients: RowGradients,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
) -> tuple[NDArray[np.float64], int]:
    """Losses of the steps, and how many values the optimiser holds."""
    fused = all(b.values.device.type in {"cpu", "cuda"} for b in blocks)
    optimiser = torch.optim.AdamW(
        [b.values for b in blocks], lr=plan.settings.lr, weight_decay=0.0, fused=fused
    )
    with guest(model, grad=True), _without_autocast(blocks), gradients.followed():
        losses = [] if checkpoint is None else checkpoint.load(blocks, optimiser).tolist()
        if progress is not None and plan.done(losses):
            progress(plan.settings.steps, plan.settings.steps)
        while not plan.done(losses):
            losses.append(_loss(model, plan, len(losses), layers))
            gradients.take()
            if not math.isfinite(losses[-1]):
                raise Diverged(
                    f"fine-tuning: the loss is {losses[-1]} before step {len(losses)}; "
                    "a smaller lr may help"
                )
            _step(optimiser, blocks)
            done = plan.done(losses)
            if checkpoint is not None and (
                done or len(losses) % plan.settings.checkpoint_every == 0
            ):
                checkpoint.save(blocks, optimiser, losses)
            if progress is not None:
                progress(plan.settings.steps if done else len(losses), plan.settings.steps)
    n_state = sum(
        value.numel()
        for state in optimiser.state.values()
        for key, value in state.items()
        if key != "step"
    )
    return np.array(losses), n_state


@contextlib.contextmanager
def _without_autocast(blocks: Sequence[Block]) -> Iterator[None]:
    """No caller's autocast, which keeps short copies of weights that no step reaches."""
    with contextlib.ExitStack() as stack:
        for device in sorted({b.values.device.type for b in blocks}):
            if torch.is_autocast_enabled(device):  # Some have none, and would refuse to be told.
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _loss(model: nn.Module, plan: _Plan, step: int, layers: UnchangedLayers) -> float:
    """The loss of a step's facts, of which backward passes were run."""
    sequences = plan.batch(step)
    n_tokens = sum(len(s.targets) for s in sequences)
    total = 0.0
    for i, (_, contexts) in enumerate(batches(model, sequences)):
        logits = layers.logits(contexts, i if plan.all_at_once else None)
        log_p, _ = log_probabilities(logits, contexts.target)
        loss = -log_p.sum() / n_tokens
        total += loss.item()
        loss.backward()
    return total


def _step(optimiser: torch.optim.Optimizer, blocks: Sequence[Block]) -> None:
    """One step of the values, with which the model then runs."""
    with torch.no_grad():
        optimiser.step()
    for block in blocks:
        block.values.grad = None
        block.put()
