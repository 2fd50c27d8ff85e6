"""A mixture of experts as one MLP a layer, whose neurons are those of its experts in their order.

transformers runs experts by a function that the configuration names. In a call of the engine it is
ours, which lays out for each token what every neuron's row of the output projections is multiplied
by: its activation times the weight that the router gives its expert, 0 for experts that the token
is not routed to. That vector goes through a module of the engine's, so that it can be read and
changed there as a dense MLP's activations are. A shared expert's neurons follow the routed ones'.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.dense import is_dense
from dkn_engine.models.devices import is_offloaded
from dkn_engine.models.readable import plain_weight

NAME = "dkn_engine_experts"
_SHARED = ("shared_experts", "shared_expert", "shared_mlp")
_SHARED_GATE = "shared_expert_gate"  # Qwen's: a factor on the shared expert's output


class Rows(nn.Module):
    """Rows ``[n, d]`` of all experts' neurons, where a dense MLP has a projection."""

    def __init__(self, rows: Callable[[Tensor], Tensor], n: int, d: int) -> None:
        super().__init__()
        self.in_features, self.out_features = d, n
        self._rows = rows

    def rows(self, index: Any) -> Tensor:
        return self._rows(torch.arange(self.out_features)[index])


class Mixture(nn.Module):
    """The output projections of a layer's experts as one: from what they multiply to their sum.

    Attributes:
        n_experts, n_each, n_shared: E, F of each, F of the shared expert (0: there is none).
        routing: the experts ``[N, K]`` of the last pass's tokens, and their weights.
        forced: int64 ``[n]`` of tokens, and the routing ``[n, K]`` that they take in the next
            passes instead of their own; None: all take their own.
    """

    def __init__(self, experts: Any, block: Any, name: str) -> None:
        super().__init__()
        # The model may be let go of while its layout is not.
        self._experts, self._block = weakref.ref(experts), weakref.ref(block)
        self._shared_name = next((n for n in _SHARED if hasattr(block, n)), None)
        self.name = name
        self.n_experts, self.n_each = experts.num_experts, _width(experts)
        self.n_shared = 0 if self.shared is None else self.shared.down_proj.in_features
        self.in_features = self.n_experts * self.n_each + self.n_shared
        self.out_features = experts.down_proj.shape[2 if experts.is_transposed else 1]
        self.routing: tuple[Tensor, Tensor] | None = None
        self.forced: tuple[Tensor, Tensor, Tensor] | None = None
        self.pending: Tensor | None = None

    @property
    def experts(self) -> Any:
        return self._experts()

    @property
    def shared(self) -> Any:
        return None if self._shared_name is None else getattr(self._block(), self._shared_name)

    def rows(self, index: Any) -> Tensor:
        """``[n, d]``: what each neuron of ``index`` adds to the layer, times its activation."""
        down = self.experts.down_proj.detach()
        table = down if self.experts.is_transposed else down.transpose(1, 2)
        return self._gather(index, lambda e, i: table[e, i], "down_proj")

    def read(self, which: str) -> Rows:
        """The directions that the neurons read by their gate or up rows."""

        def pick(expert: Tensor, neuron: Tensor) -> Tensor:
            experts = self.experts
            name = "gate_up_proj" if experts.has_gate else "up_proj"
            table: Tensor = getattr(experts, name).detach()
            if experts.has_gate and experts.is_concatenated:
                neuron = neuron + self.n_each * (which == "up")
            elif experts.has_gate:
                neuron = 2 * neuron + (which == "up")
            return table[expert, :, neuron] if experts.is_transposed else table[expert, neuron]

        def rows(index: Tensor) -> Tensor:
            return self._gather(index, pick, f"{which}_proj")

        return Rows(rows, self.in_features, self.out_features)

    def _gather(self, index: Any, pick: Callable[[Tensor, Tensor], Tensor], name: str) -> Tensor:
        wanted = torch.arange(self.in_features)[index]
        routed = wanted < self.n_experts * self.n_each
        expert, neuron = wanted[routed] // self.n_each, wanted[routed] % self.n_each
        found = pick(expert, neuron)
        if bool(routed.all()):
            return found
        weight = getattr(self.shared, name).weight.detach()
        rows = (weight.T if name == "down_proj" else weight)[
            wanted[~routed] - self.n_experts * self.n_each
        ]
        out = found.new_empty(len(wanted), self.out_features)
        out[routed], out[~routed] = found, rows
        return out

    def forward(self, x: Tensor) -> Tensor:
        """``[N, F of all] -> [N, d]``, by the experts that are routed to or have something."""
        out = x.new_zeros(len(x), self.out_features)
        down = self.experts.down_proj.detach()
        ends = self.n_experts * self.n_each
        used = x[:, :ends].detach().view(len(x), self.n_experts, self.n_each).ne(0).any(-1)
        if self.routing is not None and len(self.routing[0]) == len(x):
            used = used.scatter(1, self.routing[0], True)  # gradients are asked for at zeros, too
        for expert in used.any(0).nonzero()[:, 0].tolist():
            token = used[:, expert].nonzero()[:, 0]
            part = x[token, expert * self.n_each : (expert + 1) * self.n_each]
            rows = down[expert] if self.experts.is_transposed else down[expert].T
            out = out.index_add(0, token, part @ rows)
        if self.n_shared:
            out = out + x[:, ends:] @ self.shared.down_proj.weight.detach().T
        return out

    def add_up(self, x: Tensor, bias: Tensor) -> Tensor:
        """Through the module's hooks, and a bias behind them."""
        out: Tensor = self(x)
        return out + bias

    def routed(self, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The routing ``[N, K]`` of a pass, by the router or as it is forced."""
        if self.forced is not None:
            token, experts, given = self.forced
            index, weights = index.clone(), weights.clone()
            token = token.to(index.device)
            index[token], weights[token] = experts.to(index.device), given.to(weights)
        self.routing = (index.detach(), weights.detach())
        return index, weights

    def activations(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """``[N, E F]`` for hidden states ``[N, d]``."""
        experts = self.experts
        x = hidden.new_zeros(len(hidden), self.n_experts * self.n_each)
        at = torch.arange(self.n_each, device=hidden.device)
        for expert in index.unique().tolist():
            token, k = (index == expert).nonzero(as_tuple=True)
            inner = _inner(experts, hidden[token], expert) * weights[token, k, None]
            x = x.index_put((token[:, None], expert * self.n_each + at), inner.to(x.dtype))
        return x


def _width(experts: Any) -> int:
    return int(experts.down_proj.shape[1 if experts.is_transposed else 2])


def _inner(experts: Any, hidden: Tensor, expert: int) -> Tensor:
    """What one expert's output projection multiplies, ``[n, F]``."""
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    weight = getattr(experts, name)[expert]
    inner = hidden @ (weight if experts.is_transposed else weight.T)
    if experts.has_bias:
        inner = inner + getattr(experts, f"{name}_bias")[expert]
    found: Tensor = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    return found


# By the experts of a model, which may be laid out several times at once.
_mixtures: weakref.WeakKeyDictionary[nn.Module, Mixture] = weakref.WeakKeyDictionary()


def _forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    mixture = _mixtures[experts]
    hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
    index, weights = mixture.routed(top_k_index, top_k_weights)
    x = mixture.activations(hidden, index, weights)
    bias = x.new_zeros(())
    if experts.has_bias:
        bias = (experts.down_proj_bias[index] * weights.unsqueeze(-1)).sum(1).to(x.dtype)
    if mixture.shared is None:
        return mixture.add_up(x, bias).view_as(hidden_states)
    gate = getattr(mixture._block(), _SHARED_GATE, None)
    scale = None if gate is None else torch.sigmoid(gate(hidden))
    if mixture.pending is None:
        if scale is not None:
            _refuse(mixture.name, "a gated shared expert behind the others")
        mixture.pending = x
        return (torch.zeros_like(hidden) + bias).view_as(hidden_states)
    inner, mixture.pending = mixture.pending, None
    whole = torch.cat([x, inner if scale is None else inner * scale], dim=-1)
    return mixture.add_up(whole, bias).view_as(hidden_states)


def _join_shared(mixture: Mixture) -> Any:
    """A hook on the shared expert's output projection, which the mixture runs with the others."""

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].reshape(-1, mixture.n_shared)
        bias: Tensor = x.new_zeros(()) if module.bias is None else module.bias
        if mixture.pending is None:
            mixture.pending = x
            return torch.zeros_like(output) + bias
        routed, mixture.pending = mixture.pending, None
        return mixture.add_up(torch.cat([routed, x], dim=-1), bias).view_as(output)

    return hook


