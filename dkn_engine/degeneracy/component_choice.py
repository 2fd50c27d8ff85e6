"""From the located neurons of a chunk's facts to the candidate components of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config, TopologyConfig
from dkn_engine.degeneracy.asked_together import Measurement, together
from dkn_engine.degeneracy.choices import Choice, Located
from dkn_engine.degeneracy.covering_choice import covering_choice
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.functional_filter import MOST_COMPONENTS
from dkn_engine.degeneracy.influences import shares
from dkn_engine.degeneracy.null_draws import Null
from dkn_engine.degeneracy.regrouped_trees import REGROUPED_TREE, regrouped_tree_null
from dkn_engine.degeneracy.tree_families import Chosen, tree_family
from dkn_engine.errors import FactError
from dkn_engine.models.connections import Rows, connection_rows
from dkn_engine.seeds import generator
from dkn_engine.topology.adjacent_weights import adjacent_weights
from dkn_engine.topology.clustering import candidates_by_distance, find_candidates
from dkn_engine.topology.graph import weight_distances
from dkn_engine.types import Component


def choose_components(
    prompts: Prompts,
    located: Sequence[Located],
    config: Config,
    means: NDArray[np.float64] | None = None,
    paraphrases: Prompts | None = None,
) -> list[Choice | FactError]:
    """Candidate components of each fact, in their order.

    Choices that ask the model ask for all facts together; no fact's depends on the others, but for
    the rounding of other batches.

    Args:
        prompts: hold all facts.
        located: of each fact.
        config: ``topology`` and ``filter`` are read, and ``seed``.
        means: what suppressed activations become, ``[L, F]``; None for zero.
        paraphrases: hold those that may be used for finding, of all facts.
    """
    given = config, means, paraphrases
    return together([_choice(prompts, one, *given) for one in located])


def _choice(
    prompts: Prompts,
    one: Located,
    config: Config,
    means: NDArray[np.float64] | None,
    paraphrases: Prompts | None,
) -> Measurement[Choice]:
    """A fact's candidates, by a search or from its graph, with the weights between its neurons."""
    rows = connection_rows(prompts.layout, one.selection.neurons, config.topology)
    weights = adjacent_weights(one.selection.neurons, *rows)
    if config.topology.clustering == "covering":
        choice = yield from covering_choice(prompts, one, config, means, paraphrases)
    else:
        choice = yield from _of_graph(prompts, one, config, means, rows)
    return replace(choice, connection_weights=weights)


def _of_graph(
    prompts: Prompts,
    one: Located,
    config: Config,
    means: NDArray[np.float64] | None,
    rows: Rows,
) -> Measurement[Choice]:
    every = graph_components(prompts, one, config.topology, means, rows)
    if config.topology.select == "tree":
        chosen = yield from tree_family(prompts, one.sequence, every, config, means)
        remark = "" if chosen.passes else f"no family of the tree's {len(every)} nodes passes"
        null = partial(_tree_null, prompts, one, every, chosen, config, means)
        members = tuple(every[i] for i in chosen.members)
        return Choice(members, remark, null if config.filter.n_regrouped else None)
    if len(every) <= MOST_COMPONENTS:
        return Choice(every)
    remark = f"the first {MOST_COMPONENTS} of {len(every)} components"
    return Choice(every[:MOST_COMPONENTS], remark)


def _tree_null(
    prompts: Prompts,
    one: Located,
    nodes: Sequence[Component],
    chosen: Chosen,
    config: Config,
    means: NDArray[np.float64] | None,
) -> Measurement[Null]:
    rng = generator(config.seed, one.fact.id, REGROUPED_TREE)
    asked = prompts, one.sequence, nodes, one.selection.neurons
    return regrouped_tree_null(*asked, chosen, config, rng, means)


def graph_components(
    prompts: Prompts,
    one: Located,
    config: TopologyConfig,
    means: NDArray[np.float64] | None = None,
    rows: Rows | None = None,
) -> tuple[Component, ...]:
    """Components of a fact's neurons in the graph that ``config.connections`` says.

    Arguments as in :func:`choose_components`; with ``config.select="tree"`` all nodes of the tree.
    ``rows`` are those of :func:`dkn_engine.models.connections.connection_rows`; None: they are read
    if the graph needs them.

    Raises:
        UnsupportedModelError: the model does not have the weights that are asked for.
    """
    neurons = one.selection.neurons
    if config.connections == "influence":
        distances = weight_distances(neurons, influence(prompts, one.sequence, neurons, means))
        return candidates_by_distance(neurons, distances, config)
    w_out, w_in = connection_rows(prompts.layout, neurons, config) if rows is None else rows
    if config.by_activation:
        w_out = w_out * activation_sizes(prompts, one.sequence, neurons)[:, None]
    return find_candidates(neurons, w_out, w_in, config)


def activation_sizes(
    prompts: Prompts, sequence: int, neurons: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Size of clean activations ``[n]``, a mean over the answer's tokens where they are predicted.

    Raises:
        ValueError: the model lacks a neuron.
    """
    n = len(neurons)
    found = prompts.gated_activations(sequence, suppress(neurons), np.ones((1, n)))
    sizes: NDArray[np.float64] = np.abs(found[:, 0]).mean(axis=0)
    return sizes


def influence(
    prompts: Prompts,
    sequence: int,
    neurons: NDArray[np.int32],
    means: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Share of neuron b's activation that goes when a is suppressed, ``[n, n]``, a's row by row.

    n + 1 rows of the model; see :func:`dkn_engine.degeneracy.influences.shares`. Zero where a is
    not in a lower layer than b.

    Raises:
        ValueError: the model lacks a neuron.
    """
    n, closed = len(neurons), suppress(neurons, means)
    gates = np.concatenate([np.ones((1, n)), 1 - np.eye(n)])
    return shares(prompts.gated_activations(sequence, closed, gates), closed.offset)
