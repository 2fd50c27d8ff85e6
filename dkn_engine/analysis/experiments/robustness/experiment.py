"""Robustness: what perturbed queries and changed neurons do to the answers of known facts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.config import RobustnessConfig
from dkn_engine.analysis.experiments.robustness.perturb import KINDS
from dkn_engine.analysis.experiments.robustness.queries import (
    CLEAN,
    PERTURBED,
    Queries,
    Query,
    columns,
)
from dkn_engine.analysis.experiments.robustness.treatments import Treatment, Trial, treatments
from dkn_engine.analysis.neuron_groups import NeuronGroups, neuron_groups, with_dkn
from dkn_engine.config import Config, Positions
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, suppress
from dkn_engine.degeneracy.reference_facts import Reference, build_reference
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.models.layout import Layout, find_layout
from dkn_engine.run.progress import showing
from dkn_engine.run.stages import filling_facts
from dkn_engine.seeds import generator
from dkn_engine.statistics.table import Conditions, Sample, Table, tabulate
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

UNRELATED = "unrelated"
GROUPS = ("D", "N", "Rnd", "none")


def robustness(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    results: Sequence[FactResult],
    settings: RobustnessConfig | None = None,
    *,
    config: Config | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **changes: Any,
) -> Table:
    """Answers of known facts under perturbations, suppression and enhancement.

    Figures, one value a fact, the mean over a random group's draws and over queries of a kind:

    - ``drop``: (before - after) / before of the answer's probability, the same query before;
    - ``log_drop``: log p before - log p after, of the same query;
    - ``drop_from_clean``: as ``drop``, but before is the unchanged model on the clean query;
    - ``probability``, ``exact_match`` (greedy decoding gives the answer's tokens): after;
    - ``recovered``: of the perturbed queries that the unchanged model gets wrong, the share that
      it gets right with neurons enhanced;
    - ``n_neurons``: size of D and N.

    Conditions: ``action``, ``value`` and ``on`` as in :class:`Treatment`, and ``query``: ``clean``,
    ``perturbed`` (all perturbations), each kind of perturbation, ``paraphrase`` (the first that
    was not used for finding), ``unrelated`` (the fact's D suppressed while other facts are asked).
    D is compared with Rnd and N by ``log_drop`` on clean and perturbed queries, mean activations
    left out: the more tests, the less any of them can find.

    Args:
        model, tokenizer: as in :func:`dkn_engine.find_dkns`; the model is left as it was found.
        facts, results: of a run, in the same order.
        settings: what is done; None for the defaults.
        config: of the run; None for the defaults.
        seed: of perturbations, random neurons and resampling.
        progress: True shows a bar, or lines in a log; a callable is called with (facts done, known
            facts).
        changes: of single settings, by their names.

    Raises:
        UserError: a setting has a value that is not allowed, results are not those of the facts,
            or none of them is known.

    Source:
        Chen et al., Cracking Factual Knowledge (arXiv 2402.13731), section 4.
    """
    settings = RobustnessConfig.of(settings, **changes)
    config = Config(seed=seed) if config is None else config
    facts = fact_list(facts, config.facts)
    todo, layout = treatments(settings.values, settings.factors, settings.on), find_layout(model)
    ask = Queries(model, tokenizer, config, settings, seed)
    groups = neuron_groups(facts, results, layout.widths, n_random=settings.n_random, seed=seed)
    if not groups:
        raise UserError(f"the model knows none of the {len(facts)} facts: nothing to measure")
    refer = _References(model, tokenizer, layout, facts, config)
    means = refer("answer").means if "mean" in settings.values else None
    trial_of = partial(Trial, model, layout, means=means, backend=config.attribution.backend)
    with showing(progress) as tell:
        samples, wrong, left_out = _of_facts(groups, ask, trial_of, todo, tell)
    groups = [one for one in groups if one.fact.id not in left_out]
    if not groups:
        raise next(iter(left_out.values()))
    if settings.n_unrelated:
        samples += _elsewhere(groups, todo, refer, settings.n_unrelated, seed)
    return tabulate(
        "robustness",
        sorted(samples, key=lambda s: GROUPS.index(s.group)),
        seed=seed,
        tested=_is_tested,
        settings=settings.to_dict(),
        notes=(
            *_notes(len(facts), groups, wrong, left_out),
            *_filled(refer.made.values()),
            *ask.notes(),
        ),
    )


class _References:
    """The run's reference facts by where edits act, read once, when they are first asked for."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout,
        facts: Sequence[Fact],
        config: Config,
    ) -> None:
        self._read = partial(_reference, model, tokenizer, layout, facts, config)
        self.made: dict[Positions, Reference] = {}

    def __call__(self, where: Positions) -> Reference:
        if not self.made:
            self.made["answer"] = self._read()
        if where not in self.made:
            there = self.made["answer"].prompts.acting_at(where)
            self.made[where] = dataclasses.replace(self.made["answer"], prompts=there)
        return self.made[where]


def _notes(
    n_facts: int,
    groups: Sequence[NeuronGroups],
    wrong: Sequence[bool],
    left_out: Mapping[str, FactError],
) -> Iterator[str]:
    yield (
        f"{len(groups)} of {n_facts} facts are known to the model; N and none are measured on "
        f"those, D and Rnd on the {len(list(with_dkn(groups)))} of them that have a DKN."
    )
    if left_out:
        first = next(iter(left_out.values()))
        yield f"{len(left_out)} more are known, but cannot be asked and are left out: {first}."
    yield f"The unchanged model gets {sum(wrong)} of {len(wrong)} perturbed queries wrong."
    yield (
        "Suppression on weights is suppression of all positions; it is measured once and listed "
        "under both."
    )
    yield "Only log_drop on clean and perturbed queries is tested, without mean activations."


def _filled(made: Iterable[Reference]) -> Iterator[str]:
    """Says so where facts that were not given are part of what was measured."""
    first = next(iter(made), None)  # All are of the same facts.
    if first is not None and first.n_filled:
        yield (
            f"Mean activations and unrelated facts come from {len(first.facts)} facts, of which "
            f"{first.n_filled} are packaged English ones: too few of the given can be used."
        )


def _reference(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    facts: Sequence[Fact],
    config: Config,
) -> Reference:
    """Reference facts of the run, on which edits act where an answer token is predicted."""
    there = dataclasses.replace(config.filter, positions="answer")
    config = dataclasses.replace(config, filter=there)
    found = build_reference(model, tokenizer, layout, facts, config, filling_facts(config))
    if found is None:
        raise UserError("mean activations and unrelated facts need one that can be encoded")
    return found


def _sets(one: NeuronGroups) -> tuple[list[str], list[NDArray[np.int32]]]:
    """Names of groups and their neurons; Rnd once a draw."""
    if not one.has_dkn:
        return ["N"], [one.n]
    return ["D", "N", *("Rnd" for _ in one.rnd)], [one.d, one.n, *one.rnd]


def _of_facts(
    groups: Sequence[NeuronGroups],
    ask: Queries,
    trial_of: Callable[..., Trial],
    todo: Sequence[Treatment],
    tell: Progress | None,
) -> tuple[list[Sample], list[bool], dict[str, FactError]]:
    """:func:`_of_fact` of all facts, and those that are left out, each with the reason."""
    samples: list[Sample] = []
    wrong: list[bool] = []
    left_out: dict[str, FactError] = {}
    for i, one in enumerate(groups):
        try:
            own, own_wrong = _of_fact(one, ask, partial(trial_of, warn=i == 0), todo)
        except FactError as error:  # A changed model's own text outgrows its context.
            left_out[one.fact.id] = error
        else:
            samples += own
            wrong += own_wrong
        if tell is not None:
            tell(i + 1, len(groups))
    return samples, wrong, left_out


def _of_fact(
    one: NeuronGroups, ask: Queries, trial_of: Callable[..., Trial], todo: Sequence[Treatment]
) -> tuple[list[Sample], list[bool]]:
    """A fact's samples, and which perturbed queries the unchanged model gets wrong."""
    queries, (names, sets) = ask.of(one), _sets(one)
    trial = trial_of([q.sequence for q in queries], sets)
    samples = [s for t in todo for s in _samples(one.fact.id, queries, names, trial, t)]
    sizes = {"N": one.n, "D": one.d} if one.has_dkn else {"N": one.n}
    samples += [Sample(one.fact.id, g, "n_neurons", len(s)) for g, s in sizes.items()]
    perturbed = columns(queries).get(PERTURBED, [])
    return samples, (~trial.clean.exact[0, perturbed]).tolist()


def _samples(
    fact_id: str,
    queries: Sequence[Query],
    names: Sequence[str],
    trial: Trial,
    treatment: Treatment,
) -> Iterator[Sample]:
    clean, after = trial.clean, trial.outcome(treatment)
    before = clean.probability[0]
    for kind, at in columns(queries).items():
        conditions = (*treatment.conditions, ("query", kind))
        perturbed = kind == PERTURBED or kind in KINDS
        for group in (*dict.fromkeys(names), "none"):
            rows = [i for i, name in enumerate(names) if name == group]
            some = clean if group == "none" else after
            p = some.probability[rows or [0]][:, at]
            exact = some.exact[rows or [0]][:, at]
            figures = {"probability": p.mean(), "exact_match": exact.mean()}
            if group != "none":
                # What a change of nothing does is 0 by definition.
                with np.errstate(divide="ignore", invalid="ignore"):
                    figures["drop"] = (1 - p / before[at]).mean()
                    figures["log_drop"] = (np.log(before[at]) - np.log(p)).mean()
            if perturbed:
                figures["drop_from_clean"] = (1 - p / before[0]).mean()
            wrong = ~clean.exact[0, at]
            if kind == PERTURBED and treatment.action == "enhance" and wrong.any():
                figures["recovered"] = exact[:, wrong].mean()
            for figure, value in figures.items():
                yield Sample(fact_id, group, figure, float(value), conditions)


def _elsewhere(
    groups: Sequence[NeuronGroups],
    todo: Sequence[Treatment],
    refer: Callable[[Positions], Reference],
    n: int,
    seed: int,
) -> Iterator[Sample]:
    """Other facts' answers with each fact's D set to zero; the mean over those facts."""
    listed = [t for t in todo if (t.action, t.value) == ("suppress", "zero")]
    for where in dict.fromkeys(t.as_measured.on for t in listed):
        assert where != "weights"
        there = refer(where)
        for one in with_dkn(groups):
            others = there.unrelated(one.fact, n, generator(seed, "unrelated", one.fact.id))
            if not others:
                continue
            try:
                p = there.prompts.probabilities([suppress(one.d)], others)[0]
            except FactError:
                others, p = _that_fit(there.prompts, suppress(one.d), others)
            if not others:
                continue
            before = there.prompts.probability[others]
            for t in listed:
                if t.as_measured.on == where:
                    conditions = (*t.conditions, ("query", UNRELATED))
                    drop, logs = (1 - p / before).mean(), np.log(before) - np.log(p)
                    yield Sample(one.fact.id, "D", "drop", float(drop), conditions)
                    yield Sample(one.fact.id, "D", "log_drop", float(logs.mean()), conditions)


def _that_fit(
    prompts: Prompts, edit: Edit, sequences: Sequence[int]
) -> tuple[list[int], NDArray[np.float64]]:
    """The sequences that the edited model's own text does not outgrow, and their probabilities."""
    found: dict[int, float] = {}
    for sequence in sequences:
        with contextlib.suppress(FactError):
            found[sequence] = float(prompts.probabilities([edit], [sequence])[0, 0])
    return list(found), np.array([*found.values()])


def _is_tested(figure: str, conditions: Conditions) -> bool:
    of = dict(conditions)
    twice = of.get("action") == "suppress" and of.get("on") == "weights"
    shown = of.get("value") != "mean" and of.get("query") in {CLEAN, PERTURBED}
    return figure == "log_drop" and shown and not twice
