"""Degenerate knowledge neurons as pairs of neurons, the definition before that of sets.

Chen et al., Journey to the Center of the Knowledge Neurons (AMIG, arXiv 2308.13198):
a fact's degenerate knowledge neurons are pairs of its knowledge neurons of which one is enough,
so that suppressing either alone hardly lowers the answer's probability and suppressing both does.

Our reading, where the paper leaves room or its thresholds belong to its models:

- "Hardly" and "does" are the thresholds of this package's filter, tau_2 and tau_3, so that the
  comparison with components of any size is about the components and not about thresholds.
- A pair is a family of two components of one neuron each. All neurons that are in a pair are
  components, those of the strongest pair (what both leave, as a share of what the weaker leaves)
  first, and the filter then searches their subsets like those of any other clusterer. So the two
  neurons of a single pair come back as that pair, and pairs that cover for each other as more.
- Pairs are searched among the neurons of the highest scores, since there are n^2 / 2 of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Probability = Callable[[Sequence[NDArray[np.int32]]], NDArray[np.float64]]


def paired_neurons(
    neurons: NDArray[np.int32], probability: Probability, min_alone: float, max_none: float
) -> list[int]:
    """Indices of the neurons that are in a degenerate pair, those of the strongest pair first.

    Args:
        neurons: int32 ``[n, 2]``.
        probability: float64, the answer's probability with each of some sets suppressed.
        min_alone: share of the clean probability that each leaves when suppressed alone.
        max_none: both suppressed leave at most this share of the lower of those.
    """
    nothing = np.empty((0, 2), dtype=np.int32)
    clean, *single = probability([nothing, *(neurons[[i]] for i in range(len(neurons)))]).tolist()
    # Only neurons that can be missed can be in a pair.
    spare = [i for i, p in enumerate(single) if p >= min_alone * clean]
    pairs = list(itertools.combinations(spare, 2))
    if not pairs or not clean > 0:
        return []
    both = probability([neurons[list(pair)] for pair in pairs]).tolist()
    found = []
    for (i, j), p in zip(pairs, both, strict=True):
        weaker = min(single[i], single[j])
        if weaker > 0 and p <= max_none * weaker:
            found.append((p / weaker, i, j))
    # A dictionary keeps the first place of each.
    return list(dict.fromkeys(n for _, *pair in sorted(found) for n in pair))
