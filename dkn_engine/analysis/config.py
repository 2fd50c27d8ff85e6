"""The analyses by name, and what each can be asked for: sections of settings, as those of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Literal, NamedTuple, get_args

from dkn_engine.errors import UserError
from dkn_engine.files.sections import Section, count
from dkn_engine.topology.other_clusterers import ClustererOptions

On = Literal["answer", "all", "weights"]
Value = Literal["zero", "mean"]
Kind = Literal["replace", "add", "delete"]
Form = Literal["short", "paraphrase", "long"]
# Kinds of trained sets: the fewer weights, the larger the steps they need. Rnd goes with D.
TRAINED = ("D", "N", "whole")
RATES: Mapping[str, tuple[float, ...]] = {
    "D": (3e-3, 1e-2, 3e-2),
    "N": (1e-3, 3e-3, 1e-2),
    "whole": (3e-5, 1e-4, 3e-4),
}


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(Section):
    """How queries are perturbed, and neurons suppressed and enhanced.

    Attributes:
        n_random: draws of random neurons.
        kinds, per_kind: perturbations, and how many different ones of each kind.
        values: what suppressed activations become.
        factors: of enhancement.
        on: where neurons are changed: activations at the positions that predict the ``answer``, at
            ``all`` positions, or the neurons' ``weights``.
        n_unrelated: other facts on which D is suppressed, at most.
    """

    n_random: int = count(20)
    kinds: tuple[Kind, ...] = get_args(Kind)
    per_kind: int = count(1)
    values: tuple[Value, ...] = get_args(Value)
    factors: tuple[float, ...] = (2.0,)
    on: tuple[On, ...] = get_args(On)
    n_unrelated: int = count(3, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = all(math.isfinite(f) and f not in {0, 1} for f in self.factors)
        self._require(
            "factors",
            ok and len(set(self.factors)) == len(self.factors),
            "different finite numbers other than 0 (suppression) and 1 (nothing)",
        )


@dataclass(frozen=True, kw_only=True)
class FactCheckConfig(Section):
    """How statements are made, scored and told apart.

    Attributes:
        n_random: draws of random neurons.
        queries: forms of the statements.
        n_folds: each is tested with what the others teach.
        relation_share: a relation's neurons are those of more than this share of its facts; None
            for all.
        templates: questions by name, each with ``template``, ``yes`` and ``no``; None for the
            packaged ones.
        tolerance: of adaptive attribution, looser than for finding neurons: means of many need
            less.
    """

    n_random: int = count(20)
    queries: tuple[Form, ...] = get_args(Form)
    n_folds: int = count(5, least=2)
    relation_share: float | None = None
    templates: Mapping[str, Mapping[str, str]] | None = None
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.relation_share is None or 0 <= self.relation_share < 1
        self._require("relation_share", ok, "None or in [0, 1)")
        self._require("tolerance", 0 < self.tolerance < 1, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """How one set of weights is trained.

    Attributes:
        steps: of the optimiser, at most.
        lr: learning rate.
        stop_loss: the first step before which the loss of its facts is this or less is the last;
            None: after all steps.
        batch_size: facts a step, drawn without replacement until all were seen; None: all.
        checkpoint_every: steps from one kept state to the next; the last step's is always kept.
    """

    steps: int = count(MISSING)
    lr: float
    stop_loss: float | None = None
    batch_size: int | None = count(None)
    checkpoint_every: int = count(10)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "stop_loss"):
            value = getattr(self, name)
            self._require(name, value is None or 0 < value < math.inf, "a positive number")


@dataclass(frozen=True, kw_only=True)
class EvolvabilityConfig(Section):
    """How sets of neurons are trained on new facts, and which ones count as changed.

    Attributes:
        n_random: draws of random neurons, each of which is trained.
        steps: of each training, at most.
        stop_loss: a training ends when the loss of the new facts (mean negative log-probability
            of an answer token) is this or less, so that sets are compared at equal learning; None:
            after all steps.
        lr: learning rate, or one for ``D`` (and Rnd), one for ``N`` and one for ``whole`` (all MLP
            neurons, all weights). None: chosen of ``rates`` for each: the smallest with which the
            loss is ``stop_loss`` or less after ``rate_steps`` steps, else that of the lowest loss.
            For D and N it is decided on a further random draw, matched to each by layer, so for no
            set that is compared; for ``whole`` on all weights.
        rates: to be chosen from.
        rate_steps: steps of the trainings that decide.
        batch_size: facts a step; None: all.
        n_rephrased: rephrased prompts asked for each new fact.
        shares, threshold: of all neurons, and of the largest change: which neurons count as
            changed most.
    """

    n_random: int = count(3, least=0)
    steps: int = count(20)
    stop_loss: float | None = 0.1
    lr: float | Mapping[str, float] | None = None
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(RATES))
    rate_steps: int = count(8)
    batch_size: int | None = count(None)
    n_rephrased: int = count(2, least=0)
    shares: tuple[float, ...] = (0.01, 0.05)
    threshold: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.stop_loss is None or self.stop_loss > 0
        self._require("stop_loss", ok, "none or a positive number")
        ok = all(0 <= share <= 1 for share in self.shares)
        self._require("shares", ok, "numbers from 0 to 1")
        self._require("threshold", 0 <= self.threshold <= 1, "from 0 to 1")
        name, given = ("rates", self.rates) if self.lr is None else ("lr", self.lr)
        if isinstance(given, Mapping) and not (set(given) == set(TRAINED) and all(given.values())):
            sets = ", ".join(TRAINED)
            raise UserError(f"{name} must have a value for each of {sets}; got {given}")


@dataclass(frozen=True, kw_only=True)
class ComplexityConfig(Section):
    """The long forms that facts are asked in.

    Attributes:
        forms: names of :func:`dkn_engine.analysis.experiments.complexity.long_forms.known_forms`.
    """

    forms: tuple[str, ...] = ("templated", "paraphrase")


@dataclass(frozen=True, kw_only=True)
class SharingConfig(Section):
    """What components' overlaps are compared with.

    Attributes:
        n_random: draws of random sets; at least 20 are needed.
    """

    n_random: int = count(20)


@dataclass(frozen=True, kw_only=True)
class ClusterersConfig(Section):
    """Which clusterers are compared.

    Attributes:
        methods: names in :data:`dkn_engine.topology.other_clusterers.CLUSTERERS`, and
            ``covering``, the search for groups that cover for one another; all if None; ``ntc`` is
            always there.
        n_draws: of ``random``, averaged.
        options: of the other clusterers.
    """

    methods: tuple[str, ...] | None = None
    n_draws: int = count(5)
    options: ClustererOptions = field(default_factory=ClustererOptions)


class Analysis(NamedTuple):
    """What the suite makes of a run, in words, and the section of its settings."""

    words: str
    section: type[Section]


# A name is also that of the function in ``dkn_engine.analysis``.
ANALYSES = {
    "robustness": Analysis(
        "suppress and enhance neurons under clean and perturbed queries", RobustnessConfig
    ),
    "fact_check": Analysis(
        "tell true statements from false ones by neurons' attributions", FactCheckConfig
    ),
    "evolvability": Analysis(
        "fine-tune on new facts with only some neurons trainable", EvolvabilityConfig
    ),
    "complexity": Analysis(
        "degeneracy of the same facts in short and long texts", ComplexityConfig
    ),
    "sharing": Analysis("how much of a component other facts share", SharingConfig),
}
