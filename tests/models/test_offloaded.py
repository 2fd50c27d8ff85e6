"""Models whose weights wait on the CPU or a disk: the same numbers, and the model as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.analysis.experiments.evolvability.finetune import finetuned
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.connections import layer_weights
from dkn_engine.models.devices import named_weights
from dkn_engine.models.fingerprint import model_fingerprint, model_traits
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import FLOAT64, attributed, fixed
from tests.support.guests import Boom, broken
from tests.support.tiny import N_LAYERS, down_of, relative_error, sequences, tiny
from tests.support.tiny_experts import tiny_experts
from tests.support.words import text, words_tokenizer

FACTS = [
    dkn.Fact(str(i), text(s.ids[: s.n_prompt]), text(s.targets[:1]))
    for i, s in enumerate(sequences())
]
NEURONS = np.array([[0, 1], [1, 3], [1, 4], [2, 5]])


def layers_on(last: str) -> dict[str, str]:
    """All on the CPU but the last layer."""
    parts = ["embed_tokens", "norm", "rotary_emb", *(f"layers.{i}" for i in range(N_LAYERS))]
    places = dict.fromkeys([*(f"model.{part}" for part in parts), "lm_head"], "cpu")
    return places | {f"model.layers.{N_LAYERS - 1}": last}


def offloaded(name: str, where: str, folder: Path) -> Any:
    model = tiny(name)
    if where == "cpu":
        return accelerate.cpu_offload(model, execution_device="cpu")
    if where == "disk":
        return accelerate.disk_offload(model, folder, execution_device="cpu")
    if where == "loaded":  # as from_pretrained offloads: the checkpoint's own file is read
        model.save_pretrained(folder)
        options = {"device_map": layers_on("disk"), "offload_folder": folder / "weights"}
        return type(model).from_pretrained(folder, dtype=torch.float64, **options)
    return accelerate.dispatch_model(
        model, layers_on("disk"), main_device="cpu", offload_dir=folder
    )


# GPT-2 has Conv1D projections with biases, and a head that is its embeddings.
@pytest.fixture(
    scope="module",
    params=[
        ("llama", "cpu"),
        ("llama", "disk"),
        ("llama", "a layer"),
        ("llama", "loaded"),
        ("gpt2", "disk"),
    ],
    ids=lambda pair: "-".join(pair),
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The family's name, its model, and the same offloaded."""
    name, where = request.param
    folder = tmp_path_factory.mktemp("weights")
    model, plain = offloaded(name, where, folder), tiny(name)
    if where == "loaded":  # with what its configuration has from its file
        plain = type(plain).from_pretrained(folder, dtype=torch.float64)
    return name, plain, model


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are offloaded", category=UserWarning)
        yield


@pytest.mark.parametrize("site", ["post", "pre"])
def test_scores_are_those_of_the_model_in_memory(pair: Any, site: str) -> None:
    name, plain, model = pair
    own, found = (attributed(name, m, fixed(site=site)) for m in (plain, model))
    assert found.path == "sweep"
    assert relative_error(found.scores, own.scores) < FLOAT64
    assert np.allclose(found.probability, own.probability, rtol=FLOAT64)


def test_scores_without_rows_are_the_same(tmp_path: Path) -> None:
    own = attributed("gptj", tiny("gptj"), fixed())
    found = attributed("gptj", offloaded("gptj", "disk", tmp_path), fixed())
    assert found.path == own.path != "sweep"
    assert relative_error(found.scores, own.scores) < FLOAT64


def test_find_gives_the_same_results(pair: Any) -> None:
    _, plain, model = pair
    settings = dkn.Config(
        filter=dkn.FilterConfig(min_probability=0.0, require_rank_1=False, n_random=2)
    )
    own, found = (dkn.find_dkns(m, words_tokenizer(), FACTS, settings) for m in (plain, model))
    for a, b in zip(own, found, strict=True):
        assert b.status == "ok"
        assert np.array_equal(a.neurons, b.neurons)
        assert np.allclose(a.subset_probabilities, b.subset_probabilities, rtol=FLOAT64)
        assert [c.neurons.tolist() for c in a.components] == [
            c.neurons.tolist() for c in b.components
        ]


