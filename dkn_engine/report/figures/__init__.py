"""Pictures as matplotlib figures: readable in grey and on paper, the same bytes every time.

Every function takes plain data and returns a :class:`matplotlib.figure.Figure` that no global
state knows of: safe in notebooks and threads, ``rcParams`` untouched. matplotlib is
imported when a figure is made.
"""

from __future__ import annotations

from dkn_engine.report.figures.bar_chart import bars
from dkn_engine.report.figures.component_graph import dkn_graph
from dkn_engine.report.figures.files import save, to_png, to_svg
from dkn_engine.report.figures.hasse_diagram import has_lattice, lattice, lattice_family
from dkn_engine.report.figures.interactions_by_group import grouped_interactions, interaction_matrix
from dkn_engine.report.figures.lifetimes import barcode
from dkn_engine.report.figures.neurons import neuron_map
from dkn_engine.report.figures.share_matrix import overlap
from dkn_engine.report.figures.style import DARK, LIGHT, MAIN, PAPER, available
from dkn_engine.report.figures.subsets import has_drops, subset_drops, subset_map

__all__ = [
    "DARK",
    "LIGHT",
    "MAIN",
    "PAPER",
    "available",
    "barcode",
    "bars",
    "dkn_graph",
    "grouped_interactions",
    "has_drops",
    "has_lattice",
    "interaction_matrix",
    "lattice",
    "lattice_family",
    "neuron_map",
    "overlap",
    "save",
    "subset_drops",
    "subset_map",
    "to_png",
    "to_svg",
]
