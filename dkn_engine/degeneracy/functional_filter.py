"""The functional filter of one fact: from candidate components to its DKN, with controls."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy import controls
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, mask_of, subset_masks
from dkn_engine.degeneracy.reference_facts import Reference, knows
from dkn_engine.degeneracy.released_filter import released_family
from dkn_engine.seeds import generator
from dkn_engine.types import Component, Degeneracy, Drops, Fact

MOST_COMPONENTS = 62  # A mask is a signed 64-bit integer.


def examine(
    prompts: Prompts,
    sequence: int,
    components: Sequence[Component],
    located: NDArray[np.int32],
    fact: Fact,
    config: Config,
    *,
    paraphrases: Prompts | None = None,
    reference: Reference | None = None,
) -> Degeneracy:
    """Evaluate the subset lattice of a fact's candidates and read everything else off it.

    Args:
        prompts: holds the fact as ``sequence``.
        sequence: index of the fact.
        components: candidates, most persistent first, at most 62.
        located: int32 ``[n, 2]``, the fact's knowledge neurons.
        fact: for unrelated facts to be chosen.
        config: its filter, and its seed: every use of random numbers has its own, by the fact's id
            and a name, so that the draws of one control change no other.
        paraphrases: prompts that were not used for finding, for a control.
        reference: for the controls on unrelated facts and with mean activations.
    """
    sets = [c.neurons for c in components]
    masks = lattice_masks(len(sets), config.filter, config.seed, fact.id)
    means = _means(reference, config.filter)
    lattice = controls.lattice_of(prompts, sequence, sets, masks, means)
    dkn = _dkn(lattice, prompts, sequence, components, config.filter)
    members = dkn if len(dkn) >= 2 else tuple(range(len(sets)))
    of_family = drops(lattice.restrict(members))
    degeneracy = Degeneracy(
        components=_described(components, lattice),
        subset_probabilities=lattice.probabilities,
        subset_masks=lattice.masks,
        dkn=dkn,
        partial_drop=of_family.partial_drop,
        full_drop=of_family.full_drop,
        redundancy=of_family.redundancy,
        excess=of_family.excess,
        candidates=drops(lattice) if sets else None,
        rest_suppressed=_rest(prompts, sequence, [sets[i] for i in dkn], located, means),
    )
    if not sets:
        return degeneracy
    family = _Family(fact, [sets[i] for i in members], means, config)
    known = None if paraphrases is None else knows(paraphrases, config.filter)
    measured = {
        "random": family.random(prompts, sequence, located),
        "paraphrases": family.on_paraphrases(paraphrases, known),
        "unrelated": family.on_unrelated(reference),
        "mean_ablation": family.with_means(prompts, sequence, reference),
    }
    return dataclasses.replace(
        degeneracy,
        controls={name: d for name, d in measured.items() if d is not None},
        n_paraphrases_not_known=None if known is None else int((~known).sum()),
        n_reference=None if reference is None else len(reference.facts),
        n_reference_packaged=None if reference is None else reference.n_filled,
    )


def _means(reference: Reference | None, config: FilterConfig) -> NDArray[np.float64] | None:
    """What suppressed activations become; None for zero."""
    if config.suppress_value != "mean":
        return None
    if reference is None or reference.means is None:
        raise ValueError("reference must be given with suppress_value='mean'; got None")
    return reference.means


def _dkn(
    lattice: Lattice,
    prompts: Prompts,
    sequence: int,
    components: Sequence[Component],
    config: FilterConfig,
) -> tuple[int, ...]:
    """The components that the filter keeps, ascending indices."""
    if config.method == "released":
        return released_family(
            prompts.model,
            prompts.layout,
            prompts.sequences[sequence],
            components,
            config.released_max_drop,
        )
    persistence = [c.persistence for c in components]
    return degenerate_family(lattice, persistence, config.min_alone, config.max_none)


def lattice_masks(q: int, config: FilterConfig, seed: int, fact_id: str) -> NDArray[np.int64]:
    """The subsets of a fact's ``q`` candidates that are evaluated; see :func:`subset_masks`."""
    rng = generator(seed, fact_id, "lattice")
    return subset_masks(q, config.exact_limit, config.n_samples, rng)


def _described(components: Sequence[Component], lattice: Lattice) -> tuple[Component, ...]:
    """The components with what the lattice says about each."""
    full, clean = mask_of(range(len(components))), lattice.at(0)
    return tuple(
        dataclasses.replace(
            c,
            probability_alone=lattice.at(full ^ 1 << i),
            drop_if_suppressed=1 - lattice.at(1 << i) / clean if clean > 0 else float("nan"),
        )
        for i, c in enumerate(components)
    )


def _rest(
    prompts: Prompts,
    sequence: int,
    family: controls.Sets,
    located: NDArray[np.int32],
    means: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Probabilities ``[members + 1]`` of each member alone, then of none, all KNs else off."""
    if not family:
        return np.empty(0)
    kept = [{(int(l), int(i)) for l, i in members} for members in family] + [set()]
    edits = []
    for members in kept:
        off = [n for n in located if (int(n[0]), int(n[1])) not in members]
        edits.append(suppress(np.array(off, dtype=np.int32).reshape(-1, 2), means))
    return prompts.probabilities(edits, [sequence])[:, 0]


@dataclass(frozen=True)
class _Family:
    """The DKN, or all candidates, of a fact, to be suppressed in its controls.

    Attributes:
        fact: whose they are.
        sets: of neurons.
        means: what suppressed activations become; None for zero.
        config: of the run.
    """

    fact: Fact
    sets: controls.Sets
    means: NDArray[np.float64] | None
    config: Config

    @functools.cached_property
    def masks(self) -> NDArray[np.int64]:
        """The subsets that all controls are measured on."""
        return controls.control_masks(len(self.sets), self._draws("control subsets"))

    def random(self, prompts: Prompts, sequence: int, located: NDArray[np.int32]) -> Drops | None:
        """Random sets matched by size and layer instead."""
        n, draws = self.config.filter.n_random, self._draws("random neurons")
        return controls.random_control(
            prompts, sequence, self.sets, located, self.masks, n, draws, self.means
        )

    def on_paraphrases(
        self, paraphrases: Prompts | None, known: NDArray[np.bool_] | None
    ) -> Drops | None:
        """On the paraphrases that the model answers too."""
        if paraphrases is None or known is None:
            return None
        which = np.flatnonzero(known).tolist()
        return controls.elsewhere(paraphrases, which, self.sets, self.masks, self.means)

    def on_unrelated(self, reference: Reference | None) -> Drops | None:
        """On facts of other subjects and relations."""
        if reference is None:
            return None
        n, draws = self.config.filter.n_unrelated, self._draws("unrelated facts")
        others = reference.unrelated(self.fact, n, draws)
        return controls.elsewhere(reference.prompts, others, self.sets, self.masks, self.means)

    def with_means(
        self, prompts: Prompts, sequence: int, reference: Reference | None
    ) -> Drops | None:
        """With means over the reference prompts, if those are enough, in the place of zero."""
        if reference is None or not reference.is_enough:
            return None
        means = reference.means
        return drops(controls.lattice_of(prompts, sequence, self.sets, self.masks, means))

    def _draws(self, name: str) -> np.random.Generator:
        return generator(self.config.seed, self.fact.id, name)