@pytest.mark.parametrize("on", ["activations", "output_weights", "input_and_output_weights"])
def test_interventions_act_and_end(pair: Any, on: Any) -> None:
    _, plain, model = pair
    before = dkn.answer_probability(model, words_tokenizer(), FACTS)
    found = []
    for m in (plain, model):
        with dkn.intervene(m, NEURONS, factor=0.5, on=on):
            found.append(dkn.answer_probability(m, words_tokenizer(), FACTS))
    assert np.allclose(found[1], found[0], rtol=FLOAT64)
    assert not np.allclose(found[1], before, rtol=1e-3)
    assert np.array_equal(dkn.answer_probability(model, words_tokenizer(), FACTS), before)


def test_interventions_on_weights_that_overlap_end_in_any_order(tmp_path: Path) -> None:
    model = offloaded("llama", "disk", tmp_path)

    def asked() -> Any:
        return dkn.answer_probability(model, words_tokenizer(), FACTS)

    first, second = (
        dkn.intervene(model, n, factor=0.5, on="output_weights") for n in (NEURONS, NEURONS[1:])
    )
    before = asked()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    alone = tiny("llama")
    with dkn.intervene(alone, NEURONS[1:], factor=0.5, on="output_weights"):
        expected = dkn.answer_probability(alone, words_tokenizer(), FACTS)
    assert np.allclose(asked(), expected, rtol=FLOAT64)
    second.__exit__(None, None, None)
    assert np.array_equal(asked(), before)


def test_rows_and_norms_that_connections_read_are_the_same(pair: Any) -> None:
    _, plain, model = pair
    config = dkn.TopologyConfig(fold_norm=True)
    for own, found in zip(layer_weights(plain, config), layer_weights(model, config), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(own, found, strict=True))


def test_a_run_takes_it_for_the_model_in_memory(pair: Any) -> None:
    _, plain, model = pair
    assert model_fingerprint(model) == model_fingerprint(plain)
    assert model_traits(model) == model_traits(plain)


def left(model: Any) -> Any:
    """What a guest must leave: weights, where they are, flags and hooks."""
    return (
        [(name, w.detach().numpy().tobytes()) for name, w in named_weights(model)],
        [(name, str(p.device), p.requires_grad) for name, p in model.named_parameters()],
        [m.training for m in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [vars(m).get("_hf_hook") for m in model.modules()],
    )


@pytest.mark.parametrize("raises", [False, True])
def test_the_model_is_left_as_it_was(pair: Any, raises: bool) -> None:
    name, _, model = pair
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    down_of(name, model, 1).train()
    before = left(model)
    if raises:
        with broken(down_of(name, model, 2)), pytest.raises(Boom):
            attributed(name, model, fixed())
    else:
        attributed(name, model, fixed())
        with dkn.intervene(model, NEURONS, factor=2.0, on="output_weights"):
            pass
    assert left(model) == before


def test_one_warning_says_that_it_takes_time(tmp_path: Path) -> None:
    model = offloaded("llama", "disk", tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            dkn.answer_probability(model, words_tokenizer(), FACTS)
    (one,) = caught
    assert str(one.message) == (
        "LlamaForCausalLM: weights of 31 modules are offloaded ('model.embed_tokens' and so on) "
        "and read anew in every pass: slower, same results"
    )


def test_weights_that_no_hook_of_their_own_reads_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        never_loaded = type(tiny("llama"))(tiny("llama").config)
    with_parents = accelerate.dispatch_model(
        tiny("llama"),
        layers_on("disk"),
        main_device="cpu",
        offload_dir=tmp_path,
        preload_module_classes=["LlamaMLP"],
    )
    for model, found in (
        (never_loaded, "found 'model.embed_tokens.weight' without its data"),
        (with_parents, "found 'model.layers.2.mlp.gate_proj.weight' without its data"),
    ):
        with pytest.raises(UnsupportedModelError, match=found):
            find_layout(model)


def test_experts_are_refused(tmp_path: Path) -> None:
    model = accelerate.disk_offload(tiny_experts("mixtral"), tmp_path, execution_device="cpu")
    with pytest.raises(UnsupportedModelError, match="in memory; found 'gate' offloaded"):
        find_layout(model)


def test_training_is_refused(tmp_path: Path) -> None:
    model = offloaded("llama", "disk", tmp_path)
    training = finetuned(model, words_tokenizer(), FACTS, NEURONS, steps=1, lr=1e-3)
    with (
        pytest.raises(UnsupportedModelError, match="fine-tuning needs weights in memory"),
        training,
    ):
        pass
