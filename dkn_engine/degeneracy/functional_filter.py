"""The functional filter of one fact: from candidate components to its DKN, with controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import CONTROL_EXACT, CONTROL_SAMPLES, Config, FilterConfig
from dkn_engine.degeneracy import controls
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, mask_of, subset_masks
from dkn_engine.degeneracy.reference_facts import Reference, knows
from dkn_engine.degeneracy.released_filter import released_family
from dkn_engine.neurons import encode
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
    family = [sets[i] for i in members]
    known = None if paraphrases is None else knows(paraphrases, config.filter)
    return dataclasses.replace(
        degeneracy,
        controls=_controls(
            prompts, sequence, family, located, fact, config, paraphrases, reference
        ),
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
    codes = encode(located)
    off = [located[~np.isin(codes, encode(kept))] for kept in (*family, located[:0])]
    edits = [suppress(neurons, means) for neurons in off]
    return prompts.probabilities(edits, [sequence])[:, 0]


def _controls(
    prompts: Prompts,
    sequence: int,
    sets: controls.Sets,
    located: NDArray[np.int32],
    fact: Fact,
    config: Config,
    paraphrases: Prompts | None,
    reference: Reference | None,
) -> dict[str, Drops]:
    """Drops by the control's name, with the sets of the DKN (or of all candidates) suppressed."""

    def draws(name: str) -> np.random.Generator:
        return generator(config.seed, fact.id, name)

    means, settings = _means(reference, config.filter), config.filter
    masks = subset_masks(len(sets), CONTROL_EXACT, CONTROL_SAMPLES, draws("control subsets"))
    random, n_random = draws("random neurons"), settings.n_random
    measured = {
        "random": controls.random_control(
            prompts, sequence, sets, located, masks, n_random, random, means
        )
    }
    if paraphrases is not None:
        known = np.flatnonzero(knows(paraphrases, settings)).tolist()
        measured["paraphrases"] = controls.elsewhere(paraphrases, known, sets, masks, means)
    if reference is not None:
        others = reference.unrelated(fact, settings.n_unrelated, draws("unrelated facts"))
        measured["unrelated"] = controls.elsewhere(reference.prompts, others, sets, masks, means)
    if reference is not None and reference.is_enough:
        ablated = controls.lattice_of(prompts, sequence, sets, masks, reference.means)
        measured["mean_ablation"] = drops(ablated)
    return {name: d for name, d in measured.items() if d is not None}
