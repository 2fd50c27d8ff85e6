"""The results of a run as one sequence that can be searched, shown and made into tables."""

from dkn_engine.results.comparison import RunComparison, compare
from dkn_engine.results.sequence import Results

__all__ = ["Results", "RunComparison", "compare"]