@contextlib.contextmanager
def experts_shown(model: nn.Module) -> Iterator[None]:
    """Passes of the block run the model's experts by the engine's function, then as before."""
    found = [(m, _mixtures[m]) for m in model.modules() if m in _mixtures]
    if not found:
        yield
        return
    configs: dict[int, Any] = {id(m.config): m.config for m, _ in found}
    before = [(c, c._experts_implementation_internal) for c in configs.values()]
    nested = any(name == NAME for _, name in before)
    handles = []
    try:
        for config, _ in before:
            config._experts_implementation_internal = NAME
        for _, mixture in found:
            mixture.pending = None  # of a pass that raised
            if mixture.shared is not None and not nested:
                hook = _join_shared(mixture)
                handles.append(mixture.shared.down_proj.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for config, name in before:
            config._experts_implementation_internal = name


def mixture_of(layer: nn.Module, where: str) -> tuple[Mixture, nn.Module] | None:
    """A layer's mixture of experts and the block that holds it; None if the layer has none.

    Raises:
        UnsupportedModelError: names experts of another kind.
    """
    found = {
        path: module
        for path, module in layer.named_modules()
        if path.rsplit(".", 1)[-1] in {"experts", "block_sparse_moe"}
        or "Experts" in type(module).__name__
    }
    experts = {p: m for p, m in found.items() if _is_known(m)}
    if not found:
        return None
    if len(experts) != 1:
        path, module = next(iter(found.items()))
        _refuse(
            where, f"a mixture of experts of another kind at {path!r} ({type(module).__name__})"
        )
    ((path, module),) = experts.items()
    block = layer.get_submodule(path.rpartition(".")[0])
    for part, weights in block.named_modules():
        if is_offloaded(weights):
            raise UnsupportedModelError(
                f"{where}: expected a mixture of experts in memory; found {part!r} offloaded: load "
                "the layer onto a device (device_map, max_memory)"
            )
    for name in filter(lambda name: hasattr(block, name), _SHARED):
        if not _is_gated_mlp(getattr(block, name)):
            _refuse(where, f"a shared expert of another kind at {name!r}")
    if module not in _mixtures:
        _register()
        _mixtures[module] = Mixture(module, block, f"{where}.{path}")
    return _mixtures[module], block


def _is_known(module: Any) -> bool:
    """Whether transformers runs it by a function of its register, from weights that can be read."""
    weight = getattr(module, "down_proj", None)
    known = {"has_gate", "has_bias", "is_transposed"} <= vars(module).keys()
    plain = plain_weight(weight) and weight.ndim == 3  # type: ignore[union-attr]  # a tensor
    return known and plain and not module.has_post_expert_norm and not module._is_expert_parallel


def _is_gated_mlp(module: Any) -> bool:
    parts = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    return all(isinstance(part, nn.Module) and is_dense(part) for part in parts)


def _register() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)


def _refuse(where: str, found: str) -> None:
    raise UnsupportedModelError(
        f"{where}: expected one dense MLP, or experts that transformers runs by its register of "
        f"expert functions; found {found}"
    )
