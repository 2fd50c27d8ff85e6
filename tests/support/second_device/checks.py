"""What runs on two devices that are none, as ``python -m``; each check's outcome as a line of JSON.

The same model is asked as a whole on the CPU, as a whole on a device, split between two, and split
with a layer offloaded besides. Mixed devices raise there (see ``device.cpp``).
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import accelerate
import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.analysis import robustness
from dkn_engine.analysis.experiments.evolvability.finetune import finetuned
from dkn_engine.attribution.baselines import shared_masked_baselines
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.compat import KnowledgeNeurons
from dkn_engine.config import AttributionConfig, Config, FilterConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import enhance, suppress
from dkn_engine.degeneracy.objectives import Objective
from dkn_engine.degeneracy.questions import Asked, AskedSlopes
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.contexts import build_contexts
from dkn_engine.forward.patched_rows import RowEngine
from dkn_engine.forward.prefill import prefill
from dkn_engine.models.connections import layer_weights
from dkn_engine.models.fingerprint import model_fingerprint, model_traits
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from tests.support.second_device import load
from tests.support.tiny import FAMILIES, MASK_ID, N_LAYERS, relative_error, sequences, tiny
from tests.support.tiny_encoders import ENCODERS, masked, tiny_encoder
from tests.support.tiny_experts import EXPERTS, tiny_experts
from tests.support.words import text, words_tokenizer

# The same operations on the same numbers: what differs is the order of sums.
FLOAT64 = 1e-10
PLACES = ("one", "split", "offloaded")
NEURONS = np.array([[0, 1], [1, 3], [1, 4], [2, 5]], np.int32)
KNOWN = Config(filter=FilterConfig(min_probability=0.0, require_rank_1=False, n_random=2))
FACTS = [
    dkn.Fact(str(i), text(s.ids[: s.n_prompt]), text(s.targets[:1]), relation="r")
    for i, s in enumerate(sequences())
]


def made(name: str) -> Any:
    if name in EXPERTS:
        return tiny_experts(name)
    return tiny(name) if name in FAMILIES else tiny_encoder(name)


def layers_of(name: str) -> str:
    if name in EXPERTS:
        return "model.layers"
    return (FAMILIES | ENCODERS)[name].down.partition(".{}")[0]


def model_on(name: str, place: str) -> Any:
    """``split``: layers above the first, and the norm behind them, on the second device."""
    model = made(name)
    if place == "cpu":
        return model
    if place == "one":
        model = model.to("two:0")
        model.tie_weights()  # which torch unties on devices that it does not know
        return model
    layers = layers_of(name)
    places = {f"{layers}.{i}": f"two:{min(i, 1)}" for i in range(N_LAYERS)}
    places |= beside(model, layers)
    if place == "offloaded":
        places[f"{layers}.1"] = "cpu"
    return accelerate.dispatch_model(model, places, main_device="two:0")


def beside(module: Any, layers: str, path: str = "") -> dict[str, str]:
    """Where everything but the layers is: norms on the second device, the rest on the first."""
    found: dict[str, str] = {}
    for name, child in module.named_children():
        where = f"{path}.{name}".lstrip(".")
        if layers.startswith(f"{where}."):
            found |= beside(child, layers, where)
        elif where != layers:
            found[where] = "two:1" if name.endswith(("norm", "ln_f")) else "two:0"
    return found


@cache
def here(measure: Callable[..., Any], *arguments: str) -> Any:
    """What a measurement gives on the CPU: once, for all the places that are compared with it."""
    return measure("cpu", *arguments)


def scores_of(place: str, name: str, site: str, baseline: str, method: str) -> Any:
    model = model_on(name, place)
    options: Any = {"site": site, "baseline": baseline, "method": method}
    some = sequences()
    if name in EXPERTS:  # many small operators for each token
        some = some[:2]
    if name in ENCODERS:
        some = [masked(4, 1, 2), masked(3, 2, 2, seed=1)]
    config = AttributionConfig(**options)
    return attribute_chunk(model, find_layout(model), some, config, mask_id=MASK_ID)


def attribution(place: str, name: str, *options: str) -> None:
    own, found = here(scores_of, name, *options), scores_of(place, name, *options)
    assert found.path == own.path
    assert relative_error(found.scores, own.scores) < FLOAT64
    assert np.allclose(found.probability, own.probability, rtol=FLOAT64)


def baselines_of(place: str, name: str) -> Any:
    model = model_on(name, place)
    layout = find_layout(model)
    contexts = build_contexts(sequences(), layout.device)
    with guest(model, grad=False):
        clean = prefill(model, layout, contexts)
        rows = RowEngine(model, layout, contexts, clean, "auto")
        return shared_masked_baselines(rows, "post", MASK_ID, 4096).cpu()


def shared_prefixes(place: str, name: str) -> None:
    assert relative_error(baselines_of(place, name), here(baselines_of, name)) < FLOAT64


def edited_numbers(place: str, name: str, positions: str) -> list[Any]:
    model = model_on(name, place)
    some = [suppress(NEURONS), enhance(NEURONS[:2], 3.0), suppress(NEURONS[:0])]
    closed, gates = suppress(NEURONS), np.random.default_rng(0).random((3, len(NEURONS)))
    options: Any = {"positions": positions, "objective": Objective("logit_difference")}
    against = [replace(one, against=tuple(sequences()[:1])) for one in sequences()]
    prompts = Prompts(model, find_layout(model), against, **options)
    (slopes,) = prompts.gate_slopes([AskedSlopes(2, closed, gates)])
    asked = (slopes, prompts.outcomes(some))
    ((_, read),) = prompts.with_objective([Asked(some, range(3), objective=True)])
    return [*asked[0], *asked[1], read, prompts.gated_activations(2, closed, gates)]


def edits(place: str, name: str, positions: str) -> None:
    both = here(edited_numbers, name, positions), edited_numbers(place, name, positions)
    for own, found in zip(*both, strict=True):
        assert np.allclose(found, own, rtol=FLOAT64, atol=1e-15)


def results_of(place: str, name: str) -> Any:
    return dkn.find_dkns(model_on(name, place), words_tokenizer(), FACTS, KNOWN)


def find(place: str, name: str) -> None:
    require_equal_results(results_of(place, name), here(results_of, name))


def require_equal_results(found: Any, own: Any) -> None:
    for a, b in zip(own, found, strict=True):
        assert b.status == "ok"
        assert np.array_equal(a.neurons, b.neurons)
        assert np.allclose(a.subset_probabilities, b.subset_probabilities, rtol=FLOAT64)
        groups = ([c.neurons.tolist() for c in r.components] for r in (a, b))
        assert next(groups) == next(groups)


def numbers_of_weights(place: str, name: str) -> tuple[Any, ...]:
    model = model_on(name, place)
    p = []
    for on in ("output_weights", "input_and_output_weights"):
        with dkn.intervene(model, NEURONS, factor=0.5, on=on):
            p.append(dkn.answer_probability(model, words_tokenizer(), FACTS))
    rows = layer_weights(model, dkn.TopologyConfig(fold_norm=True))
    return p, rows, model_fingerprint(model), model_traits(model)


def weights(place: str, name: str) -> None:
    """Interventions on weights, rows that connections read, and what a run knows a model by."""
    own, found = here(numbers_of_weights, name), numbers_of_weights(place, name)
    assert np.allclose(found[0], own[0], rtol=FLOAT64)
    for a, b in zip(own[1], found[1], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert found[2:] == own[2:]


def results_and_table(place: str, name: str) -> Any:
    model = model_on(name, place)
    results = dkn.find_dkns(model, words_tokenizer(), FACTS, KNOWN)
    table = robustness(model, words_tokenizer(), FACTS, results, config=KNOWN)
    return results, table.samples


def find_and_tables(place: str, name: str) -> None:
    """Also robustness, which perturbs, suppresses and enhances."""
    own, found = here(results_and_table, name), results_and_table(place, name)
    require_equal_results(found[0], own[0])
    for a, b in zip(own[1], found[1], strict=True):
        assert (a.unit, a.group, a.figure, a.conditions) == (
            b.unit,
            b.group,
            b.figure,
            b.conditions,
        )
        assert np.allclose(b.value, a.value, rtol=1e-8, equal_nan=True)


def answers_of_eleuthers_class(place: str, name: str) -> tuple[Any, dict[str, Any]]:
    prompt, answer, neurons = "w5 w9 w11", "w13 w14", NEURONS.tolist()
    kn = KnowledgeNeurons(model_on(name, place), words_tokenizer())
    verbs: list[Any] = [kn.suppress_knowledge, kn.enhance_knowledge]
    if place != "offloaded":
        verbs.append(kn.edit_knowledge)
    changed = {verb.__name__: verb(prompt, answer, neurons)[0] for verb in verbs}
    return kn.get_scores(prompt, answer, steps=3).cpu(), changed


def eleuthers_class(place: str, name: str) -> None:
    own = here(answers_of_eleuthers_class, name)
    found = answers_of_eleuthers_class(place, name)
    assert relative_error(found[0], own[0]) < FLOAT64
    assert len(found[1]) == 2 + (place != "offloaded")
    for verb, there in found[1].items():
        for when in ("before", "after"):
            p = own[1][verb][when]["gt_prob"]
            assert np.isclose(there[when]["gt_prob"], p, rtol=1e-8)


def trained_probability(place: str, name: str) -> Any:
    model = model_on(name, place)
    with finetuned(model, words_tokenizer(), FACTS, NEURONS, steps=2, lr=1e-2):
        return dkn.answer_probability(model, words_tokenizer(), FACTS)


def training(place: str, name: str) -> None:
    assert np.allclose(trained_probability(place, name), here(trained_probability, name), rtol=1e-8)


def mixing() -> None:
    """Operators of several devices raise, and of indices on the host or of numbers do not."""
    a, b = torch.arange(4.0, device="two:0"), torch.arange(4.0, device="two:1")
    host, number = torch.arange(4), torch.tensor(2.0)
    mixed: list[Callable[[], object]] = [
        lambda: a + b,
        lambda: torch.cat([a, b]),
        lambda: torch.where(a > 1, a, b),
        lambda: a * torch.arange(4.0),
        lambda: a[b.long()],
        lambda: a.index_put_((a.long(),), b),
        lambda: torch.stack([a.sum(), b.sum()]),
    ]
    for operation in mixed:
        with pytest.raises(RuntimeError):
            operation()
    assert (a * number)[host].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert (a.to("two:1") + b).device == torch.device("two:1")


def from_a_folder(below: str) -> None:
    """As ``from_pretrained`` with a ``device_map`` splits a model."""
    own = tiny("llama")
    with tempfile.TemporaryDirectory() as folder:
        own.save_pretrained(folder)
        places = {f"model.layers.{i}": f"two:{min(i, 1)}" for i in range(N_LAYERS)}
        places |= beside(own, "model.layers") | {"model.layers.1": below}
        found = type(own).from_pretrained(folder, device_map=places, dtype=torch.float64)
        config = AttributionConfig()
        scores = [
            attribute_chunk(m, find_layout(m), sequences(), config, mask_id=MASK_ID).scores
            for m in (own, found)
        ]
        assert relative_error(scores[1], scores[0]) < FLOAT64
        with dkn.intervene(found, NEURONS, factor=0.5, on="output_weights"):
            changed = dkn.answer_probability(found, words_tokenizer(), FACTS)
        with dkn.intervene(own, NEURONS, factor=0.5, on="output_weights"):
            assert np.allclose(
                changed, dkn.answer_probability(own, words_tokenizer(), FACTS), rtol=FLOAT64
            )
        assert model_fingerprint(found) == model_fingerprint(own)


def a_layer_in_pieces() -> None:
    """Refused, naming the layer and its devices."""
    model = tiny("llama")
    places = dict.fromkeys(beside(model, "model.layers.1"), "two:0")
    places |= {f"model.layers.1.{n}": "two:0" for n, _ in model.model.layers[1].named_children()}
    places["model.layers.1.mlp"] = "two:1"
    model = accelerate.dispatch_model(model, places, main_device="two:0")
    words = r"\[1\]: expected each decoder layer as a whole on one device; found .* on two:1"
    with pytest.raises(UnsupportedModelError, match=words):
        find_layout(model)


@cache
def checks() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {"mixing": mixing, "pieces": a_layer_in_pieces}

    def add(check: Callable[..., None], *arguments: str) -> None:
        found[" ".join((check.__name__, *arguments))] = partial(check, *arguments)

    for below in ("two:1", "cpu"):
        add(from_a_folder, below)
    for place in PLACES:
        # Where a model is one device's, GPT-2's layout goes no other way than LLaMA's: both run by
        # rows, and what would mix devices does so as well where the model is split.
        by_rows = ("llama",) if place == "one" else ("llama", "gpt2")
        for name in (*by_rows, "gptj"):
            add(attribution, place, name, "post", "masked", "integrated_gradients")
            add(edits, place, name, "answer")
        add(attribution, place, "llama", "pre", "zero", "integrated_gradients")
        add(attribution, place, "bert", "post", "masked", "integrated_gradients")
        add(edits, place, "llama", "all")
        for name, method in (("llama", "grad_drop"), ("gptj", "grad_drop"), ("llama", "relp")):
            add(attribution, place, name, "post", "masked", method)
        add(find_and_tables, place, "llama")
        for name in by_rows:
            if name != "llama":
                add(find, place, name)
            add(eleuthers_class, place, name)
            add(shared_prefixes, place, name)
            add(weights, place, name)
        if place != "offloaded":
            for name in ("mixtral", "deepseek_v3") if place == "split" else ("mixtral",):
                add(attribution, place, name, "post", "masked", "integrated_gradients")
                add(edits, place, name, "answer")
            add(training, place, "llama")
    return found


def main() -> None:
    load.load()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    for known in (".*fork_rng", ".*full forward passes", ".*are offloaded"):
        warnings.filterwarnings("ignore", message=known)
    for name, check in checks().items():
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        try:
            check()
            problem = None
        except (Exception, pytest.fail.Exception):
            problem = traceback.format_exc()
        sys.stdout.write(json.dumps([name, problem]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
