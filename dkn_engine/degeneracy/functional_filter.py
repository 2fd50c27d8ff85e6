"""The functional filter: from a fact's candidate components to its DKN, with controls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy import controls
from dkn_engine.degeneracy.asked_together import Measurement, together
from dkn_engine.degeneracy.control_subsets import Subsets
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, mask_of, subset_masks
from dkn_engine.degeneracy.null_draws import Null
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.degeneracy.reference_facts import Reference, knows
from dkn_engine.degeneracy.regrouped import REGROUPED, has_null, regrouped_null
from dkn_engine.degeneracy.released_filter import released_family
from dkn_engine.errors import FactError
from dkn_engine.neurons import encode
from dkn_engine.seeds import generator
from dkn_engine.types import Component, Degeneracy, Fact

MOST_COMPONENTS = 62  # A mask is a signed 64-bit integer.
_REST, _NULL = "rest", "null"  # beside the controls' names, the measurements that are none


@dataclass(frozen=True, eq=False)
class Examinee:
    """A fact whose candidates are examined.

    Attributes:
        fact: for unrelated facts to be chosen.
        sequence: its index among the prompts.
        components: candidates, most persistent first, at most 62.
        located: int32 ``[n, 2]``, the fact's knowledge neurons.
        paraphrases: indices of those of its prompts that were not used for finding.
        null: begins to measure what chance finds, where the candidates were chosen by measuring, so
            that the choice must be repeated; None: the ``regrouped`` control.
    """

    fact: Fact
    sequence: int
    components: Sequence[Component]
    located: NDArray[np.int32]
    paraphrases: Sequence[int] = ()
    null: Callable[[], Measurement[Null]] | None = None

    @property
    def sets(self) -> controls.Sets:
        return [c.neurons for c in self.components]


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

    Raises:
        FactError: an edited model's own text outgrows the context.
    """
    held_out = range(0 if paraphrases is None else len(paraphrases))
    one = Examinee(fact, sequence, components, located, held_out)
    (found,) = examine_chunk(prompts, [one], config, paraphrases=paraphrases, reference=reference)
    if isinstance(found, FactError):
        raise found
    return found


def examine_chunk(
    prompts: Prompts,
    examinees: Sequence[Examinee],
    config: Config,
    *,
    paraphrases: Prompts | None = None,
    reference: Reference | None = None,
) -> list[Degeneracy | FactError]:
    """:func:`examine` for several facts, whose edits climb together.

    No fact's result depends on the others, but for the rounding of other batches. ``prompts`` and
    ``paraphrases`` hold those of all.
    """
    means = _means(reference, config.filter)
    lattices = _lattices(prompts, examinees, config, means)
    asked = _Controls(prompts, config, means, paraphrases, reference)
    measured = _measured(asked, examinees, lattices)
    return [
        _put_together(one, found, own, asked)
        for one, found, own in zip(examinees, lattices, measured, strict=True)
    ]


# The lattice of a fact's candidates and its DKN; or why there are none.
_Found = tuple[Lattice, tuple[int, ...]] | FactError


def _lattices(
    prompts: Prompts,
    examinees: Sequence[Examinee],
    config: Config,
    means: NDArray[np.float64] | None,
) -> list[_Found]:
    return together([_lattice(prompts, one, config, means) for one in examinees])


def _measured(
    asked: _Controls, examinees: Sequence[Examinee], lattices: Sequence[_Found]
) -> list[dict[str, Any]]:
    """Of each fact by name what is measured once its DKN is known."""
    named = [
        (i, name, measurement)
        for i, (one, found) in enumerate(zip(examinees, lattices, strict=True))
        if not isinstance(found, FactError)
        for name, measurement in asked.of(one, *found)
    ]
    answers = together([measurement for _, _, measurement in named])
    measured: list[dict[str, Any]] = [{} for _ in examinees]
    for (i, name, _), answer in zip(named, answers, strict=True):
        measured[i][name] = answer
    return measured


def _lattice(
    prompts: Prompts, one: Examinee, config: Config, means: NDArray[np.float64] | None
) -> Measurement[tuple[Lattice, tuple[int, ...]]]:
    """The lattice of a fact's candidates, and its DKN."""
    masks = lattice_masks(len(one.sets), config.filter, config.seed, one.fact.id)
    lattice = yield from controls.measured_lattice(prompts, one.sequence, one.sets, masks, means)
    return lattice, _dkn(lattice, prompts, one.sequence, one.components, config.filter)


