"""EleutherAI's names, for code that was written for them; see ``interchange``."""

from typing import NoReturn

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


def __getattr__(name: str) -> NoReturn:
    if name == "LayerIntegratedGradients":
        # Not an AttributeError, of which an import statement would drop the words.
        raise ImportError(
            "dkn_engine.compat.LayerIntegratedGradients is gone, being no faster than captum's: "
            "use captum.attr.LayerIntegratedGradients, or dkn_engine.attribute for all layers"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
