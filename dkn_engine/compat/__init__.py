"""EleutherAI's names, for code that was written for them; see ``interchange``."""

from dkn_engine.interchange.knowledge_neurons import (
    KnowledgeNeurons,
    initialize_model_and_tokenizer,
    model_type,
)

__all__ = [
    "KnowledgeNeurons",
    "initialize_model_and_tokenizer",
    "model_type",
]
