"""NTC beside other clusterers: the same neurons, the same filter, the same facts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.config import ClusterersConfig
from dkn_engine.analysis.light_runs import without_controls
from dkn_engine.config import Config
from dkn_engine.degeneracy import choices
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.controls import lattice_of
from dkn_engine.degeneracy.covering_choice import covering_choice
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.functional_filter import lattice_masks
from dkn_engine.degeneracy.lattice import degenerate_family, drops
from dkn_engine.degeneracy.reference_facts import build_reference
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.models.masked_answers import config_of
from dkn_engine.run.pipeline import iter_dkns
from dkn_engine.run.progress import showing
from dkn_engine.run.stages import filling_facts
from dkn_engine.seeds import generator
from dkn_engine.statistics.intervals import FEWEST, Estimate, mean_estimate
from dkn_engine.statistics.table import estimate
from dkn_engine.topology.other_clusterers import CLUSTERERS, Located, cluster
from dkn_engine.types import Component, Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

BASIS, SEARCH = "ntc", "covering"
METHODS = (*CLUSTERERS, SEARCH)
LABELS = {
    "ntc": "NTC",
    "dbscan": "DBSCAN",
    "hdbscan": "HDBSCAN",
    "hierarchical": "hierarchical",
    "kmeans": "k-means",
    "pairs": "AMIG pairs",
    "random": "random sets",
    "covering": "covering groups",
}
FIGURES = {
    "degenerate": "share degenerate",
    "partial_drop": "partial drop",
    "full_drop": "full drop",
    "gap": "full minus partial drop",
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one clusterer gives for one fact; means over the draws of ``random``.

    Attributes:
        fact_id, method: of what.
        n_components, n_neurons: candidates, and neurons in them.
        degenerate: 1 if a degenerate family was found, 0 if not.
        partial_drop, full_drop, redundancy: of all candidates; NaN for fewer than two.
        dkn_size: components of the degenerate family; NaN without one.
        dkn_partial_drop, dkn_full_drop: of the degenerate family; NaN without one.
    """

    fact_id: str
    method: str
    n_components: float
    n_neurons: float
    degenerate: float
    partial_drop: float
    full_drop: float
    redundancy: float
    dkn_size: float
    dkn_partial_drop: float
    dkn_full_drop: float

    @property
    def gap(self) -> float:
        """Full drop minus partial drop of all candidates."""
        return self.full_drop - self.partial_drop


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One clusterer over all known facts, with 95 % intervals over facts.

    Attributes:
        method: name in ``METHODS``: :data:`dkn_engine.topology.other_clusterers.CLUSTERERS`, and
            ``covering``, the search of :mod:`dkn_engine.degeneracy.covering_groups`.
        control: whether it is the control (``random``).
        n_facts: facts that the model knows.
        n_with_two: facts with at least two candidate components, without which there is no
            family (of ``random``: on average over draws at least two).
        degenerate: share of all known facts with a degenerate family.
        components, neurons: candidates a fact, and neurons in them.
        partial_drop, full_drop, gap, redundancy: of all candidates, over facts with two or more.
        dkn_partial_drop, dkn_full_drop: over the facts with a degenerate family.
    """

    method: str
    control: bool
    n_facts: int
    n_with_two: int
    degenerate: Estimate
    components: Estimate
    neurons: Estimate
    partial_drop: Estimate
    full_drop: Estimate
    gap: Estimate
    redundancy: Estimate
    dkn_partial_drop: Estimate
    dkn_full_drop: Estimate


@dataclass(frozen=True, slots=True)
class Difference:
    """A clusterer's figure minus NTC's, paired over the facts that have both.

    Attributes:
        method, figure: of what; figures are the keys of :data:`FIGURES`.
        estimate: mean difference with its 95 % interval.
        enough: whether there are at least six pairs, without which nothing is said.
        larger_than_interval: whether the interval leaves out 0; of equal differences, whether they
            are not 0.
    """

    method: str
    figure: str
    estimate: Estimate
    enough: bool
    larger_than_interval: bool


@dataclass(frozen=True, slots=True)
class ClustererComparison:
    """The comparison's tables.

    Attributes:
        n_facts: facts given; ``n_known`` of them the model knows, ``n_unusable`` could not be
            asked (they cannot be encoded, the model gives no finite probability, or a suppressed
            model's own text outgrows its context).
        methods: one summary a clusterer, NTC first.
        differences: every other clusterer minus NTC, figure by figure.
        measurements: one a known fact and clusterer.
    """

    n_facts: int
    n_known: int
    n_unusable: int
    methods: tuple[MethodSummary, ...]
    differences: tuple[Difference, ...]
    measurements: tuple[Measurement, ...]


def compare_clusterers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    config: Config | None = None,
    settings: ClusterersConfig | None = None,
    *,
    out: str | Path | None = None,
    strict: bool = False,
    progress: Progress | bool | None = None,
    **changes: Any,
) -> ClustererComparison:
    """Every clusterer's components over the facts the model knows, by one functional filter.

    A fact's neurons are attributed once and shared. Each clusterer's candidates go through the
    subset lattice and the search for a degenerate family with the same thresholds.

    Args:
        model, tokenizer, facts: as in :func:`dkn_engine.iter_dkns`.
        config: all choices; the defaults if None. The filter must be ``degenerate``.
        settings: which clusterers; the defaults if None.
        out: run directory for the attribution, created or continued; None keeps nothing.
        strict: refuse facts that cannot be used instead of leaving them out.
        progress: True shows a bar, or lines in a log; a callable is called with (facts done, facts)
            after every fact.
        changes: of single settings, by their names.

    Raises:
        UserError: an unknown method, another filter, no draw, no fact that the model knows, or
            with ``strict`` one that cannot be used; and what :func:`dkn_engine.iter_dkns` raises.

    Source:
        Chen et al., Cracking Factual Knowledge (arXiv 2402.13731), the comparison of
        acquisition methods.
    """
    config = config_of(model, config or Config())
    facts = fact_list(facts, config.facts)
    settings = ClusterersConfig.of(settings, **changes)
    names = require_comparable(config, settings.methods)
    bench = _Bench(model, tokenizer, facts, config, settings)
    found: list[Measurement] = []
    results = iter_dkns(model, tokenizer, facts, without_controls(config), out)
    known = unusable = 0
    with showing(progress) as tell:
        for i, (fact, result) in enumerate(zip(facts, results, strict=True)):
            measured, reason = _measured(bench, fact, result, names)
            found += measured
            known += len(measured) > 0
            if reason is not None:
                unusable += 1
                if strict:
                    raise UserError(f"fact {fact.id!r} cannot be used: {reason}")
            if tell is not None:
                tell(i + 1, len(facts))
    if not known:
        raise UserError(f"the model knows none of the {len(facts)} facts: nothing to compare")
    return compare_measurements(found, n_facts=len(facts), n_unusable=unusable)


def _measured(
    bench: _Bench, fact: Fact, result: FactResult, names: Sequence[str]
) -> tuple[list[Measurement], str | None]:
    """One measurement a clusterer of a known fact; why there is none of one that cannot be used."""
    if result.status != "ok":
        return [], None if result.status == "not_known" else result.reason
    try:
        return bench.measure(fact, result, names), None
    except FactError as error:  # A model's own text outgrows its context under some suppression.
        return [], str(error)


def require_comparable(config: Config, methods: Sequence[str] | None = None) -> list[str]:
    """The clusterers to be compared, NTC first.

    Raises:
        UserError: an unknown method, or one that does not fit; another filter than
            ``degenerate``, another clustering than ``ntc``, or candidates or connections that are
            measured in the model.
    """
    topology = config.topology
    for name, value, expected in (
        ("topology.clustering", topology.clustering, "ntc"),
        ("topology.connections", topology.connections, "adjacent"),
        ("topology.by_activation", topology.by_activation, False),
        ("filter.method", config.filter.method, "degenerate"),
    ):
        if value != expected:
            raise UserError(f"{name} must be {expected!r} to compare clusterers; got {value!r}")
    if topology.select == "tree":
        raise UserError("topology.select must be no 'tree' to compare clusterers; got 'tree'")
    for name in methods or ():
        if name not in METHODS:
            raise UserError(f"methods must be among {', '.join(METHODS)}; got {name!r}")
    fixed = config.facts.teacher_forced or config.facts.continuation == "clean"
    if methods is not None and SEARCH in methods and not fixed:
        raise UserError(
            "facts.continuation must be 'clean' for the method 'covering', whose gradients need "
            f"fixed tokens; got {config.facts.continuation!r}"
        )
    wanted = [n for n in METHODS if fixed or n != SEARCH] if methods is None else methods
    return [n for n in METHODS if n == BASIS or n in wanted]


class _Bench:
    """Measures clusterers on one fact after another."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        config: Config,
        settings: ClusterersConfig,
    ) -> None:
        self.config, self.layout = config, find_layout(model)
        self._encode = partial(encode_sequence, model, tokenizer, config=config.facts)
        self._read = partial(
            Prompts,
            model,
            self.layout,
            positions=config.filter.positions,
            backend=config.attribution.backend,
            warn=False,  # The run itself has said it.
        )
        self.options, self.n_draws = settings.options, settings.n_draws
        self._means: NDArray[np.float64] | None = None
        if config.filter.suppress_value == "mean":
            others = filling_facts(config)
            reference = build_reference(model, tokenizer, self.layout, facts, config, others)
            if reference is None:
                raise UserError(
                    "suppress_value='mean' needs a fact of finite activations; got none"
                )
            self._means = reference.means

    def measure(self, fact: Fact, result: FactResult, names: Sequence[str]) -> list[Measurement]:
        """One measurement a clusterer."""
        prompts = self._read([self._encode(fact.prompt, result.answer, fact_id=fact.id)])
        config, means = self.config, self._means
        located = Located(
            result.neurons,
            *connection_rows(self.layout, result.neurons, config.topology),
            config.topology,
            self.options,
            probability=lambda sets: prompts.probabilities([suppress(s, means) for s in sets])[
                :, 0
            ],
            min_alone=config.filter.min_alone,
            max_none=config.filter.max_none,
        )
        found = []
        for name in names:
            if name == SEARCH:
                one = choices.Located(fact, 0, result)
                (searched,) = together([covering_choice(prompts, one, config, means)])
                if isinstance(searched, FactError):
                    raise searched
                found.append(self._one(fact.id, name, prompts, searched.components))
                continue
            draws = self.n_draws if name == "random" else 1
            seeds = generator(config.seed, fact.id, name).integers(1 << 32, size=draws)
            clustered = (
                cluster(name, dataclasses.replace(located, seed=s)) for s in seeds.tolist()
            )
            found.append(_average([self._one(fact.id, name, prompts, c) for c in clustered]))
        return found

    def _one(
        self, fact_id: str, name: str, prompts: Prompts, components: Sequence[Component]
    ) -> Measurement:
        config, q = self.config.filter, len(components)
        masks = lattice_masks(q, config, self.config.seed, fact_id)
        lattice = lattice_of(prompts, 0, [c.neurons for c in components], masks, self._means)
        # Only NTC's components have a persistence; ties of the others go to the first ones.
        persistence = [0.0 if math.isnan(c.persistence) else c.persistence for c in components]
        family = degenerate_family(lattice, persistence, config.min_alone, config.max_none)
        own = drops(lattice)
        dkn = drops(lattice.restrict(family))
        nan = math.nan
        return Measurement(
            fact_id=fact_id,
            method=name,
            n_components=q,
            n_neurons=sum(len(c.neurons) for c in components),
            degenerate=float(len(family) >= 2),
            partial_drop=own.partial_drop if q >= 2 else nan,
            full_drop=own.full_drop if q >= 2 else nan,
            redundancy=own.redundancy if q >= 2 else nan,
            dkn_size=len(family) if family else nan,
            dkn_partial_drop=dkn.partial_drop,
            dkn_full_drop=dkn.full_drop,
        )