def _put_together(
    one: Examinee, found: _Found, measured: dict[str, Any], asked: _Controls
) -> Degeneracy | FactError:
    """What was found about one fact; or why nothing was."""
    for failed in (found, *measured.values()):
        if isinstance(failed, FactError):
            return failed
    assert not isinstance(found, FactError)
    lattice, dkn = found
    of_family = drops(lattice.restrict(_members(one, dkn)))
    null: Null | None = measured.pop(_NULL, None)
    degeneracy = Degeneracy(
        components=_described(one.components, lattice),
        subset_probabilities=lattice.probabilities,
        subset_masks=lattice.masks,
        subset_objective=np.empty(0) if lattice.objective is None else lattice.objective,
        dkn=dkn,
        partial_drop=of_family.partial_drop,
        full_drop=of_family.full_drop,
        redundancy=of_family.redundancy,
        excess=of_family.excess,
        candidates=drops(lattice) if one.sets else None,
        rest_suppressed=measured.pop(_REST, np.empty(0)),
        **({} if null is None else null.fields),
    )
    n_known = len(asked.known(one))
    if not one.sets:
        return dataclasses.replace(degeneracy, n_paraphrases_known=n_known)
    n_not_known, reference = None, asked.reference
    if len(one.paraphrases):
        n_not_known = len(one.paraphrases) - n_known
    return dataclasses.replace(
        degeneracy,
        n_paraphrases_known=n_known,
        controls={name: d for name, d in measured.items() if d is not None},
        n_paraphrases_not_known=n_not_known,
        n_reference=None if reference is None else len(reference.facts),
        n_reference_packaged=None if reference is None else reference.n_filled,
    )


def _members(one: Examinee, dkn: tuple[int, ...]) -> tuple[int, ...]:
    """The family that figures are about: the DKN if there is one, else all candidates."""
    return dkn if len(dkn) >= 2 else tuple(range(len(one.components)))


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
    return degenerate_family(lattice, _persistence(components), config.min_alone, config.max_none)


def _persistence(components: Sequence[Component]) -> list[float]:
    """Of each component; 0 of those that no filtration made, whose ties go to the first ones."""
    return [0.0 if math.isnan(c.persistence) else c.persistence for c in components]


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
) -> Measurement[NDArray[np.float64]]:
    """Probabilities ``[members + 1]`` of each member alone, then of none, all KNs else off."""
    codes = encode(located)
    off = [located[~np.isin(codes, encode(kept))] for kept in (*family, located[:0])]
    found: NDArray[np.float64] = yield (
        prompts,
        Asked([suppress(neurons, means) for neurons in off], [sequence]),
    )
    return found[:, 0]


@dataclass(frozen=True, eq=False)
class _Controls:
    """What is measured once the DKN are known; arguments as in :func:`examine_chunk`."""

    prompts: Prompts
    config: Config
    means: NDArray[np.float64] | None
    paraphrases: Prompts | None
    reference: Reference | None

    def known(self, one: Examinee) -> list[int]:
        """Those of a fact's held-out paraphrases that the model answers."""
        if self.paraphrases is None:
            return []
        every = knows(self.paraphrases, self.config.filter)
        return [i for i in one.paraphrases if every[i]]

    def of(
        self, one: Examinee, lattice: Lattice, dkn: tuple[int, ...]
    ) -> Iterator[tuple[str, Measurement[Any]]]:
        """Measurements by the control's name, the null, and members alone with the rest suppressed.

        The sets of the DKN (or of all candidates) are suppressed; those of the null are other
        groupings of the fact's neurons.
        """
        prompts, settings, means = self.prompts, self.config.filter, self.means
        if dkn:
            family = [one.sets[i] for i in dkn]
            yield _REST, _rest(prompts, one.sequence, family, one.located, means)
        if one.null is not None:  # Chance may find a family where the choice found none.
            yield _NULL, one.null()
        if not one.sets:
            return

        def draws(name: str) -> np.random.Generator:
            return generator(self.config.seed, one.fact.id, name)

        sets = [one.sets[i] for i in _members(one, dkn)]
        precision = settings.control_precision
        subsets = Subsets.of(len(sets), precision, draws("control subsets"))
        own = controls.Suppressed(prompts, [one.sequence], sets, means)
        random = draws("random neurons")
        yield (
            "random",
            controls.random_control(own, one.located, settings.n_random, random, subsets),
        )
        if one.null is None and has_null(self.config) and len(one.sets) >= 2:
            all_sets = dataclasses.replace(own, sets=one.sets)
            persistence = _persistence(one.components)
            found = lattice, dkn
            yield (
                _NULL,
                regrouped_null(
                    all_sets, one.located, found, persistence, settings, draws(REGROUPED)
                ),
            )
        if self.paraphrases is not None and len(one.paraphrases):
            asked = controls.Suppressed(self.paraphrases, self.known(one), sets, means)
            yield "paraphrases", controls.elsewhere(asked, subsets, others=True)
        reference = self.reference
        if reference is None:
            return
        others = reference.unrelated(one.fact, settings.n_unrelated, draws("unrelated facts"))
        asked = controls.Suppressed(reference.prompts, others, sets, means)
        yield "unrelated", controls.elsewhere(asked, subsets, others=True)
        if reference.is_enough:
            asked = dataclasses.replace(own, means=reference.means)
            yield "mean_ablation", controls.elsewhere(asked, subsets)
