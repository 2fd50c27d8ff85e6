"""Public interventions: answer probabilities under edits, and edits for the user's own forwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.attribution.sites import require_own_act, require_site
from dkn_engine.config import Backend, FactsConfig, Positions
from dkn_engine.degeneracy import edits
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.weight_edits import Which, scaled_weights
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.experts import experts_shown
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout, find_layout
from dkn_engine.models.masked_answers import facts_config_of
from dkn_engine.models.model_lock import locked
from dkn_engine.models.projections import refuse_unless_run
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedTokenizerBase

Neurons = ArrayLike | Mapping[str, ArrayLike | None] | None
On = Literal["activations", "weights", "output_weights", "input_and_output_weights"]
Site = Literal["post", "pre"]
_WEIGHTS: dict[str, Which] = {
    "weights": "output_weights",
    "output_weights": "output_weights",
    "input_and_output_weights": "input_and_output_weights",
}
_CHUNK = 8


def answer_probability(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    *,
    suppress: Neurons = None,
    enhance: Neurons = None,
    factor: float = 2.0,
    means: ArrayLike | None = None,
    positions: Positions = "answer",
    facts_config: FactsConfig | None = None,
    backend: str = "auto",
) -> NDArray[np.float64]:
    """Probability of every fact's answer with some MLP neurons suppressed or enhanced.

    Args:
        model: a language model of transformers that the engine takes; it is left as it was found.
        tokenizer: the model's.
        facts: whose answers; the probability is the product over the answer's tokens.
        suppress: neurons int ``[n, 2]`` (layer, index) whose activation becomes 0 (or its mean);
            the same for all facts, or by fact id (a fact that is absent, or has None, keeps all;
            every key must be the id of one).
        enhance: neurons, in the same form, whose activation is multiplied by ``factor``.
        factor: of ``enhance``.
        means: real ``[L, F]``; suppressed activations become these instead of 0.
        positions: ``answer``: for each answer token only the position that predicts it, earlier
            ones stay clean; ``answer_all``: all positions that predict answer tokens at once;
            ``all``: every position.
        facts_config: how facts become tokens; None for the defaults.
        backend: see :class:`dkn_engine.AttributionConfig`; not read where the model's own full
            forward passes do the work.

    Returns:
        float64 ``[n_facts]``.

    Raises:
        FactError: a fact cannot be encoded; names it.
        UnsupportedModelError: the model is none that the engine knows.
        UserError: an option has a value that is not allowed, or neurons are given under a key that
            is no fact's id.
        TypeError, ValueError: neurons that are not integers ``[n, 2]``, not distinct, not the
            model's, or both suppressed and enhanced.

    Example:
        >>> import dkn_engine as dkn
        >>> model, tokenizer = dkn.load_model("demo")
        >>> fact = ("The capital of France is", "Paris")
        >>> dkn.answer_probability(model, tokenizer, fact).round(2)
        array([0.77])
        >>> neurons = [(19, 606), (19, 1133), (20, 1188)]  # (layer, index)
        >>> dkn.answer_probability(model, tokenizer, fact, suppress=neurons).round(2)
        array([0.61])
    """
    require_word("positions", positions, get_args(Positions))
    require_word("backend", backend, get_args(Backend))
    config = facts_config_of(model, facts_config or FactsConfig())
    facts = fact_list(facts, config)
    require_ids("suppress", suppress, facts)
    require_ids("enhance", enhance, facts)
    layout = find_layout(model)
    table = means_table(means, layout)
    found, said = np.empty(len(facts)), False
    for start in range(0, len(facts), _CHUNK):
        chunk = facts[start : start + _CHUNK]
        sequences = [
            encode_sequence(model, tokenizer, f.prompt, f.answer, config=config, fact_id=f.id)
            for f in chunk
        ]
        prompts = Prompts(
            model, layout, sequences, positions=positions, backend=backend, warn=not said
        )
        said |= prompts.stands_in
        for i, fact in enumerate(chunk):
            off = edits.suppress(neurons_of_fact(suppress, fact.id), table)
            edit = edits.combine(off, edits.enhance(neurons_of_fact(enhance, fact.id), factor))
            found[start + i] = prompts.probabilities([edit], [i])[0, 0]
    return found


def require_word(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse an option's value that is none of the allowed words."""
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def neurons_of_fact(neurons: Neurons, fact_id: str) -> ArrayLike:
    """Those given for one fact; none where there are none for it."""
    found = neurons.get(fact_id) if isinstance(neurons, Mapping) else neurons
    return [] if found is None else found


