"""What kind of language model a model is: decoder, encoder or both; other kinds are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.dense import of_peft
from dkn_engine.models.torch_internals import children, is_compiled

if TYPE_CHECKING:
    from torch import nn


def refuse_other_kinds(model: nn.Module, name: str) -> None:
    """Refuse a model that is none of the kinds here, or that torch.compile has made.

    Raises:
        UnsupportedModelError: says what was expected, and what was found.
    """
    _refuse_compiled(model, name)
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise UnsupportedModelError(
            f"model must be a causal or masked language model of transformers; found {name}"
        )
    if getattr(config, "is_encoder_decoder", False):
        if not is_encoder_decoder(model):
            raise UnsupportedModelError(
                "expected an encoder-decoder of texts, as AutoModelForSeq2SeqLM gives it; found "
                f"{name}"
            )
        return
    if is_encoder(model):
        if getattr(config, "is_decoder", False):
            raise UnsupportedModelError(
                f"expected a masked language model that attends in both directions; found {name} "
                "with config.is_decoder=True: load it with is_decoder=False"
            )
        return
    if not (is_decoder_alone(model) or _generates(model)):
        raise UnsupportedModelError(
            "expected a causal or masked language model (…ForCausalLM, …LMHeadModel, "
            f"…ForMaskedLM, a subclass, or another that generates text); found {name}"
        )


def _generates(model: nn.Module) -> bool:
    # One that is no model of transformers has no such method.
    return bool(getattr(adapted(model), "can_generate", bool)())


def is_decoder_alone(model: nn.Module) -> bool:
    """Whether a class is by its name a decoder of text, which may still have other parts."""
    return _is_kind(model, "ForCausalLM", "LMHeadModel")


def is_encoder(model: nn.Module) -> bool:
    """Whether the model is an encoder with a masked-LM head, by the name of its class."""
    return _is_kind(model, "ForMaskedLM") and not is_encoder_decoder(model)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model is an encoder-decoder of texts, as ``AutoModelForSeq2SeqLM`` gives them."""
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
    two: Any = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return bool(two) and _is_kind(model, *known)


def encoder_of(model: nn.Module) -> Any:
    """The encoder of an encoder-decoder; None of other models."""
    return adapted(model).get_encoder() if is_encoder_decoder(model) else None


def _is_kind(model: nn.Module, *endings: str) -> bool:
    # A user's subclass may be called anything.
    return any(kind.__name__.endswith(endings) for kind in type(adapted(model)).__mro__)


def _refuse_compiled(model: nn.Module, name: str) -> None:
    """Refuse what torch.compile has made, since compiled code may leave out hooks set later."""
    for path, module in model.named_modules():
        if "_orig_mod" in children(module):
            remedy = "give the model that was compiled, compiled._orig_mod"
        elif is_compiled(module):
            remedy = "give one that was not, such as a fresh load_model"
        else:
            continue
        where = f"{name}, {path!r}," if path else name
        raise UnsupportedModelError(
            f"expected a model that runs as Python, so that its activations can be changed; found "
            f"{where} to be compiled by torch.compile: {remedy}"
        )


def adapted(model: Any) -> Any:
    """The model, or the one that an adapter of peft is around."""
    if not hasattr(model, "peft_config"):
        return model
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    # A PeftMixedModel; a model of transformers that has adapters in it is itself.
    return model.base_model.model if of_peft(model) else model


def text_config(model: nn.Module) -> Any:
    """The part of a model's configuration that is about text, or the whole if it has no parts."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
