"""What chance finds among the nodes of a merge tree: the same choice, other labels.

A family that was chosen by the filter passes it, so that regrouping the neurons of the chosen
family alone would say too little: the choice among all nodes is repeated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config
from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.null_draws import Null, Outcome, n_draws, only_counted
from dkn_engine.degeneracy.tree_families import Chosen, tree_family
from dkn_engine.neurons import encode, sort_neurons
from dkn_engine.types import Component

REGROUPED_TREE = "regrouped tree"


def relabelled(
    nodes: Sequence[Component], located: NDArray[np.int32], rng: np.random.Generator
) -> list[Component]:
    """The nodes with all located neurons' labels permuted within their layers.

    The tree stays as it is: births, deaths, sizes, layers and which node is inside which.

    Args:
        nodes: of a merge tree.
        located: int32 ``[n, 2]``, its points, in any order.
        rng: of the draw.
    """
    before = sort_neurons(located)
    after = before.copy()
    for layer in np.unique(before[:, 0]):
        at = np.flatnonzero(before[:, 0] == layer)
        after[at] = before[rng.permutation(at)]
    codes = encode(before)
    places = [np.searchsorted(codes, encode(node.neurons)) for node in nodes]
    return [
        dataclasses.replace(node, neurons=sort_neurons(after[at]))
        for node, at in zip(nodes, places, strict=True)
    ]


def regrouped_tree_null(
    prompts: Prompts,
    sequence: int,
    nodes: Sequence[Component],
    located: NDArray[np.int32],
    own: Chosen,
    config: Config,
    rng: np.random.Generator,
    means: NDArray[np.float64] | None = None,
) -> Measurement[Null]:
    """The family chosen from a tree against those chosen from it under permuted labels.

    Each draw costs as many suppressions as the choice itself. Where no family was chosen the draws
    are fewer (:func:`dkn_engine.degeneracy.null_draws.n_draws`).

    Args:
        prompts, sequence, nodes, config, means: as the choice was made by :func:`tree_family`.
        located: int32 ``[n, 2]``, the fact's knowledge neurons.
        own: what was chosen.
        rng: of the draws, one after another; more draws begin with the same ones.
    """
    drawn = []
    for _ in range(n_draws(config.filter, own.passes)):
        other = relabelled(nodes, located, rng)
        one = yield from tree_family(prompts, sequence, other, config, means)
        drawn.append(Outcome(one.passes, one.excess))
    if only_counted(config.filter, own.passes):
        return Null.of_no_family(REGROUPED_TREE, [one.passes for one in drawn])
    return Null.of(REGROUPED_TREE, Outcome(own.passes, own.excess), drawn)
