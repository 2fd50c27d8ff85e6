"""The functional filter of one fact: from candidate components to its DKN, with controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import FilterConfig
from dkn_engine.degeneracy import controls
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, mask_of, subset_masks
from dkn_engine.degeneracy.reference_facts import Reference, knows
from dkn_engine.degeneracy.released_filter import released_family
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.seeds import generator
from dkn_engine.types import Component, Drops, Fact

MOST_COMPONENTS = 62  # A mask is a signed 64-bit integer.


@dataclass(frozen=True, eq=False)
class Degeneracy:
    """What suppression shows about one fact; fields as in :class:`dkn_engine.FactResult`."""

    components: tuple[Component, ...]
    subset_probabilities: NDArray[np.float64]
    subset_masks: NDArray[np.int64]
    dkn: tuple[int, ...]
    partial_drop: float
    full_drop: float
    redundancy: float
    candidates: Drops | None
    excess: float
    rest_suppressed: NDArray[np.float64]
    controls: dict[str, Drops] = field(default_factory=dict)
    n_paraphrases_not_known: int | None = None
    n_reference: int | None = None
    n_reference_packaged: int | None = None


def examine(
    prompts: Prompts,
    sequence: int,
    components: Sequence[Component],
    located: NDArray[np.int32],
    fact: Fact,
    config: FilterConfig,
    seed: int,
    *,
    released: AnswerSequence | None = None,
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
        config: of the filter.
        seed: of the run; every use of random numbers has its own, by the fact's id and a name, so
            that the draws of one control change no other.
        released: the fact's tokens, with ``config.method="released"``.
        paraphrases: prompts that were not used for finding, for a control.
        reference: for the controls on unrelated facts and with mean activations.
    """
    sets = [c.neurons for c in components]
    masks = lattice_masks(len(sets), config, seed, fact.id)
    means = reference.means if reference is not None else None
    if config.suppress_value == "mean" and means is None:
        raise ValueError("reference must be given with suppress_value='mean'; got None")
    use = means if config.suppress_value == "mean" else None
    lattice = controls.lattice_of(prompts, sequence, sets, masks, use)
    dkn = _dkn(lattice, prompts, components, config, released)
    family = dkn if len(dkn) >= 2 else tuple(range(len(sets)))
    own = drops(lattice.restrict(family))
    found = Degeneracy(
        components=_described(components, lattice),
        subset_probabilities=lattice.probabilities,
        subset_masks=lattice.masks,
        dkn=dkn,
        partial_drop=own.partial_drop,
        full_drop=own.full_drop,
        redundancy=own.redundancy,
        excess=own.excess,
        candidates=drops(lattice) if sets else None,
        rest_suppressed=_rest(prompts, sequence, [sets[i] for i in dkn], located, use),
    )
    if not sets:
        return found
    chosen = [sets[i] for i in family]
    masks = controls.control_masks(len(chosen), generator(seed, fact.id, "control subsets"))
    drawn = generator(seed, fact.id, "random neurons")
    random = controls.random_control(
        prompts, sequence, chosen, located, masks, config.n_random, drawn, use
    )
    known = None if paraphrases is None else knows(paraphrases, config)
    measured = {
        "random": random,
        "paraphrases": _on_paraphrases(paraphrases, known, chosen, masks, use),
        "unrelated": _on_unrelated(reference, chosen, masks, fact, config, seed, use),
        "mean_ablation": _with_means(prompts, sequence, chosen, masks, reference),
    }
    return dataclasses.replace(
        found,
        controls={name: d for name, d in measured.items() if d is not None},
        n_paraphrases_not_known=None if known is None else int((~known).sum()),
        n_reference=None if reference is None else len(reference.facts),
        n_reference_packaged=None if reference is None else reference.n_filled,
    )


def _dkn(
    lattice: Lattice,
    prompts: Prompts,
    components: Sequence[Component],
    config: FilterConfig,
    released: AnswerSequence | None,
) -> tuple[int, ...]:
    """The components that the filter keeps, ascending indices."""
    if config.method == "released":
        assert released is not None
        return released_family(
            prompts.model, prompts.layout, released, components, config.released_max_drop
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


def _on_paraphrases(
    paraphrases: Prompts | None,
    known: NDArray[np.bool_] | None,
    family: controls.Sets,
    masks: NDArray[np.int64],
    means: NDArray[np.float64] | None,
) -> Drops | None:
    """On the paraphrases that the model answers too."""
    if paraphrases is None or known is None:
        return None
    return controls.elsewhere(paraphrases, np.flatnonzero(known).tolist(), family, masks, means)


def _on_unrelated(
    reference: Reference | None,
    family: controls.Sets,
    masks: NDArray[np.int64],
    fact: Fact,
    config: FilterConfig,
    seed: int,
    means: NDArray[np.float64] | None,
) -> Drops | None:
    if reference is None:
        return None
    rng = generator(seed, fact.id, "unrelated facts")
    others = reference.unrelated(fact, config.n_unrelated, rng)
    return controls.elsewhere(reference.prompts, others, family, masks, means)


def _with_means(
    prompts: Prompts,
    sequence: int,
    family: controls.Sets,
    masks: NDArray[np.int64],
    reference: Reference | None,
) -> Drops | None:
    """Activations become their means over the reference prompts, if those are enough, not zero."""
    if reference is None or not reference.is_enough:
        return None
    return drops(controls.lattice_of(prompts, sequence, family, masks, reference.means))