def require_ids(name: str, neurons: Neurons, facts: Sequence[Fact]) -> None:
    """Refuse keys that are no fact's id: their neurons would be left alone without a word."""
    if not isinstance(neurons, Mapping):
        return
    ids = [fact.id for fact in facts]
    known = set(ids)
    odd = [key for key in neurons if key not in known]
    if odd:
        some = ", ".join(map(repr, ids[:3]))
        raise UserError(
            f"{name} must be neurons [n, 2] (layer, index), or such neurons by fact id; got the "
            f"key {odd[0]!r}, which is the id of none of the {len(ids)} facts (the first: {some})"
        )


def means_table(means: ArrayLike | None, layout: Layout) -> NDArray[np.float64] | None:
    """Means ``[L, F]`` of the model's shape, as float64; None where none are given."""
    if means is None:
        return None
    table = np.asarray(means, dtype=np.float64)
    expected = (layout.n_layers, layout.width)
    if table.shape != expected:
        raise ValueError(f"means must be {list(expected)}; got {list(table.shape)}")
    return table


@contextlib.contextmanager
def intervene(
    model: nn.Module,
    neurons: ArrayLike,
    *,
    factor: float = 0.0,
    means: ArrayLike | None = None,
    on: On = "activations",
    site: Site = "post",
) -> Iterator[None]:
    """Change MLP neurons in every forward pass of the block, at every position.

    Calls of the engine on this model in other threads wait for the end of the block; own forwards
    of other threads do not, and see the change. Interventions that overlap in one thread (asyncio
    tasks on one model) act together, whatever the order in which they end: give each its turn.

    Args:
        model: a language model of transformers that the engine takes; as it was, bit for bit, when
            the block ends.
        neurons: int ``[n, 2]`` (layer, index), distinct.
        factor: activations are multiplied by it; 0 suppresses.
        means: real ``[L, F]``; activations become these instead (``factor`` is not read).
        on: ``activations`` by hooks, or weights multiplied by ``factor`` in place.
            ``output_weights`` (also spelt ``weights``): the neurons' rows of the down projection,
            the same as their activations. ``input_and_output_weights``: those, and their rows and
            biases of the projection into the non-linearity (the gate of a gated MLP), as
            :func:`dkn_engine.analysis.robustness` does; the same at factor 0 only.
        site: ``post``, activations at the input of the down projection; ``pre``, before the
            non-linearity (of a gated MLP the gate projection's output), where EleutherAI's
            ``knowledge-neurons`` and the published code enhance.

    Raises:
        UnsupportedModelError: the model is none that the engine knows, its
            non-linearity is no module or one that layers share (``pre``), or nothing would be
            changed: its weights are computed anew at each forward, or (in the block) its MLP does
            not run the changed projection (or its non-linearity).
        TypeError, ValueError: neurons or means of the wrong form; ``means`` with ``weights``.
        UserError: ``on`` or ``site`` is another word; ``pre`` with ``weights``.

    Example:
        >>> import dkn_engine as dkn
        >>> model, tokenizer = dkn.load_model("demo")
        >>> tokens = tokenizer("The capital of France is", return_tensors="pt")
        >>> with dkn.intervene(model, [(19, 606), (20, 1188)], factor=0.0):
        ...     word = model(**tokens).logits[0, -1].argmax()
        >>> tokenizer.decode(word)
        ' Paris'
    """
    require_word("on", on, get_args(On))
    require_word("site", site, get_args(Site))
    if on != "activations" and site != "post":
        raise UserError(
            f"site must be 'post' with on={on!r}; got {site!r}: weights have no activations in "
            "front of the non-linearity; use on='activations'"
        )
    with locked(model), _changed(model, neurons, factor, means, on, site):
        yield


@contextlib.contextmanager
def _changed(
    model: nn.Module,
    neurons: ArrayLike,
    factor: float,
    means: ArrayLike | None,
    on: str,
    site: str,
) -> Iterator[None]:
    layout = find_layout(model)
    require_site(layout, site)
    if site == "pre":
        require_own_act(layout, site)
    table = means_table(means, layout)
    edit = edits.enhance(neurons, factor) if table is None else edits.suppress(neurons, table)
    edits.require_inside([edit], layout)
    if on != "activations":
        if table is not None:
            raise ValueError(f"means must be None with on={on!r}; got a table")
        with scaled_weights(layout, neurons, factor, _WEIGHTS[on]):
            yield
        return
    handles: list[RemovableHandle] = []
    with hooks(handles), experts_shown(model):
        for layer, layer_edit in edits.by_layer([edit]).items():
            handles += _everywhere(layout, layer, layer_edit, site)
        yield


def _everywhere(
    layout: Layout, layer: int, edit: edits.LayerEdit, site: str
) -> list[RemovableHandle]:
    """Hooks that apply an edit at every position, and refuse a layer in which it found no use."""
    module = layout.mlps[layer].site_module(site)
    return [
        *refuse_unless_run(layout, layer, [module]),
        module.register_forward_pre_hook(edits.changing(edit, lambda x: x.unsqueeze(-2))),
    ]
