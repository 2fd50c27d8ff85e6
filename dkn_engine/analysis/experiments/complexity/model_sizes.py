"""Complexity across models: how degenerate the same facts are in models of other sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.experiments.complexity.experiment import degeneracy_samples
from dkn_engine.analysis.neuron_groups import require_results_of
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.models.devices import named_weights
from dkn_engine.models.layout import find_layout
from dkn_engine.statistics.intervals import COUNTED, Estimate
from dkn_engine.statistics.jackknife import bounded_estimate, leave_one_out
from dkn_engine.statistics.table import COMPARED, TREND, Conditions, Row, Sample, Table, tabulate
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ModelSize:
    """How large a model is: all parameters, tied ones once; layers L, width d, widest MLP's F."""

    parameters: int
    layers: int
    width: int
    mlp_width: int


def model_size(model: nn.Module) -> ModelSize:
    """The size of a causal decoder.

    Raises:
        UnsupportedModelError: see :func:`dkn_engine.models.layout.find_layout`.
    """
    layout = find_layout(model)
    parameters = sum(weight.numel() for _, weight in named_weights(model))
    return ModelSize(parameters, layout.n_layers, layout.d_model, layout.width)


def complexity_of_models(
    facts: Facts,
    results: Mapping[str, Sequence[FactResult]],
    sizes: Mapping[str, ModelSize],
    *,
    seed: int = 0,
) -> Table:
    """The degeneracy of the same facts in several models, paired over facts known to both.

    Groups are the models, from small to large (equal ones in the order given); every other one is
    compared with the smallest. The group ``rho with parameters`` holds Spearman's rank correlation
    of a figure with the number of parameters, over all pairs of a model and a fact that every
    model has a value of; its interval is over facts, not models.

    Args:
        facts: asked in every model.
        results: of :func:`dkn_engine.find_dkns` on them, by the model's name; two at least.
        sizes: of the same models.
        seed: of the tests.

    Raises:
        UserError: fewer than two models, names that differ, or results of other facts.

    Source:
        Chen et al., Cracking Factual Knowledge (arXiv 2402.13731), the analysis of complexity.
    """
    if len(results) < 2 or set(results) != set(sizes):
        raise UserError(
            "results and sizes must be of the same models, two at least; got "
            f"{sorted(results)} and {sorted(sizes)}"
        )
    facts = fact_list(facts)
    for found in results.values():
        require_results_of(facts, found)
    names = sorted(results, key=lambda name: sizes[name].parameters)
    samples = [s for n in names for s in degeneracy_samples(n, "model", results[n])]
    # In units of the distances, which depend on how large a model's weights are.
    samples = [s for s in samples if s.figure != "persistence"]
    size_rows = [
        Row.of(figure, n, (), Estimate.alone(float(size), 1, COUNTED, float(size)))
        for figure in (f.name for f in dataclasses.fields(ModelSize))
        for n, size in ((n, getattr(sizes[n], figure)) for n in names)
    ]
    known = {n: sum(r.status == "ok" for r in results[n]) for n in names}
    return tabulate(
        "complexity_of_models",
        samples,
        seed=seed,
        compared=(*((n, names[0]) for n in names[1:]), *COMPARED),
        others=(*size_rows, *_trends(samples, names, sizes)),
        settings={
            "facts": len(facts),
            "known": known,
            "sizes": {n: dataclasses.asdict(sizes[n]) for n in names},
        },
        notes=(
            "Rows are means over the facts that a model knows, comparisons over those known to "
            "both models.",
            f"{TREND}: Spearman's rank correlation over facts known to all; its interval is over "
            "facts, so it says nothing of other models of the same sizes.",
        ),
    )


def _trends(
    samples: Sequence[Sample], names: Sequence[str], sizes: Mapping[str, ModelSize]
) -> Iterator[Row]:
    parameters = np.array([sizes[n].parameters for n in names], dtype=np.float64)
    if len(set(parameters)) < 2:
        return
    cells: dict[tuple[str, Conditions], dict[str, dict[str, float]]] = {}
    for s in samples:
        if s.group in names and math.isfinite(s.value):
            of = cells.setdefault((s.figure, s.conditions), {}).setdefault(s.unit, {})
            of[s.group] = s.value
    for (figure, conditions), units in cells.items():
        whole = [[u[n] for n in names] for u in units.values() if len(u) == len(names)]
        yield Row.of(figure, TREND, conditions, _trend(np.array(whole), parameters))


def _trend(values: NDArray[np.float64], parameters: NDArray[np.float64]) -> Estimate:
    """Of values ``[n_facts, n_models]``; the rank correlation over all of them."""
    from scipy.stats import spearmanr

    def rho(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        kept = (values[row > 0] for row in weights)
        return np.array(
            [
                spearmanr(np.tile(parameters, len(v)), v.ravel()).statistic
                if v.size and np.ptp(v)
                else math.nan
                for v in kept
            ]
        )

    return bounded_estimate(leave_one_out(rho, np.arange(len(values))), lowest=-1)
