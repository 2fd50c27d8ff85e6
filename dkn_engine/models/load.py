"""Models and tokenizers by name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UserError
from dkn_engine.files.local_paths import local_path
from dkn_engine.models.dequantized import dequantized
from dkn_engine.models.hub import from_hub
from dkn_engine.models.shared_layers import separate_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "float16", "bfloat16", "float64")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")

DeviceMap = str | Mapping[str, Any]


def load_model(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    dequantize: bool = False,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal or masked language model, or an encoder-decoder, in eval mode and its tokenizer.

    Which it is says ``config.json`` (``is_encoder_decoder``, ``architectures``). Each run of a
    layer that ALBERT shares becomes a layer (:mod:`dkn_engine.models.shared_layers`). Only
    safetensors weights are read (never a pickle) and no code that travels with a model runs.

    Args:
        name: ``"demo"`` (SmolLM2-135M-Instruct out of an installed package, converted on first
            use), a hub id, or a local folder.
        device: ``auto`` (CUDA if there is a device, else the CPU) or torch's name for one.
        dtype: ``auto`` (float32 on the CPU, the checkpoint's own elsewhere), a name such as
            ``bfloat16``, or a torch dtype.
        dequantize: unpack quantised weights to plain ones of ``dtype``.
        device_map: spread the layers over devices, by accelerate: ``auto``, ``balanced``,
            ``balanced_low_0``, ``sequential``, or a device (``disk`` is one) for each module.

    Raises:
        UserError: the model cannot be found or read, or an argument is not allowed; the message
            is one line.
    """
    require_placeable(device, device_map, dequantize)
    where = _device(device)
    kind = _dtype(dtype, where)
    places = where if device_map is None else device_map
    with quiet() if name == "demo" else contextlib.nullcontext():
        model, tokenizer = _guarded(name, lambda source, local: _read(source, kind, local, places))
        if dequantize:
            model = dequantized(model, model.dtype if kind == "auto" else kind)
    if name == "demo":
        model.config._name_or_path = "demo (SmolLM2-135M-Instruct)"  # where results name it
    try:
        if device_map is None and not _is_on(model.device, where):
            model.to(where)
    except RuntimeError as error:  # Out of memory is one, too.
        reason = _first_line(error)
        raise UserError(f"model {str(name)!r} cannot be put on {where}: {reason}") from error
    return model.eval(), tokenizer


def require_placeable(device: Any, device_map: Any, dequantize: bool) -> None:
    """Refuse arguments of :func:`load_model` that exclude one another.

    Raises:
        UserError: names them in one line.
    """
    if device_map is None:
        return
    if device_map not in DEVICE_MAPS and not isinstance(device_map, Mapping):
        raise UserError(
            f"device_map must be {', '.join(DEVICE_MAPS)}, or a device for each module; "
            f"got {device_map!r}"
        )
    if device != "auto":
        raise UserError(
            f"device_map says where each layer goes; give it without a device, got {str(device)!r}"
        )
    if dequantize:
        raise UserError(
            "dequantize=True unpacks weights onto one device: save the model that it gives, and "
            "load that one with device_map"
        )


