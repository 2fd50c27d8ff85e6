"""The peers of the benchmarks compute what they are named after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.speed import peers
from benchmarks.speed.attribution_cases import inclusive
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig, Config
from dkn_engine.models.layout import find_layout
from tests.support.tiny import MASK_ID, relative_error, sequence, tiny

LEFT = AttributionConfig(quadrature="riemann_left", n_steps=7)


def case_of(name: str, site: str = "post") -> peers.Case:
    model = tiny(name)
    return peers.Case(model, find_layout(model), sequence(6, 1), MASK_ID, site)


def ours(case: peers.Case, config: AttributionConfig) -> np.ndarray[Any, Any]:
    found = attribute_chunk(case.model, case.layout, [case.sequence], config, mask_id=MASK_ID)
    scores: np.ndarray[Any, Any] = found.scores[0]
    return scores


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_released_peer_gives_the_scores_of_the_released_configuration(name: str) -> None:
    case = case_of(name, site="pre")
    expected = ours(case, Config.released().attribution)
    found = peers.released(case, 20, multiply_by="activation")
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("peer", [peers.released, peers.lean, peers.captum])
def test_peers_agree_on_equal_points(name: str, peer: Any) -> None:
    case = case_of(name)
    # captum scales its points in float32 whatever the model's dtype.
    allowed = 1e-5 if peer is peers.captum else 1e-9
    assert relative_error(peer(case, 7), ours(case, LEFT)) < allowed


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rule_with_both_ends(name: str) -> None:
    case = case_of(name)
    assert relative_error(peers.eleuther(case, 7), inclusive(case, 7)) < 1e-9