def _average(measured: Sequence[Measurement]) -> Measurement:
    """Means over draws of the same fact, of what is defined in each."""
    if len(measured) == 1:
        return measured[0]
    means: dict[str, Any] = {}
    for f in dataclasses.fields(Measurement):
        if f.name not in {"fact_id", "method"}:
            values = [v for m in measured if not math.isnan(v := getattr(m, f.name))]
            means[f.name] = math.fsum(values) / len(values) if values else math.nan
    return dataclasses.replace(measured[0], **means)


def compare_measurements(
    measurements: Iterable[Measurement], *, n_facts: int, n_unusable: int = 0
) -> ClustererComparison:
    """Summaries and paired differences of measurements; NTC's must be among them.

    Args:
        measurements: of any clusterers and facts, at most one of each.
        n_facts: facts that were given, known or not; ``n_unusable`` of them could not be asked.

    Raises:
        ValueError: no measurement of NTC.
    """
    measurements = tuple(measurements)
    by_method: dict[str, dict[str, Measurement]] = {}
    for m in measurements:
        by_method.setdefault(m.method, {})[m.fact_id] = m
    if BASIS not in by_method:
        raise ValueError(f"measurements must hold those of {BASIS!r}; got {list(by_method)}")
    basis = by_method[BASIS]
    return ClustererComparison(
        n_facts=n_facts,
        n_known=len(basis),
        n_unusable=n_unusable,
        methods=tuple(_summary(name, list(f.values())) for name, f in by_method.items()),
        differences=tuple(
            _difference(name, figure, by_fact, basis)
            for name, by_fact in by_method.items()
            if name != BASIS
            for figure in FIGURES
        ),
        measurements=measurements,
    )


_MEANS = ("partial_drop", "full_drop", "gap", "redundancy", "dkn_partial_drop", "dkn_full_drop")


def _summary(name: str, measured: Sequence[Measurement]) -> MethodSummary:
    figures = {"components": "n_components", "neurons": "n_neurons"} | {m: m for m in _MEANS}
    return MethodSummary(
        method=name,
        control=name == "random",
        n_facts=len(measured),
        n_with_two=sum(m.n_components >= 2 for m in measured),
        degenerate=estimate(m.degenerate for m in measured),
        **{to: mean_estimate(getattr(m, of) for m in measured) for to, of in figures.items()},
    )


def _difference(
    name: str,
    figure: str,
    by_fact: dict[str, Measurement],
    basis: dict[str, Measurement],
) -> Difference:
    difference = mean_estimate(
        getattr(m, figure) - getattr(basis[fact], figure) for fact, m in by_fact.items()
    )
    enough = difference.n >= FEWEST
    low, high = difference.bounds
    return Difference(name, figure, difference, enough, enough and (low > 0 or high < 0))
