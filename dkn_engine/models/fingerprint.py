"""What decides about a run's numbers in a model and its tokenizer, as short traits to compare.

Only what is declared counts (weights, buffers, settings, hooks, token ids), never what a forward
pass gives: that differs by rounding from machine to machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UserError
from dkn_engine.models.devices import named_weights
from dkn_engine.models.model_lock import locked
from dkn_engine.models.tokens import front_tokens, mask_token_id
from dkn_engine.models.torch_internals import forward_hooks, own_forward

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

# Texts on which tokenizers differ: scripts, composed letters, digits, spaces, case, symbols.
_TEXTS = (
    "The capital of Germany is",
    " Berlin",
    "a",
    "PARIS, Paris and paris; 1234567890 - 3.14 = 2024's",
    "  two  spaces\tand\n\nlines \r\n",
    "na\u00efve caf\u00e9 Z\u00fcrich \u0141\u00f3d\u017a \u0130stanbul",
    "nai\u0308ve cafe\u0301",
    "\u0421\u0442\u043e\u043b\u0438\u0446\u0430 \u0420\u043e\u0441\u0441\u0438\u0438 - "
    "\u041c\u043e\u0441\u043a\u0432\u0430",
    "\u0397 \u03c0\u03c1\u03c9\u03c4\u03b5\u03cd\u03bf\u03c5\u03c3\u03b1",
    "\u4e2d\u56fd\u7684\u9996\u90fd\u662f\u5317\u4eac\u3002",
    "\u65e5\u672c\u306e\u9996\u90fd\u306f\u6771\u4eac\u3067\u3059",
    "\ud55c\uad6d\uc758 \uc218\ub3c4\ub294 \uc11c\uc6b8",
    "\u0639\u0627\u0635\u0645\u0629 \u0645\u0635\u0631 \u0647\u064a "
    "\u0627\u0644\u0642\u0627\u0647\u0631\u0629",
    "\u05d1\u05d9\u05e8\u05ea \u05d9\u05e9\u05e8\u05d0\u05dc",
    "\u092d\u093e\u0930\u0924 \u0915\u0940 \u0930\u093e\u091c\u0927\u093e\u0928\u0940",
    "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e\u0e2f",
    "def f(x):\n    return x ** 2  # \U0001f642 \u2192 \u221e",
    "<s> </s> <|endoftext|> <mask> [MASK] <unk>",
)
# Attributes of modules that say how it was loaded or what it did last, not what it computes.
_NOT_TRAITS = (
    "training",
    "_checkpointing",
    "max_seq_len_cached",
    "compute_type_is_set",  # of bitsandbytes, which asks the first input and the processor
    "support_avx512bf16_for_cpu",
)
# What peft's adapters are set to, beside their weights.
_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters")
_LIBRARIES = ("torch.", "transformers.", "accelerate.", "peft.")


# Where a model came from, and which library wrote its file, do not change what it computes.
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
_SAMPLES = 1024  # read of each parameter


@dataclass(frozen=True)
class Identity:
    """What a run's model and tokenizer are.

    Attributes:
        fingerprint: of the model; see :func:`dkn_engine.models.load.model_fingerprint`.
        name: of the model, for people.
        traits: ``model`` and ``tokenizer``, each a table of JSON values; empty if unknown.
    """

    fingerprint: str
    name: str
    traits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)


def identity_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """The identity of a model that :func:`dkn_engine.models.layout.find_layout` accepts."""
    # A call in another thread may have changed the model for a moment.
    with locked(model):
        traits = {"model": model_traits(model), "tokenizer": tokenizer_traits(tokenizer)}
        return Identity(model_fingerprint(model), model_name(model), traits)


def model_fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that identify a model's configuration and weights.

    Cheap and the same on every device: of each parameter the name, shape, dtype and about a
    thousand values spread over its rows and columns are hashed. So a change of very few single
    weights may go unnoticed. Parameters without data (never loaded) count by shape alone.
    """
    import torch

    digest = hashlib.sha256()
    with locked(model), torch.no_grad():  # a call in another thread may have scaled weights
        config = getattr(model, "config", None)
        if config is not None:
            kept = {k: v for k, v in config.to_dict().items() if k not in _NOT_IDENTITY}
            digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
        for name, parameter in _parameters(model):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            if parameter.device.type != "meta" and parameter.numel():
                # An odd step meets other columns in every row, as widths are even.
                step = max(1, parameter.numel() // _SAMPLES) | 1
                values = parameter.detach().reshape(-1)[::step]
                digest.update(values.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_name(model: nn.Module) -> str:
    """The model's name for people."""
    config: Any = model.config
    return str(getattr(config, "_name_or_path", "") or type(model).__name__)


def tokenizer_traits(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the tokenizer makes of texts, as far as the engine uses it.

    Returns:
        ``front``: the special tokens before a prompt; ``mask``: the token of the masked baseline
        or None; ``n_tokens``; ``digest``: of the vocabulary and of the ids of texts in a dozen
        scripts. The token for padding, which the engine does not use, does not count.
    """
    mask = None
    with contextlib.suppress(UserError):
        mask = mask_token_id(tokenizer)
    vocabulary = tokenizer.get_vocab()
    ids = [
        [
            list(tokenizer(t, add_special_tokens=s, verbose=False)["input_ids"])
            for s in (False, True)
        ]
        for t in _TEXTS
    ]
    return {
        "front": list(front_tokens(tokenizer, "a")),
        "mask": mask,
        "n_tokens": len(vocabulary),
        "digest": _digest(json.dumps([sorted(vocabulary.items()), ids]).encode()),
    }


def model_traits(model: nn.Module) -> dict[str, Any]:
    """What the model computes with, beside its configuration.

    Returns:
        ``weights``: a digest that every single weight changes; ``buffers``: the same of buffers;
        ``modules``: a digest of classes and plain settings (scales, epsilons, the state of
        adapters); ``hooks``: the users' own, by place and name; ``attention``: the name of the
        implementation.
    """
    return {
        "weights": _digest(*(p for n, w in _parameters(model) for p in _tensor(n, w))),
        "buffers": _digest(*_buffers(model)),
        "modules": _digest(*_modules(model)),
        "hooks": list(_hooks(model)),
        "attention": getattr(model.config, "_attn_implementation", None),
    }


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters; of what is packed all tensors that its module would save: codes, scales."""
    from torch import nn

    for name, parameter in named_weights(model):
        if type(parameter) is nn.Parameter:
            yield name, parameter
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        for key, value in owner.state_dict().items():
            if not hasattr(value, "dtype"):
                continue
            yield from _unpacked(f"{name}:{key}", value)


def _unpacked(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a tensor of another library's kind consists of."""
    parts = getattr(value, "__tensor_flatten__", None)
    if parts is None:
        yield name, value.detach()
        return
    for part in parts()[0]:
        yield from _unpacked(f"{name}.{part}", getattr(value, part))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _tensor(name: str, tensor: Tensor) -> Iterator[bytes]:
    """A tensor's name and form, and its bits summed row by row.

    Sums of integers are exact and the same on every device, and need no copy of the weights.
    """
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
    bits = tensor.detach().view(integers[tensor.dtype.itemsize])
    if bits.ndim > 1:
        bits = bits.sum(-1, dtype=torch.int64)
    yield bits.cpu().numpy().tobytes()


def _buffers(model: nn.Module) -> Iterator[bytes]:
    """Buffers; of those that a library fills by the configuration, only the form.

    Devices differ in the last digits of, say, rotary frequencies.
    """
    for path, module in model.named_modules():
        derived = type(module).__module__.startswith(_LIBRARIES)
        for name, buffer in module.named_buffers(recurse=False):
            if derived and name in module._non_persistent_buffers_set:
                yield f"{path}.{name} {buffer.dtype}".encode()
            else:
                yield from _tensor(f"{path}.{name}", buffer)


def _modules(model: nn.Module) -> Iterator[bytes]:
    for path, module in model.named_modules():
        kind, traits = type(module), sorted(_attributes(module))
        text = json.dumps([path, kind.__module__, kind.__qualname__, traits], default=str)
        yield text.encode()


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of a module's plain settings."""
    from transformers import PreTrainedModel

    # Beside its settings, a model of transformers notes where it came from and where it lies.
    allowed = (float,) if isinstance(module, PreTrainedModel) else (bool, int, float, str)
    for name, value in vars(module).items():
        setting = not name.startswith("_") and not name.endswith(_NOT_TRAITS)
        if name == "forward" and own_forward(module) is not None:
            yield name, _name_of(value)
        elif setting and _is_plain(value, allowed):
            yield name, repr(value)
    for name in _ADAPTERS:
        yield name, repr(getattr(module, name, None))


def _is_plain(value: Any, allowed: tuple[type, ...]) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(v, allowed) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(v, allowed) for v in value)
    return type(value) in allowed


def _hooks(model: nn.Module) -> Iterator[str]:
    """The users' hooks; libraries keep books by some of their own, which compute nothing."""
    for path, module in model.named_modules():
        for hook in forward_hooks(module):
            if not str(getattr(hook, "__module__", "")).startswith(_LIBRARIES):
                yield f"{path}: {_name_of(hook)}"


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
