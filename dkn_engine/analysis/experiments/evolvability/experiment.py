"""Evolvability: what a model learns and forgets when only some of its neurons may change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.config import EvolvabilityConfig
from dkn_engine.analysis.experiments.evolvability.asked import Q_AU, Q_NEW, Q_OLD, Answer, Asked
from dkn_engine.analysis.experiments.evolvability.finetune import FineTuning, finetuned
from dkn_engine.analysis.experiments.evolvability.learning_rate import best_rate, loss_by_rate
from dkn_engine.analysis.experiments.evolvability.overlap import overlap_rows, targets
from dkn_engine.analysis.experiments.evolvability.trainable import Trainable
from dkn_engine.analysis.experiments.evolvability.trials import Trained, Trials
from dkn_engine.analysis.neuron_groups import NeuronGroups, neuron_groups, with_dkn
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.files.local_paths import local_path
from dkn_engine.models.layout import decoder_layout
from dkn_engine.neurons import random_sets, sort_neurons, union
from dkn_engine.run.progress import showing
from dkn_engine.seeds import generator
from dkn_engine.statistics.table import Comparison, Conditions, Row, Sample, Table, tabulate
from dkn_engine.types import FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

GREEDY, PROBABILITY = "greedy_match", "probability"
Neurons = NDArray[np.int32]


def evolvability(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    results: Sequence[FactResult],
    new_facts: Facts | None = None,
    settings: EvolvabilityConfig | None = None,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | bool | None = None,
    **changes: Any,
) -> Table:
    """Fine-tuning on new facts in which D, N, Rnd, all MLP neurons or all weights may change.

    D and N are those of the facts that have a DKN, pooled; Rnd has as many neurons as D in each
    layer, none of which is a knowledge neuron of a known fact. Without any DKN there are no D and
    no Rnd, and N is that of all known facts.

    Args:
        model: a causal decoder in float32, as it was, bit for bit, when the call returns.
        tokenizer: the model's.
        facts, results: of a run; those with status ``ok`` are the old facts.
        new_facts: to be learnt; those that the model answers already are left out. None: the
            packaged made-up facts, ``load_facts("demo-new")``.
        settings: of the trainings; None for the defaults.
        seed: of draws, of the order of facts and of resampling.
        checkpoint: directory of the states of the trainings (not of those that choose a rate).
        progress: True shows a bar, or lines in a log; a callable is called with (steps done, steps
            of all trainings).
        changes: of single settings, by their names.

    Returns:
        Figures ``greedy_match`` and ``probability`` by ``query`` (Q_new, Q_old, Q_au), group
        ``none`` before training; of Rnd the mean over draws, and each draw by itself. Figure
        ``overlap``: shares of D, N and Rnd among the neurons that training of ``mlp`` and ``all``
        changed most, beside chance.

    Raises:
        UserError: no fact is known, none is new, a setting is not allowed, or a checkpoint is of
            another training.
        FactError: a new fact that cannot be encoded.
    """
    settings = EvolvabilityConfig.of(settings, **changes)
    layout = decoder_layout(model, "evolvability")
    groups = neuron_groups(fact_list(facts), results, layout.widths, n_random=0, seed=seed)
    sets = _sets(groups, layout.widths, settings.n_random, seed)
    asked = Asked(model, tokenizer, new_facts, [g.fact for g in groups], settings.n_rephrased)
    with showing(progress, "step") as tell:
        steps = _Steps(_n_steps(settings, sets), tell)
        whole = (model, tokenizer, asked.new)
        how: dict[str, Any] = {
            "stop_loss": settings.stop_loss,
            "batch_size": settings.batch_size,
            "seed": seed,
            "progress": steps,
        }
        trials = Trials(settings, partial(Trained.of, model, asked))
        choose = partial(loss_by_rate, *whole, steps=settings.rate_steps, **how)
        rates, losses = _choose_rates(settings, choose, sets, trials)
        before = asked.ask(model)
        train = partial(finetuned, *whole, steps=settings.steps, **how)
        skip = partial(steps, settings.steps, settings.steps)
        trained = dict(_trained(train, skip, sets, rates, trials, checkpoint))
    return tabulate(
        "evolvability",
        _samples({"none": before, **{name: t.answers for name, t in trained.items()}}, sets),
        seed=seed,
        others=_overlaps(sets, trained, settings),
        settings={
            **settings.to_dict(),
            "lr": rates,
            "loss_by_rate": losses,
            "steps_taken": {name: t.n_steps for name, t in trained.items()},
            "facts": asked.counts(),
            "neurons": {name: len(neurons) for name, neurons in sets.compared.items()},
        },
        notes=_notes(sets, asked, settings.n_random),
    )


def _trained(
    train: Callable[..., AbstractContextManager[FineTuning]],
    skip: Callable[[], None],
    sets: _Sets,
    rates: Mapping[str, float],
    trials: Trials,
    checkpoint: str | Path | None,
) -> Iterator[tuple[str, Trained]]:
    """What comes of the training of each set; ``skip`` is told of one that a trial has done."""
    for name, trainable in sets.trained.items():
        rate = rates[_kind(name)]
        found = trials.finished(trainable, rate)
        if found is None:
            where = None if checkpoint is None else local_path(checkpoint) / name.replace(" ", "-")
            with train(trainable=trainable, lr=rate, checkpoint=where) as tuning:
                found = trials.look(tuning, trainable)
        else:
            skip()
        yield name, found


@dataclass(frozen=True, eq=False)
class _Sets:
    """What may change.

    Attributes:
        compared: neurons of D (if there are any) and N.
        draws: of Rnd.
        probes: for each kind of set what a learning rate is chosen on: another draw.
        n_facts: facts that ``compared`` is pooled over.
    """

    compared: dict[str, Neurons]
    draws: tuple[Neurons, ...]
    probes: dict[str, Trainable]
    n_facts: int

    @property
    def trained(self) -> dict[str, Trainable]:
        """Everything, by the name of its training."""
        rnd = {f"Rnd {i + 1}": draw for i, draw in enumerate(self.draws)}
        return {**self.compared, **rnd, "mlp": "mlp", "all": "all"}


def _sets(groups: Sequence[NeuronGroups], widths: Sequence[int], n_random: int, seed: int) -> _Sets:
    if not groups:
        raise UserError("results must hold a fact that the model knows; got none")
    located = union([g.n for g in groups])
    pooled = list(with_dkn(groups)) or list(groups)
    d, n = union([g.d for g in pooled]), union([g.n for g in pooled])
    compared = {"D": d, "N": n} if len(d) else {"N": n}

    def draw(matched: Neurons, *names: str) -> Neurons:
        rng = generator(seed, "evolvability", *names)
        return sort_neurons(random_sets([matched], located, widths, rng)[0])

    draws = tuple(draw(d, "Rnd", str(i)) for i in range(n_random)) if len(d) else ()
    probes = {name: draw(neurons, "probe", name) for name, neurons in compared.items()}
    return _Sets(compared, draws, {**probes, "whole": "all"}, len(pooled))


def _kind(name: str) -> str:
    """Which learning rate a training has."""
    if name in {"mlp", "all"}:
        return "whole"
    return "N" if name == "N" else "D"


class _Steps:
    """Progress over several trainings, each of which ends with all of its steps."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._before = total, progress, 0

    def __call__(self, done: int, steps: int) -> None:
        if self._progress is not None:
            self._progress(self._before + done, self._total)
        if done == steps:
            self._before += steps


