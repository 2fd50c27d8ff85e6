"""The runner: measures the cases, writes their rows, prints the design's table of targets.

``python -m benchmarks.speed.run [CASE ...]`` (all by default; ``--list`` names them, ``--table``
prints from the committed rows without measuring). A case that finds a difference between
providers stops with the reason and writes nothing. Run it alone on the machine: every row has the
load beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

# Each is a function of benchmarks.speed.attribution_cases, which is imported to measure alone.
CASES = ("peak", "equal_points", "accuracy", "subsets", "scaling", "memory")
LEFT, ADAPTIVE, ALL_SUBSETS = "left_20_T12", "adaptive_T12", "subsets_2^8_T12"


@dataclass(frozen=True)
class Target:
    """A line of the table: a measured figure, and what it should reach (None: only reported)."""

    what: str
    value: float
    goal: float | None
    at_most: bool = False

    def line(self) -> str:
        """The line, with yes or no where there is a goal."""
        if self.goal is None:
            return f"{self.what:58} {self.value:>9.4g}"
        sign = "<=" if self.at_most else ">="
        reached = self.value <= self.goal if self.at_most else self.value >= self.goal
        verdict = "yes" if reached else "NO"
        return f"{self.what:58} {self.value:>9.4g}  {sign} {self.goal:<7g} {verdict}"


class Rows:
    """Medians of the committed rows."""

    def __init__(self) -> None:
        from benchmarks.rows import read

        found = [r for case in CASES for r in read(f"{case}.csv")]
        self._medians = {(r["case"], r["provider"], r["metric"]): float(r["median"]) for r in found}

    def __call__(self, case: str, provider: str, metric: str = "seconds_per_fact") -> float:
        return self._medians.get((case, provider, metric), float("nan"))


def targets(rows: Rows) -> Iterator[Target]:
    """The design's section 7, from rows of one run; ratios are times another takes / ours."""
    for ours, label in (("dkn_engine", "one fact"), ("dkn_engine_8", "8 facts at once")):
        left, adaptive = rows(LEFT, ours), rows(ADAPTIVE, ours)
        released, lean = rows(LEFT, "released"), rows(LEFT, "released_lean")
        yield Target(f"same 20 left points, released / ours, {label}", released / left, 32)
        yield Target(f"adaptive 1e-3, released / ours, {label}", released / adaptive, 75)
        yield Target(f"adaptive 1e-3, without waste / ours, {label}", lean / adaptive, None)
        captum = rows(LEFT, "captum")
        yield Target(f"same 20 left points, captum / ours, {label}", captum / left, 12)
        for case, name in ((LEFT, "20 left points"), (ADAPTIVE, "adaptive")):
            share = rows(case, ours, "share_of_gemm_peak")
            yield Target(f"share of GEMM rate, {name}, {label}", share, 0.8)
    for baseline, most in (("masked", 6), ("zero", 20)):
        points = rows(baseline, "tolerance 0.001", "points_per_layer")
        yield Target(f"points a layer at 1e-3, {baseline} baseline", points, most, at_most=True)
        error = rows(f"{baseline}, all layers", "tolerance 0.001", "relative_error")
        yield Target(f"measured error at 1e-3, {baseline} baseline", error, 1e-3, at_most=True)
    ratio = rows(ALL_SUBSETS, "256 forwards") / rows(ALL_SUBSETS, "dkn_engine")
    yield Target("2^8 subsets, 256 forwards / ours", ratio, 12)
    memory = [
        rows(f"{n} facts, rows_per_batch auto", "dkn_engine", "peak_mib_above_model")
        for n in (32, 96)
    ]
    yield Target("peak memory, 96 facts / 32 facts", memory[1] / memory[0], 1.1, at_most=True)


def table() -> str:
    """The table as text, at most 80 columns."""
    return "\n".join(target.line() for target in targets(Rows()))


def measure(names: list[str]) -> None:
    """Run cases one after the other with one thread; each writes its own file when it is done."""
    import torch

    from benchmarks.rows import write
    from benchmarks.speed import attribution_cases

    torch.set_num_threads(1)
    for name in names:
        rows = []
        for one in getattr(attribution_cases, name)():
            rows.append(one)
            figures = f"{one.case:26} {one.provider:18} {one.metric:20} {one.median:.4g}"
            print(figures, file=sys.stderr, flush=True)
        print(write(f"{name}.csv", rows), file=sys.stderr)


def main() -> None:
    """Parse the options; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    args = parser.parse_args()
    unknown = sorted(set(args.cases) - set(CASES))
    if unknown:
        print(f"CASE must be one of {', '.join(CASES)}; got {unknown[0]!r}", file=sys.stderr)
        raise SystemExit(2)
    if args.list:
        print(*CASES, sep="\n")
        return
    if not args.table:
        measure(args.cases or list(CASES))
    print(table())


if __name__ == "__main__":
    main()
