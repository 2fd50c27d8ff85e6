"""The control that says what chance finds: a fact's own located neurons in other groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.controls import Sets, Suppressed
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.family_search import FamilySearch
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family
from dkn_engine.degeneracy.null_draws import Null, Outcome, n_draws, only_counted
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.neurons import encode, union

REGROUPED = "regrouped"


def has_null(config: Config) -> bool:
    """Whether regrouped neurons say what chance finds by a configuration.

    They do where the filter alone asks the model which neurons cover for one another. A search for
    such groups finds more than their relabelling, also by chance: its null repeats the search.
    """
    settings = config.filter
    graph = config.topology.clustering in {"ntc", "released"}
    node = config.topology.select in {"persistence", "leaf", "root"}
    return graph and node and settings.method == "degenerate" and settings.n_regrouped > 0


def regroup(
    sets: Sets, located: NDArray[np.int32], rng: np.random.Generator
) -> list[NDArray[np.int32]]:
    """Groups of the same sizes and layers, their labels permuted within every layer.

    Args:
        sets: disjoint groups, int32 ``[k, 2]``.
        located: int32 ``[n, 2]``, all of a fact's neurons. Those in no group are exchanged with
            the others.
        rng: of the draw.

    Returns:
        Groups of the neurons of both, each by layer, then index.
    """
    pool = union([located, *sets])
    label = np.full(len(pool), -1)
    for i, one in enumerate(sets):
        label[np.searchsorted(encode(pool), encode(one))] = i
    for layer in np.unique(pool[:, 0]):
        at = np.flatnonzero(pool[:, 0] == layer)
        label[at] = rng.permutation(label[at])
    return [pool[label == i] for i in range(len(sets))]


def regrouped_null(
    asked: Suppressed,
    located: NDArray[np.int32],
    found: tuple[Lattice, tuple[int, ...]],
    persistence: Sequence[float],
    config: FilterConfig,
    rng: np.random.Generator,
) -> Measurement[Null]:
    """The outcome of a fact's candidates against those of regroupings.

    Every draw goes through the filter that the candidates went through, on the same subsets. What
    is suppressed in several draws, or was among the candidates, is asked for once, so that equal
    groups have equal figures. Of a fact without a family the draws are fewer, and are only asked
    whether they have one (:func:`dkn_engine.degeneracy.null_draws.n_draws`).

    Args:
        asked: the fact's prompt and the candidates.
        located: int32 ``[n, 2]``, its knowledge neurons.
        found: the candidates' lattice and family.
        persistence: of the candidates, for ties between families.
        config: ``method="degenerate"``.
        rng: of the draws, one after another; more draws begin with the same ones.
    """
    lattice, dkn = found
    pool = union([located, *asked.sets])
    few = only_counted(config, bool(dkn))
    drawn = [regroup(asked.sets, located, rng) for _ in range(n_draws(config, bool(dkn)))]
    bits = [_bits(sets, pool) for sets in drawn]
    rule = config.min_alone, config.max_none
    searches = [FamilySearch(lattice.q, lattice.masks, *rule, any_family=few) for _ in drawn]
    own = _bits(asked.sets, pool)
    there = zip(lattice.masks.tolist(), lattice.probabilities.tolist(), strict=True)
    p = {_joined(own, mask): value for mask, value in there}
    while any(search.wanted for search in searches):
        off = [[_joined(b, m) for m in s.wanted] for s, b in zip(searches, bits, strict=True)]
        new = sorted({key for keys in off for key in keys} - p.keys())
        if new:
            edits = [suppress(pool[_is_on(key, len(pool))], asked.means) for key in new]
            answers = yield asked.prompts, Asked(edits, asked.sequences)
            p |= dict(zip(new, answers[:, 0].tolist(), strict=True))
        for search, keys in zip(searches, off, strict=True):
            if keys:
                search.tell({m: p[k] for m, k in zip(search.wanted, keys, strict=True)})
    if few:
        return Null.of_no_family(REGROUPED, [search.passes for search in searches])
    lattices = [search.lattice for search in searches]
    families = [degenerate_family(one, persistence, *rule) for one in lattices]
    outcomes = [Outcome.of(one, family) for one, family in zip(lattices, families, strict=True)]
    return Null.of(REGROUPED, Outcome.of(lattice, dkn), outcomes)


def _bits(sets: Sets, pool: NDArray[np.int32]) -> list[int]:
    """Each set as a number whose bit i says whether neuron i of the pool is in it."""
    places = (np.searchsorted(encode(pool), encode(one)).tolist() for one in sets)
    return [sum(1 << i for i in at) for at in places]


def _joined(bits: Sequence[int], mask: int) -> int:
    """The neurons of a mask's sets."""
    joined = 0
    for i, one in enumerate(bits):
        if mask >> i & 1:
            joined |= one
    return joined


def _is_on(key: int, n: int) -> NDArray[np.bool_]:
    """The lowest ``n`` bits of a number."""
    raw = np.frombuffer(key.to_bytes(n // 8 + 1, "little"), dtype=np.uint8)
    return np.unpackbits(raw, count=n, bitorder="little").astype(bool)
