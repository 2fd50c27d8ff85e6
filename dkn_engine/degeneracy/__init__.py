"""Degeneracy: interventions, the lattice of suppressed subsets, the functional filter, controls."""

from dkn_engine.degeneracy.examine import Degeneracy, examine
from dkn_engine.degeneracy.intervene import answer_probability, intervene
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, subset_masks

__all__ = [
    "Degeneracy",
    "Lattice",
    "answer_probability",
    "degenerate_family",
    "drops",
    "examine",
    "intervene",
    "subset_masks",
]
