"""Integrated gradients of an answer's probability over MLP activations, by one sweep."""

from dkn_engine.attribution.attribute_facts import attribute, iter_attribute
from dkn_engine.selection import select_neurons
from dkn_engine.types import Selection

__all__ = ["Selection", "attribute", "iter_attribute", "select_neurons"]
