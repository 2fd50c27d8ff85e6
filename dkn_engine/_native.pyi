"""C++ core of :mod:`dkn_engine.topology`; arrays must be C-contiguous and of the exact dtype."""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

_Ints: TypeAlias = NDArray[np.int32]
_Reals: TypeAlias = NDArray[np.float64]
_Weights = TypeVar("_Weights", NDArray[np.float32], NDArray[np.float64])
_Tree: TypeAlias = tuple[_Ints, _Reals, _Ints]  # children [m, 2], heights [m], sizes [m]

def distances(neurons: _Ints, w_out: _Weights, w_in: _Weights, max_span: int) -> _Reals: ...
def layer_tree(neurons: _Ints, w_out: _Weights, w_in: _Weights) -> tuple[_Tree, _Reals]: ...
def layer_trees(
    graphs: Sequence[tuple[_Ints, _Weights, _Weights]], n_threads: int
) -> list[_Tree]: ...
def dense_tree(distances: _Reals) -> _Tree: ...
def edge_tree(n: int, edges: _Ints, values: _Reals) -> _Tree: ...
def components(
    n: int,
    children: _Ints,
    heights: _Reals,
    sizes: _Ints,
    min_size: int,
    condensed: bool,
    end: float,
) -> tuple[_Reals, _Reals, _Ints, _Ints, _Ints]: ...
