"""Classes by other tools' names, for code that was written for those; see ``interchange``."""

from dkn_engine.interchange.captum.layer_integrated_gradients import LayerIntegratedGradients
from dkn_engine.interchange.knowledge_neurons import (
    KnowledgeNeurons,
    initialize_model_and_tokenizer,
    model_type,
)

__all__ = [
    "KnowledgeNeurons",
    "LayerIntegratedGradients",
    "initialize_model_and_tokenizer",
    "model_type",
]
