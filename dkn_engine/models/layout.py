"""Where a model keeps its layers, MLP projections and non-linearities; refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.affine import input_rows, is_projection, output_rows, require_linear, sizes
from dkn_engine.models.devices import device_of, input_device, warn_if_offloaded
from dkn_engine.models.experts import Mixture, Rows, mixture_of
from dkn_engine.models.kinds import (
    adapted,
    encoder_of,
    is_decoder_alone,
    is_encoder,
    is_encoder_decoder,
    refuse_other_kinds,
    text_config,
)
from dkn_engine.models.model_lock import locked
from dkn_engine.models.norms import measured_gain, norms_in_front
from dkn_engine.models.readable import refuse_scattered_weights, require_whole
from dkn_engine.models.text_part import stacks_of_text

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.hooks import RemovableHandle

# Names of the projection out of the MLP, of the one into the non-linearity, and of the
# non-linearity, as transformers spells them. A dot leads into a sub-module of the layer.
_DOWN = (
    "mlp.down_proj",  # LLaMA, Mistral, Qwen, Gemma, Phi-3, OLMo, Granite, SmolLM3
    "mlp.c_proj",  # GPT-2, GPT-Neo, StarCoder2
    "mlp.dense_4h_to_h",  # GPT-NeoX, Falcon, Bloom
    "mlp.fc_out",  # GPT-J, CodeGen
    "mlp.fc2",  # Phi
    "fc2",  # OPT
    "output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa
    "ffn.lin2",  # DistilBERT
    "mlp.Wo",  # ModernBERT
    "albert_layers.0.ffn_output",  # ALBERT
    "layer.2.DenseReluDense.wo",  # T5's decoder, MT5, UMT5, LongT5
    "ffn.fc2",  # SeamlessM4T
    "ffn.down_proj",  # MPT
    "feed_forward.down_proj",  # Bamba, Falcon-H1, Jamba
    "feed_forward.w2",  # LFM2
    "mlp_block.down_proj",  # RecurrentGemma
    "feed_forward.output",  # ProphetNet
    "feed_forward.value",  # RWKV
    "ffn.2",  # CTRL
    "ffn.ffn.w_out",  # CPM-Ant
    "ffn.proj_down",  # xLSTM
    "ff.layer_2",  # XLNet
)
_GATE = (
    "mlp.gate_proj",
    "mlp.gate_up_proj",
    "mlp.c_fc",
    "mlp.dense_h_to_4h",
    "mlp.fc_in",
    "mlp.fc1",
    "fc1",
    "mlp.up_proj",
    "intermediate.dense",
    "ffn.lin1",
    "mlp.Wi",
    "albert_layers.0.ffn",
    "layer.2.DenseReluDense.wi_0",
    "layer.2.DenseReluDense.wi",
    "ffn.fc1",
    "feed_forward.gate_proj",
    "feed_forward.w1",
    "mlp_block.gate_proj",
    "feed_forward.intermediate",
    "feed_forward.key",
    "ffn.proj_up_gate",
    "ffn.up_proj",
    "ffn.0",
    "ffn.ffn.w_in.w_0",
    "ff.layer_1",
)
# The linear factor's own projection, beside the gate's.
_UP = (
    "mlp.up_proj",
    "layer.2.DenseReluDense.wi_1",
    "feed_forward.up_proj",
    "feed_forward.w3",
    "mlp_block.up_proj",
    "ffn.proj_up",
    "ffn.ffn.w_in.w_1",
)
_ACT = (
    "mlp.act_fn",
    "mlp.activation_fn",
    "mlp.act",
    "mlp.activation",
    "activation_fn",
    "act",
    "intermediate.intermediate_act_fn",
    "ffn.activation",
    "albert_layers.0.activation",
    "layer.2.DenseReluDense.act",
    "feed_forward.act_fn",
    "feed_forward.activation_fn",
    "mlp_block.act_fn",
    "ffn.act",
    "ffn.act_fn",
    "ffn.1",
    "ffn.ffn.w_in.act",
    "ff.activation_function",
)


@dataclass(frozen=True, eq=False)
class Mlp:
    """The parts of one layer's MLP.

    Attributes:
        down: the projection ``F -> d`` whose input is the ``post`` site.
        act: the non-linearity whose input is the ``pre`` site (None if it is not a module).
        gate: the projection ``d -> F`` (``-> 2F`` where gate and up are fused).
        up: the projection of a GLU's linear factor; ``gate`` itself where they are fused; None
            for a plain MLP.
        fused: gate and up are the first and second half of one projection, of twice the size.
        block: of a mixture of experts, the module around its experts and their router; the other
            parts are then the engine's own, see :mod:`dkn_engine.models.experts`.
    """

    down: nn.Module
    act: nn.Module | None
    gate: nn.Module
    up: nn.Module | None
    fused: bool
    block: nn.Module | None = None

    def up_of(self, output: torch.Tensor) -> torch.Tensor:
        """The linear factor ``[..., F]`` in the output of :attr:`up`."""
        return output.chunk(2, dim=-1)[1] if self.fused else output

    def site_module(self, site: str) -> nn.Module:
        """The module whose input is the site: ``post`` or ``pre``."""
        module = self.down if site == "post" else self.act
        assert module is not None
        return module

    def watch(self, site: str, keep: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Hook ``keep(activation)`` on a site that the MLP has; the handle."""
        if site == "up":
            assert self.up is not None
            return self.up.register_forward_hook(lambda _module, _args, y: keep(self.up_of(y)))
        if site == "gate_act":
            act = self.site_module("pre")
            return act.register_forward_hook(lambda _module, _args, y: keep(y))
        module = self.site_module(site)
        return module.register_forward_pre_hook(lambda _module, args: keep(args[0]))

    def w_out(self, index: Any, *, kept: bool = False) -> torch.Tensor:
        """Rows ``[n, d]``: what each neuron of ``index`` adds to the MLP's output.

        Where the MLP computes; ``kept``, where a dense weight is kept if that is elsewhere.
        """
        return input_rows(self.down, index, kept=kept)

    def w_in(self, index: Any, which: str = "gate", *, kept: bool = False) -> torch.Tensor:
        """Rows ``[n, d]``: the direction each neuron of ``index`` reads, by its gate or up row.

        ``kept`` as in :meth:`w_out`.
        """
        module = self.gate
        if which == "up":
            if self.up is None:
                raise UnsupportedModelError(
                    "input_weights='up' needs a gated MLP; this model's MLP has no up projection"
                )
            module = self.up
        if not self.fused:
            return output_rows(module, index, kept=kept)
        half = sizes(module)[1] // 2
        rows = output_rows(module, slice(None), kept=kept)
        return (rows[half:] if which == "up" else rows[:half])[index]


