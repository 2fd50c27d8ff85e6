"""Neurons found elsewhere, through all that a run does once it has located its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkn_engine.config import Config
from dkn_engine.degeneracy.interventions import Neurons, neurons_of_fact, require_ids
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.models.layout import find_layout
from dkn_engine.models.masked_answers import config_of
from dkn_engine.neurons import as_distinct_neurons
from dkn_engine.results import Results
from dkn_engine.run.pipeline import prepare
from dkn_engine.run.stages import Stages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from dkn_engine.models.layout import Layout


def examine(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    neurons: Neurons,
    config: Config | None = None,
) -> Results:
    """Components, lattice, DKN and controls of given neurons in place of located ones.

    What :func:`dkn_engine.find_dkns` does, without attribution: the neurons are clustered by their
    connection weights, their components suppressed, and random neurons, paraphrases and other facts
    compared. Their scores are NaN.

    Args:
        model: a language model of transformers that the engine takes; it is left as it was found.
        tokenizer: the model's.
        facts: one or more; see :func:`dkn_engine.find_dkns`.
        neurons: int ``[n, 2]`` (layer, index), distinct; the same for all facts, or by fact id.
            Only clusterings of the released code read their order, the best first.
        config: all choices; None for the defaults.

    Returns:
        A result a fact, in their order; ``examine(...)[0]`` of a single one.

    Raises:
        UnsupportedModelError: the model is none that the engine knows.
        TypeError, FactError: ``facts`` are none, or a mapping among them does not make one.
        UserError: neurons are given under a key that is no fact's id, or an option does not fit.
        TypeError, ValueError: neurons that are not integers ``[n, 2]``, not distinct or not the
            model's.
    """
    config = config_of(model, config or Config())
    every = fact_list(facts, config.facts)
    require_ids("neurons", neurons, every)
    layout = find_layout(model)
    located = {f.id: _of_model(neurons_of_fact(neurons, f.id), layout) for f in every}
    run = prepare(every, config)
    stages = Stages(model, tokenizer, run.sample, config)
    size = config.facts_per_chunk
    chunks = (every[start : start + size] for start in range(0, len(every), size))
    return Results(r for chunk in chunks for r in stages.results(chunk, located))


def _of_model(neurons: ArrayLike, layout: Layout) -> NDArray[np.int32]:
    array = as_distinct_neurons(neurons)
    if (found := layout.missing(array)) is not None:
        raise ValueError(found)
    return array