def _is_on(found: torch.device, wanted: torch.device) -> bool:
    return found.type == wanted.type and wanted.index in {None, found.index}


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer that :func:`load_model` gives, without the model.

    Raises:
        UserError: see :func:`load_model`.
    """
    tokenizer: PreTrainedTokenizerBase = _guarded(name, _read_tokenizer)
    return tokenizer


def _read(source: str | Path, dtype: Any, local: bool, places: Any) -> tuple[Any, Any]:
    """``places``: the device, or a ``device_map``."""
    import torch

    tokenizer = _read_tokenizer(source, local)
    there = {"trust_remote_code": False, "local_files_only": local}
    config = _read_config(source, local)
    if isinstance(places, torch.device):
        # Some packed weights cannot be moved once they are read.
        packed = getattr(config, "quantization_config", None)
        places = None if packed is None else {"": str(places)}
    loaded: Any = _auto_class(config).from_pretrained(
        source,
        **there,
        # Where peft is installed, whether the model is an adapter is asked by itself.
        adapter_kwargs={"local_files_only": local},
        device_map=places,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # so that they are told below, in one line
        output_loading_info=True,
    )
    model, found = loaded
    _require_whole(found)
    if tokenizer.vocab_size == 0:
        raise UserError("its tokenizer has no vocabulary; is tokenizer.json missing?")
    separate_layers(model)
    return model, tokenizer


def _auto_class(config: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    if config.is_encoder_decoder and type(config) in (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    ):
        return transformers.AutoModelForSeq2SeqLM
    if _is_masked(config):
        return transformers.AutoModelForMaskedLM
    # Of models with pictures, some have a decoder of text under the same configuration.
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    pictures = type(config) in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING
    return transformers.AutoModelForMultimodalLM if pictures else transformers.AutoModelForCausalLM


def names_encoder(name: str | Path) -> bool:
    """Whether :func:`load_model` gives a model with an encoder, as far as ``config.json`` tells.

    A masked language model or an encoder-decoder. No weights are read. What cannot be read is no
    encoder: loading it will say what is wrong.
    """
    if name == "demo":
        return False
    try:
        path = local_path(name)
        if path.is_dir():
            told = json.loads((path / "config.json").read_text("utf-8"))
            names = told.get("architectures")
            return bool(told.get("is_encoder_decoder")) or _is_masked_name(names)
        config: Any = _guarded(name, _read_config)
        return bool(config.is_encoder_decoder) or _is_masked(config)
    except (OSError, ValueError, AttributeError, UserError):
        return False


def _read_config(source: str | Path, local: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=local)


def _is_masked(config: Any) -> bool:
    """Whether a checkpoint is of a masked language model, by the class that wrote it.

    BERT's own checkpoints are of ``BertForPreTraining``, which also has a masked-LM head.
    """
    return _is_masked_name(getattr(config, "architectures", None))


def _is_masked_name(names: Any) -> bool:
    return any(str(name).endswith(("ForMaskedLM", "ForPreTraining")) for name in names or [])


def _read_tokenizer(source: str | Path, local: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=local)


# What is read of a folder or a hub id, if need be on this machine alone.
_Read = Callable[[str | Path, bool], Any]


def _guarded(name: str | Path, read: _Read) -> Any:
    """What is read from the demo model, or a model of that name; its errors in one line."""
    if name == "demo":
        from dkn_engine.models.packaged.smollm2 import demo_folder

        return read(demo_folder(), True)
    if str(name).startswith("~"):  # no hub id begins so
        name = local_path(name)
    # The hub's own message for an absent folder is about the spelling of repository names.
    # A folder of that name is what the libraries would read.
    looks_local = isinstance(name, Path) or name.startswith(("/", "."))
    if looks_local or Path(name).is_dir():
        _require_folder(Path(name))
    is_folder = Path(name).is_dir()
    try:
        return read(name, True) if is_folder else from_hub(str(name), partial(read, name))
    except Exception as error:  # The libraries raise whatever they like here.
        reason = _broken_file(Path(name)) or _first_line(error)
        raise UserError(f"model {str(name)!r} cannot be loaded: {reason}") from error


def _require_folder(path: Path) -> None:
    """Say what the libraries do not: that there is no folder, or no model in it."""
    if not path.is_dir():
        reason = "is a file, not a folder" if path.is_file() else "there is no such folder"
        raise UserError(f"model {str(path)!r}: {reason}")
    if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
        raise UserError(
            f"model {str(path)!r}: the folder holds an adapter of peft, not a model: merge it into "
            "its base model, AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
            ".save_pretrained(new_folder), and save the tokenizer there, too"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"model {str(path)!r}: the folder holds no config.json")
    names = sorted(file.name for file in path.iterdir())
    pickled = [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled and not any(".safetensors" in n for n in names):
        raise UserError(
            f"model {str(path)!r} cannot be loaded: its weights are pickled ({pickled[0]}), which "
            "can run code and is never read; expected safetensors"
        )


def _broken_file(folder: Path) -> str | None:
    """The first file of a model's folder that is no JSON, which the libraries do not name."""
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            return f"{file.name} is broken: {error}"
    return None


def _require_whole(found: Any) -> None:
    """Refuse weights that are not in the file: transformers would draw them at random."""
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{len(missing)} weights are not in its files; the first: {missing[0]!r}")
    for name, in_file, in_model in sorted(found["mismatched_keys"]):
        raise UserError(
            f"weight {name!r} must be {list(in_model)} by its config.json; the file has "
            f"{list(in_file)}"
        )


def _device(device: str | torch.device) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be 'auto' or a device of torch; got {device!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {str(found)!r} is not there; torch sees "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return found


def _dtype(dtype: str | torch.dtype, device: torch.device) -> Any:
    import torch

    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype) if isinstance(dtype, str) and dtype in DTYPES else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype must be auto, {', '.join(DTYPES)}; got {dtype!r}")
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A line that ends in a colon promises the reason in the next.
    n = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:n])[:300] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, which a second of loading does not need."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