@dataclass(frozen=True, eq=False)
class Layout:
    """A causal decoder, or a masked language model's encoder, seen as a stack of layers.

    Of an encoder-decoder the layers are the decoder's.

    Attributes:
        model: the whole of it.
        base: the module that owns the stack, ``stack`` the name of its ModuleList.
        layers, mlps: one entry a layer.
        widths: how many neurons each layer's MLP has.
        n_layers, width, d_model: L, F, d; F is the largest of ``widths``, and what a narrower layer
            does not have is 0 in tables ``[L, F]``.
        causal: a decoder, whose positions do not see the tokens behind them; False for an encoder
            with a masked-LM head, in which a change reaches all positions of the layers above.
        encoder: of an encoder-decoder, what gives the states that the decoder attends to.
    """

    model: nn.Module
    base: nn.Module
    stack: str
    layers: tuple[nn.Module, ...]
    mlps: tuple[Mlp, ...]
    widths: tuple[int, ...]
    d_model: int
    causal: bool = True
    encoder: nn.Module | None = None

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def width(self) -> int:
        return max(self.widths)

    def missing(self, neurons: NDArray[np.integer]) -> str | None:
        """Of neurons ``[n, 2]``, 0 or more, the first that the model has not, in words."""
        layers, indices = neurons.T
        widths = np.array([*self.widths, 0])[np.minimum(layers, self.n_layers)]
        outside = indices >= widths
        if not outside.any():
            return None
        layer, index = neurons[outside][0].tolist()
        width = int(widths[outside][0]) or self.width
        where = f" in layer {layer}" if width < self.width else ""
        return (
            f"neurons must be below layer {self.n_layers} and index {width}{where}; "
            f"got ({layer}, {index})"
        )

    @property
    def alone(self) -> bool:
        """Whether it is a causal decoder that attends to nothing but its own positions."""
        return self.causal and self.encoder is None

    def inputs(self, ids: torch.Tensor) -> dict[str, Any]:
        """What the model is called with to read any tokens ``[B, T]``.

        An encoder in front reads the first of them alone, so that it sees none of the others.
        """
        if self.encoder is None:
            return {"input_ids": ids}
        return {"input_ids": ids[:, :1], "decoder_input_ids": ids}

    @cached_property
    def device(self) -> torch.device:
        """Where tokens enter, logits come back to, and what is gathered of all layers is kept."""
        return input_device(self.model)

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where each layer computes."""
        return tuple(map(device_of, self.layers))

    @property
    def gated(self) -> bool:
        """Whether the MLPs multiply the non-linearity by a linear factor (GLU)."""
        return all(mlp.up is not None for mlp in self.mlps)

    @cached_property
    def _norms(self) -> tuple[tuple[str, nn.Module] | None, ...]:
        gates = [mlp.block or mlp.gate for mlp in self.mlps]
        layers = list(zip(self.layers, gates, strict=True))
        return norms_in_front(self.model, layers, self.inputs)

    @property
    def mixtures(self) -> dict[int, Mixture]:
        """The mixtures of experts, by layer; none of a dense model."""
        return {i: mlp.down for i, mlp in enumerate(self.mlps) if isinstance(mlp.down, Mixture)}

    def name_of(self, layer: int, module: nn.Module) -> str:
        """What a part of a layer is called in messages, such as ``layers[3].mlp.down_proj``."""
        mixture = self.mixtures.get(layer)
        if mixture is not None and isinstance(module, Mixture | Rows):
            module = mixture.experts
        names = {id(m): name for name, m in self.layers[layer].named_modules()}
        return ".".join(filter(None, (f"{self.stack}[{layer}]", names[id(module)])))

    def norm_gain(self, layer: int) -> torch.Tensor:
        """Gain ``[d]``, in at least float32, of the norm whose output the layer's MLP reads.

        The model is run once to see which that is; see :mod:`dkn_engine.models.norms`.

        Raises:
            UnsupportedModelError: there is none (OLMo2 normalises what an MLP writes), or what
                the MLP reads is not a constant gain times a normalised input.
        """
        found, name = self._norms[layer], type(self.layers[layer]).__name__
        if found is None:
            raise UnsupportedModelError(
                f"fold_norm=True: expected a norm in front of the MLP; found that the MLP of "
                f"{name} reads the output of no module: use fold_norm=False"
            )
        path, norm = found
        gain = measured_gain(norm, like=self.mlps[layer].w_in(slice(1)))
        if gain is None:
            raise UnsupportedModelError(
                f"fold_norm=True: expected a norm in front of the MLP of {name}; found {path!r} "
                f"({type(norm).__name__}), which has no constant gain: use fold_norm=False"
            )
        return gain


def find_layout(model: nn.Module) -> Layout:
    """The layout of a language model, causal, masked or of an encoder-decoder.

    One warning if weights are offloaded.

    Raises:
        UnsupportedModelError: encoders without a masked-LM head, unknown layouts, layers that share
            modules or are split, projections that are not linear in their input, weights without
            data or on several devices without accelerate's hooks; the message says what was
            expected and what was found.
    """
    name = type(model).__name__
    # A call in another thread may have taken the stack out of the model for a moment.
    with locked(model):
        refuse_other_kinds(model, name)
        refuse_scattered_weights(model)
        base, stack, layers = _find_stack(model, name)
        for i, layer in enumerate(layers):
            require_whole(layer, f"{name}.{stack}[{i}]")
        mlps = tuple(_find_mlp(layer, f"{name}.{stack}[{i}]") for i, layer in enumerate(layers))
        widths, outputs = zip(*(sizes(mlp.down) for mlp in mlps), strict=True)
        kind = (not is_encoder(model), encoder_of(model))
        layout = Layout(model, base, stack, tuple(layers), mlps, widths, outputs[0], *kind)
        _refuse_other_sizes(layout)
        _refuse_shared(layout, name)
        for i, mlp in enumerate(mlps):
            for module in filter(None, (mlp.down, mlp.gate, mlp.up)):
                require_linear(module, layout.name_of(i, module))
        warn_if_offloaded(model)
        return layout


def _refuse_other_sizes(layout: Layout) -> None:
    """Refuse an MLP that reads or writes another stream than the others, or cuts what it reads."""
    d = layout.d_model
    for i, mlp in enumerate(layout.mlps):
        f = layout.widths[i]
        expected = [(mlp.down, (f, d)), (mlp.gate, (d, f * (1 + mlp.fused)))]
        if mlp.up is not None and not mlp.fused:
            expected.append((mlp.up, (d, f)))
        for module, size in expected:
            if sizes(module) != size:
                raise UnsupportedModelError(
                    f"expected an MLP from {d} numbers to {f} and back; found "
                    f"{layout.name_of(i, module)} from {sizes(module)[0]} to {sizes(module)[1]}"
                )


def _refuse_shared(layout: Layout, name: str) -> None:
    """Refuse parts that two layers share, since nothing could tell what they do for each."""
    owners: dict[int, tuple[int, nn.Module]] = {}
    for i, (layer, mlp) in enumerate(zip(layout.layers, layout.mlps, strict=True)):
        for module in filter(None, (layer, mlp.down, mlp.gate, mlp.up)):
            owner, _ = owners.setdefault(id(module), (i, module))
            if owner != i:
                places = f"{layout.name_of(owner, module)} and {layout.name_of(i, module)}"
                raise UnsupportedModelError(
                    f"{name}: expected each layer to have modules of its own; found {places} to "
                    "be one module: give each layer a copy (copy.deepcopy)"
                )


def decoder_layout(model: nn.Module, what: str) -> Layout:
    """As :func:`find_layout`, for an analysis that continues texts.

    Raises:
        UnsupportedModelError: the model has an encoder; names the analysis and the model.
    """
    if is_encoder(model) or is_encoder_decoder(model):
        does = "fills blanks" if is_encoder(model) else "reads a text by its encoder"
        raise UnsupportedModelError(
            f"{what} is for causal language models, which continue a text; found "
            f"{type(model).__name__}, which {does}"
        )
    return find_layout(model)


def _find_stack(model: nn.Module, name: str) -> tuple[nn.Module, str, list[nn.Module]]:
    from torch import nn

    two = is_encoder_decoder(model)
    whole = adapted(model).get_decoder() if two else model
    n_layers: Any = _n_decoder_layers(whole, model) if two else _n_layers(model)
    found: list[tuple[nn.Module, str, list[nn.Module]]] = []
    for base in whole.modules():
        for child_name, child in base.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == n_layers and n_layers > 0:
                found.append((base, child_name, list(child)))
    if two:  # a layer of T5 is a list, too
        inside = {id(m) for *_, layers in found for layer in layers for m in layer.modules()}
        found = [one for one in found if id(one[0]) not in inside]
    elif len(found) > 1:  # Gemma 3n has other lists that are as long as its layers'
        found = [one for one in found if _may_have_mlp(one[2][0])] or found
    if not two and (len(found) > 1 or not (is_encoder(model) or is_decoder_alone(model))):
        found = stacks_of_text(model, found)
    if len(found) != 1:
        _refuse_albert(model, name)
        raise UnsupportedModelError(
            f"{name}: expected exactly one ModuleList of {n_layers} layers; found {len(found)}"
        )
    return found[0]


def _may_have_mlp(layer: nn.Module) -> bool:
    paths = (path for path, _ in layer.named_modules())
    return _first(layer, _DOWN) is not None or any("experts" in path for path in paths)


def _n_layers(model: nn.Module) -> Any:
    return getattr(text_config(model), "num_hidden_layers", None)


def _n_decoder_layers(decoder: Any, model: nn.Module) -> Any:
    """The number of a decoder's layers; the configuration may count an encoder's, too."""
    owner = decoder if hasattr(decoder, "config") else model
    return getattr(owner.config, "decoder_layers", None) or _n_layers(owner)


def _refuse_albert(model: nn.Module, name: str) -> None:
    """Refuse layers that run several times each, and say how to have one for each run."""
    n: Any = getattr(text_config(model), "num_hidden_groups", None)
    if n is not None:
        raise UnsupportedModelError(
            f"{name}: expected each layer to have modules of its own; found {n} for "
            f"{text_config(model).num_hidden_layers} layers: load it with dkn_engine.load_model, "
            "which gives each layer its own, with the weights that they share"
        )


def _find_mlp(layer: nn.Module, where: str) -> Mlp:
    found = mixture_of(layer, where)
    if found is not None:
        mixture, block = found
        linear = mixture.read("up") if mixture.experts.has_gate else None
        return Mlp(mixture, None, mixture.read("gate"), linear, fused=False, block=block)
    inner = _first(layer, ("albert_layers",))
    if inner is not None and len(list(inner.children())) != 1:
        raise UnsupportedModelError(
            f"{where}: expected one MLP in a layer; found {len(list(inner.children()))} "
            "(config.inner_group_num)"
        )
    down = _first(layer, _DOWN)
    gate = _first(layer, _GATE)
    if down is None or gate is None or not (is_projection(down) and is_projection(gate)):
        children = ", ".join(n for n, _ in layer.named_modules() if n.count(".") <= 1 and n)
        raise UnsupportedModelError(
            f"{where}: expected an MLP with an output projection named one of {', '.join(_DOWN)}; "
            f"found {children}"
        )
    fused = sizes(gate)[1] == 2 * sizes(down)[0]
    up = gate if fused else _first(layer, _UP)
    return Mlp(down, _first(layer, _ACT), gate, None if up is gate and not fused else up, fused)


def _first(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    from torch import nn

    for path in names:
        module: Any = layer
        for part in path.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.Module):
            return module
    return None
