"""Asks an installed wheel for the least that it must be able to do; numpy is enough for it.

Run by the Python that has the wheel, with -P, so that no checkout stands in for it.
"""

from __future__ import annotations

import dkn_engine
from dkn_engine import topology

heights = topology.h0_persistence([[0.0, 2.0, 3.0], [2.0, 0.0, 4.0], [3.0, 4.0, 0.0]]).heights
assert heights.tolist() == [2.0, 3.0], heights
assert "site-packages" in (dkn_engine.__file__ or ""), dkn_engine.__file__
assert dkn_engine.__version__[0].isdigit(), dkn_engine.__version__
print(f"dkn_engine {dkn_engine.__version__} runs")  # noqa: T201
