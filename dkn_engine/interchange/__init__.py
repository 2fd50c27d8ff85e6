"""Neurons and clusters in the file forms and names of other tools."""

from dkn_engine.interchange.eleuther import read_eleuther, write_eleuther
from dkn_engine.interchange.hook_names import nnsight_names, transformer_lens_names
from dkn_engine.interchange.neuron_records import FactNeurons, fact_neurons
from dkn_engine.interchange.released import read_released, write_released

__all__ = [
    "FactNeurons",
    "fact_neurons",
    "nnsight_names",
    "read_eleuther",
    "read_released",
    "transformer_lens_names",
    "write_eleuther",
    "write_released",
]
