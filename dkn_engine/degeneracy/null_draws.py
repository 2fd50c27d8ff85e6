"""What chance finds: a family against those of draws that have no structure of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dkn_engine.config import FilterConfig
from dkn_engine.degeneracy.lattice import Lattice, drops

_ONE_OF = 4  # draws is made for a fact of which the filter keeps no family
_SAME = 1e-9  # nats; sums of the same logarithms in another order differ by less


def n_draws(config: FilterConfig, has_family: bool) -> int:
    """How many of ``n_regrouped`` draws are made for a fact.

    Those of a fact without a family tell nothing but how often chance finds one, in a sum over all
    facts: a quarter of them, unless all are asked for (``control_precision=0``).
    """
    few = only_counted(config, has_family)
    return -(-config.n_regrouped // _ONE_OF) if few else config.n_regrouped


def only_counted(config: FilterConfig, has_family: bool) -> bool:
    """Whether all that a fact's draws are asked for is if they have a family."""
    return config.control_precision > 0 and not has_family


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a filter makes of some candidates.

    Attributes:
        passes: whether it keeps a family.
        excess: of that family, else of all candidates (``types.Drops``); NaN if not defined.
    """

    passes: bool
    excess: float

    @classmethod
    def of(cls, lattice: Lattice, dkn: Sequence[int]) -> Outcome:
        """The outcome of candidates whose lattice and family are known."""
        members = tuple(dkn) or tuple(range(lattice.q))
        return cls(len(dkn) >= 2, drops(lattice.restrict(members)).excess)

    def is_at_least(self, other: Outcome) -> bool:
        """Whether it is no worse than another; so is what is not defined, on either side."""
        if self.passes != other.passes:
            return self.passes
        return not self.excess < other.excess - _SAME


@dataclass(frozen=True, slots=True)
class Null:
    """How often chance does as well; the fields ``null``, ``null_*`` of a result.

    Attributes:
        name: what was drawn; ``draws``: how often; ``passing``: draws of which the filter keeps a
            family.
        p: (1 + draws that are at least as good) / (1 + draws); NaN without draws, 1 if all that was
            measured is how often chance finds a family.
    """

    name: str
    draws: int
    passing: int
    p: float

    @classmethod
    def of(cls, name: str, own: Outcome, drawn: Sequence[Outcome]) -> Null:
        """A family's outcome against those of draws.

        The p-value is valid, no more than a share p of cases below p, where the candidates are
        exchangeable with the draws: where nothing but their labels tells them apart. Ties and what
        is not defined make it larger.

        Source:
            Phipson and Smyth, Permutation p-values should never be zero (2010).
        """
        n, better = len(drawn), sum(one.is_at_least(own) for one in drawn)
        p = (1 + better) / (1 + n) if n else math.nan
        return cls(name, n, sum(one.passes for one in drawn), p)

    @classmethod
    def of_no_family(cls, name: str, passes: Sequence[bool]) -> Null:
        """How often draws have a family, of a fact that has none; which of them is not compared."""
        return cls(name, len(passes), sum(passes), 1.0 if passes else math.nan)

    @property
    def fields(self) -> dict[str, Any]:
        """Those of a :class:`dkn_engine.types.Degeneracy`."""
        return {
            "null": self.name,
            "null_draws": self.draws,
            "null_passing": self.passing,
            "null_p": self.p,
        }