def _n_steps(settings: EvolvabilityConfig, sets: _Sets) -> int:
    """Steps of all trainings, those that choose learning rates included."""
    n_tried = sum(len(settings.rates[kind]) for kind in sets.probes) if settings.lr is None else 0
    return len(sets.trained) * settings.steps + n_tried * settings.rate_steps


def _choose_rates(
    settings: EvolvabilityConfig,
    losses_of: Callable[..., dict[float, float]],
    sets: _Sets,
    trials: Trials,
) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
    """The rate of each kind of set, and the losses that decided; None where one diverged."""
    if isinstance(settings.lr, Mapping):
        return dict(settings.lr), {}
    if settings.lr is not None:
        return dict.fromkeys(sets.probes, settings.lr), {}
    losses = {
        kind: losses_of(probe, settings.rates[kind], see=partial(trials.see, probe))
        for kind, probe in sets.probes.items()
    }
    return {kind: best_rate(tried, settings.stop_loss) for kind, tried in losses.items()}, {
        kind: {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in tried.items()}
        for kind, tried in losses.items()
    }


_Part = tuple[str, Sequence[Answer], Conditions]  # of the samples


def _samples(answers: Mapping[str, Answer], sets: _Sets) -> Iterator[Sample]:
    """Every group's values, Rnd as the mean of its draws; then the draws one by one."""
    draws = [answers[name] for name in answers if name.startswith("Rnd ")]
    groups = ["none", *sets.compared, *(["Rnd"] if draws else []), "mlp", "all"]
    means: list[_Part] = [
        (group, draws if group == "Rnd" else [answers[group]], ()) for group in groups
    ]
    singles: list[_Part] = [("Rnd", [a], (("draw", str(i)),)) for i, a in enumerate(draws, start=1)]
    for parts, (i, figure), query in product(
        (means, singles), enumerate((GREEDY, PROBABILITY)), (Q_NEW, Q_OLD, Q_AU)
    ):
        for group, measured, draw in parts:
            for fact in measured[0][query]:
                value = float(np.mean([a[query][fact][i] for a in measured]))
                yield Sample(fact, group, figure, value, (("query", query), *draw))


def _overlaps(
    sets: _Sets,
    trained: Mapping[str, Trained],
    settings: EvolvabilityConfig,
) -> Iterator[Row | Comparison]:
    """Shares of the compared sets among the neurons that each whole training changed most."""
    changes = {name: t.change for name, t in trained.items() if t.change is not None}
    for of_whole, change in changes.items():
        for name, target in targets(change, sets.compared, settings.shares, settings.threshold):
            where = (("trained", of_whole), ("changed", name))
            among = np.count_nonzero(~np.isnan(change), axis=1)
            for parts in overlap_rows(sets.compared, sets.draws, target, where, among):
                yield from parts


def _notes(sets: _Sets, asked: Asked, n_random: int) -> Iterator[str]:
    which = "with a DKN" if "D" in sets.compared else "that are known, none of which has a DKN"
    yield f"D, N and Rnd are pooled over {sets.n_facts} facts {which}."
    yield (
        f"Every set is trained once, Rnd in {n_random} draws: intervals are over facts, and do not "
        "hold the scatter between trainings."
    )
    yield (
        "Overlap: n counts neurons; the interval of chance is that of random sets, the interval of "
        "Rnd that of its mean over draws, if they are six or more, and p-values are exact."
    )
    if "D" in sets.compared:
        sizes = " and ".join(f"{name} {len(s)}" for name, s in sets.compared.items())
        yield f"{sizes} neurons: what sets D and N apart may be their size."
    if asked.n_known:
        yield f"{asked.n_known} new facts were answered before training and are left out."
    if asked.n_spoilt:
        yield (
            f"{asked.n_spoilt} new facts are left out, to which the model gives no finite "
            "probability."
        )
    if asked.n_unusable:
        yield (
            f"{asked.n_unusable} rephrased prompts cannot be encoded, or have no finite "
            "probability, and are left out."
        )
