"""Rules of quadrature on [0, 1]: fixed ones, and nested Lobatto rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Nodes on [0, 1] of nested Lobatto rules: of three points (Simpson's rule), of five (which are the
# Kronrod extension of the three), and the Kronrod extension of those to nine. Both ends are nodes:
# alpha = 1 is the clean row, paid once for all layers; neighbouring panels share theirs; and a
# panel's integral can be checked against the change of the objective. They are exact for
# polynomials up to degree 3, 7 and 13; the two ends alone, the trapezoid rule, up to 1.
_X9 = (
    np.sqrt((5 + 6 * np.sqrt(5 / 13)) / 11),
    np.sqrt(3 / 7),
    np.sqrt((5 - 6 * np.sqrt(5 / 13)) / 11),
)
NODES = np.array(sorted([-1.0, *(-x for x in _X9), 0.0, *_X9, 1.0])) / 2 + 0.5
LEVELS = {2: (0, 8), 3: (0, 4, 8), 5: (0, 2, 4, 6, 8), 9: tuple(range(9))}
FINER = {2: 3, 3: 5, 5: 9}


def interpolatory_weights(nodes: Array) -> Array:
    """Weights that integrate the polynomial through ``nodes`` over [0, 1] exactly."""
    k = len(nodes)
    # Legendre polynomials on [-1, 1] keep the system well conditioned.
    matrix = np.polynomial.legendre.legvander(2 * nodes - 1, k - 1).T
    moments = np.zeros(k)
    moments[0] = 1.0
    return np.linalg.solve(matrix, moments).astype(np.float64)


WEIGHTS = {n: interpolatory_weights(NODES[list(index)]) for n, index in LEVELS.items()}


def _difference(n: int) -> Array:
    """Weights of the ``n``-point rule minus those of the next coarser one, on the same nodes."""
    coarser = next(m for m, finer in FINER.items() if finer == n)
    weights = WEIGHTS[n].copy()
    weights[[LEVELS[n].index(i) for i in LEVELS[coarser]]] -= WEIGHTS[coarser]
    return weights


DIFFERENCES = {n: _difference(n) for n in FINER.values()}


def fixed_rule(name: str, n_steps: int) -> tuple[Array, Array]:
    """Nodes in [0, 1] and weights (summing to 1) of a fixed rule with ``n_steps`` points.

    Raises:
        ValueError: an unknown rule, or fewer points than it needs.
    """
    if name == "gauss_legendre":
        x, gauss = np.polynomial.legendre.leggauss(n_steps)
        return (x + 1) / 2, gauss / 2
    if name in {"trapezoid", "linspace"}:
        if n_steps < 2:
            raise ValueError(f"n_steps must be at least 2 for {name!r}; got {n_steps}")
        if name == "linspace":
            return np.linspace(0, 1, n_steps), np.full(n_steps, 1 / n_steps)
        w = np.full(n_steps, 1 / (n_steps - 1))
        w[[0, -1]] /= 2
        return np.linspace(0, 1, n_steps), w
    offset = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}
    if name not in offset:
        raise ValueError(f"quadrature must be a known fixed rule; got {name!r}")
    return (np.arange(n_steps) + offset[name]) / n_steps, np.full(n_steps, 1 / n_steps)
