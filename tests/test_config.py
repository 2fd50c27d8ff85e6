"""Settings as programs compute them, and files of settings as editors save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkn_engine.config import AttributionConfig, Config, FilterConfig, SelectionConfig
from dkn_engine.errors import UserError


def settings(integer: Any, real: Any, truth: Any, text: Any) -> Config:
    return Config(
        attribution=AttributionConfig(
            n_steps=integer(20), quadrature="gauss_legendre", rows_per_batch=integer(64)
        ),
        selection=SelectionConfig(threshold=real(0.25), method=text("top_k")),
        filter=FilterConfig(require_rank_1=truth(1), min_alone=integer(1), n_random=integer(7)),
        seed=integer(3),
    )


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("real", [np.float64, np.float32, np.float16])
def test_numbers_of_numpy_are_plain_numbers(integer: Any, real: Any) -> None:
    plain, given = settings(int, float, bool, str), settings(integer, real, np.bool_, np.str_)
    assert given == plain
    assert given.hash == plain.hash
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())
    assert type(given.seed) is int
    assert type(given.filter.min_alone) is float


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": np.float64(1)}, "seed must be an integer; got 1.0"),
        ({"seed": np.bool_(1)}, "seed must be an integer; got True"),
        (
            {"facts_per_chunk": np.int64(0)},
            "facts_per_chunk must be an integer of at least 1; got 0",
        ),
        ({"seed": np.ones(1, dtype=int)}, r"seed must be an integer; got array\(\[1\]\)"),
    ],
)
def test_numbers_of_numpy_are_checked_as_others(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Config(**change)


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.json", '{"seed": 3}'), ("c.toml", "seed = 3\n[selection]\n")],
)
def test_a_mark_of_byte_order_is_no_setting(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert Config.load(tmp_path / name).seed == 3
