"""Random numbers by a seed and names, so that no draw depends on what was drawn before."""

from __future__ import annotations

import operator
import zlib

import numpy as np


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone, not on what ran before."""
    # numpy takes no negative seeds.
    return np.random.default_rng(
        [
            operator.index(seed) % (1 << 64),
            *(zlib.crc32(n.encode("utf-8", "replace")) for n in names),
        ]
    )
