"""Plots of the committed rows, as SVG beside them: ``python -m benchmarks.speed.plots``.

Drawn in grey shades and line styles, so that they read in print.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl

from benchmarks.rows import RESULTS, read

mpl.use("svg")

import matplotlib.pyplot as plt

Rows = list[dict[str, str]]


def series(rows: Rows, prefix: str, metric: str) -> tuple[list[float], list[float]]:
    """Numbers at the end of the cases' names, and their medians."""
    chosen = [r for r in rows if r["case"].startswith(prefix) and r["metric"] == metric]
    pairs = sorted((float(r["case"].removeprefix(prefix)), float(r["median"])) for r in chosen)
    return [x for x, _ in pairs], [y for _, y in pairs]


def scaling(axes: Any) -> None:
    """Seconds a fact against prompt length, facts at once and layers."""
    rows = read("scaling.csv")
    labels = {
        "prompt length ": "prompt length (tokens)",
        "facts at once ": "facts in one chunk",
        "layers ": "layers of the model",
    }
    for axis, (prefix, label) in zip(axes, labels.items(), strict=True):
        x, y = series(rows, prefix, "seconds_per_fact")
        axis.plot(x, y, "o-", color="0.2")
        axis.set_xticks(x, [f"{number:g}" for number in x])
        axis.set_xlabel(label)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("seconds a fact, one thread")


def accuracy(axis: Any, baseline: str) -> None:
    """Error against paid points a layer: the adaptive rule and left Riemann sums."""
    rows = read("accuracy.csv")

    def median(case: str, provider: str, metric: str) -> float:
        return next(
            float(r["median"])
            for r in rows
            if (r["case"], r["provider"], r["metric"]) == (case, provider, metric)
        )

    providers = sorted({r["provider"] for r in rows})
    for start, style, color in (("tolerance", "o-", "0.1"), ("left", "s--", "0.5")):
        points = sorted(
            (
                median(baseline, p, "points_per_layer"),
                median(f"{baseline}, all layers", p, "relative_error"),
            )
            for p in providers
            if p.startswith(start)
        )
        label = "adaptive, by tolerance" if start == "tolerance" else "left Riemann sums"
        axis.semilogy(*zip(*points, strict=True), style, color=color, label=label)
    axis.set_xlabel("paid points a layer")
    axis.set_title(f"{baseline} baseline")
    axis.legend()


def main() -> None:
    """Draw both figures."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
    scaling(axes)
    figure.savefig(RESULTS / "scaling.svg", metadata={"Date": None})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, baseline in zip(axes, ("masked", "zero"), strict=True):
        accuracy(axis, baseline)
    axes[0].set_ylabel("relative error of the scores")
    figure.savefig(RESULTS / "accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
