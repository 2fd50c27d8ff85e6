"""Degeneracy: interventions, the lattice of suppressed subsets, the functional filter, controls."""

from dkn_engine.degeneracy.faithful_shares import Faithfulness, faithfulness
from dkn_engine.degeneracy.functional_filter import examine
from dkn_engine.degeneracy.interventions import answer_probability, intervene
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, subset_masks
from dkn_engine.degeneracy.pair_interactions import Interactions, interactions
from dkn_engine.types import Degeneracy

__all__ = [
    "Degeneracy",
    "Faithfulness",
    "Interactions",
    "Lattice",
    "answer_probability",
    "degenerate_family",
    "drops",
    "examine",
    "faithfulness",
    "interactions",
    "intervene",
    "subset_masks",
]
