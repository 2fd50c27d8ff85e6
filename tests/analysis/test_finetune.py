"""Restricted fine-tuning against plain training with masked gradients; what must not change."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine import Fact
from dkn_engine.analysis.experiments.evolvability import unchanged_layers
from dkn_engine.analysis.experiments.evolvability.answers import read_answers
from dkn_engine.analysis.experiments.evolvability.finetune import Diverged, finetuned
from dkn_engine.analysis.experiments.evolvability.row_gradients import RowGradients
from dkn_engine.analysis.experiments.evolvability.trainable import standing_in, trainable_blocks
from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError, RunDirectoryError, UnsupportedModelError, UserError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from tests.support.guests import Boom, broken, mixed_model, state
from tests.support.tiny import WIDTH, down_of, tiny
from tests.support.words import text, words_tokenizer

NEURONS = np.array([[0, 3], [2, 39], [0, 11], [2, 0], [2, 17]])
FACTS = [
    Fact("one", text([5, 6, 7]), text([8])),
    Fact("two", text([9, 10, 11, 12, 13]), text([14, 15])),
    Fact("three", text([20, 21]), text([22, 23, 24])),
    Fact("four", text([30, 31, 32]), text([33])),
]
# Rows (0) or columns (1) of a layer's parameters that belong to neuron i; F more for a second half.
PARTS: dict[str, dict[str, tuple[int, ...]]] = {
    "llama": {"gate_proj.weight": (0,), "up_proj.weight": (0,), "down_proj.weight": (1,)},
    "gpt2": {"c_fc.weight": (1,), "c_fc.bias": (0,), "c_proj.weight": (0,)},
    "phi3": {"gate_up_proj.weight": (0, WIDTH), "down_proj.weight": (1,)},
    "gpt_neox": {
        "dense_h_to_4h.weight": (0,),
        "dense_h_to_4h.bias": (0,),
        "dense_4h_to_h.weight": (1,),
    },
    "opt": {"fc1.weight": (0,), "fc1.bias": (0,), "fc2.weight": (1,)},
    # It adds to what its down projection gives in place.
    "falcon": {"dense_h_to_4h.weight": (0,), "dense_4h_to_h.weight": (1,)},
}


def masks(name: str, model: Any, neurons: Any) -> list[torch.Tensor]:
    """For each parameter, where the neurons' weights are."""
    found = []
    for path, parameter in model.named_parameters():
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        numbers = [int(part) for part in path.split(".") if part.isdigit()]
        part = next((p for p in PARTS[name] if path.endswith("." + p)), None)
        if part is not None and numbers and "attn" not in path:
            axis, *second = PARTS[name][part]
            mine = [i for layer, i in neurons if layer == numbers[0]]
            for i in mine + [i + s for s in second for i in mine]:
                mask.select(axis, i).fill_(True)
        found.append(mask)
    return found


def encode(model: Any, facts: Sequence[Fact] = FACTS) -> list[AnswerSequence]:
    tokenizer, config = words_tokenizer(), FactsConfig()
    return [encode_sequence(model, tokenizer, f.prompt, f.answer, config=config) for f in facts]


def mean_loss(model: Any, sequences: Sequence[AnswerSequence]) -> torch.Tensor:
    """One sequence at a time, all logits: no padding, no batches."""
    parts = []
    for s in sequences:
        log_p = model(torch.tensor([s.ids])).logits[0].log_softmax(-1)
        parts += [log_p[s.n_prompt - 1 + i, target] for i, target in enumerate(s.targets)]
    return -torch.stack(parts).mean()


def plain_training(model: Any, where: list[torch.Tensor], steps: int, lr: float) -> list[float]:
    """AdamW on every parameter, whose gradients count only where they may."""
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    sequences, losses = encode(model), []
    for _ in range(steps):
        loss = mean_loss(model, sequences)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        for p, mask in zip(parameters, where, strict=True):
            assert p.grad is not None
            p.grad *= mask
        optimiser.step()
    return losses


def every(n_layers: int) -> list[tuple[int, int]]:
    return [(layer, i) for layer in range(n_layers) for i in range(WIDTH)]


@pytest.mark.parametrize("trainable", ["neurons", "upper", "mlp", "all"])
@pytest.mark.parametrize("name", PARTS)
def test_it_is_plain_training_that_leaves_the_rest_alone(name: str, trainable: str) -> None:
    model = tiny(name)
    start, other = copy.deepcopy(model), copy.deepcopy(model)
    sets = {"neurons": NEURONS, "upper": NEURONS[NEURONS[:, 0] > 0]}
    where = masks(name, model, sets.get(trainable, every(3)))
    if trainable == "all":
        where = [torch.ones_like(m) for m in where]
    losses = plain_training(other, where, steps=4, lr=0.01)
    chosen: Any = sets.get(trainable, trainable)
    with finetuned(model, words_tokenizer(), FACTS, chosen, steps=4, lr=0.01) as training:
        assert training.n_trainable == sum(int(m.sum()) for m in where) > 0
        assert training.n_state == 2 * training.n_trainable  # of AdamW: two moments a value
        # Both in float64: four steps of 0.01 carry its rounding, times 1 / 1e-8 where AdamW
        # divides by a gradient of nearly nothing.
        np.testing.assert_allclose(training.losses, losses, rtol=1e-9)
        compare = zip(
            model.parameters(), start.parameters(), other.parameters(), where, strict=True
        )
        for now, before, expected, mask in compare:
            assert torch.equal(now[~mask], before[~mask])
            torch.testing.assert_close(now, expected, rtol=0, atol=1e-9)
    assert all(map(torch.equal, model.parameters(), start.parameters()))


def trained_weights(
    model: Any, batch_size: int | None = None
) -> tuple[list[torch.Tensor], np.ndarray]:
    """The weights after four steps of neurons of the last layer, and the losses."""
    top = NEURONS[NEURONS[:, 0] == 2]
    with finetuned(
        model, words_tokenizer(), FACTS, top, steps=4, lr=0.01, batch_size=batch_size
    ) as training:
        return [p.detach().clone() for p in model.parameters()], training.losses


@pytest.mark.parametrize("batch_size", [None, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_below_the_trained_ones_run_once_for_facts_that_come_again(
    batch_size: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same weights, bit for bit, as where all layers run in every step."""
    model, runs = tiny("llama", dtype), []
    trained_weights(model, batch_size)  # which tries how the model reads lengths
    lowest = type(model.model.layers[0])
    forward = lowest.forward

    @functools.wraps(forward)  # so that the layer counts as plain
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(lowest, "forward", counted)
    weights, losses = trained_weights(model, batch_size)
    n_lowest = sum(layer is model.model.layers[0] for layer in runs)
    runs.clear()
    monkeypatch.setattr(unchanged_layers, "is_plain", lambda _layout: False)
    expected, expected_losses = trained_weights(model, batch_size)
    n_whole = sum(layer is model.model.layers[0] for layer in runs)
    assert n_lowest == (n_whole if batch_size == 3 else n_whole / 4)
    np.testing.assert_array_equal(losses, expected_losses)
    assert all(map(torch.equal, weights, expected))


def test_layers_that_are_not_all_that_the_next_reads_run_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, out: torch.Tensor) -> None:
        kept[:] = [out]

    def add(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        return out + (kept.pop() if kept else 0 * out)

    lower, upper = model.model.layers[0], model.model.layers[2]
    with lower.register_forward_hook(keep), upper.register_forward_hook(add):
        expected, losses = trained_weights(model)
        monkeypatch.setattr(unchanged_layers, "is_plain", lambda _layout: True)
        weights, again = trained_weights(model)
    np.testing.assert_array_equal(again, losses)
    assert all(map(torch.equal, weights, expected))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tied_embeddings_are_one_parameter(name: str) -> None:
    model = tiny(name, tie_word_embeddings=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    other = copy.deepcopy(model)
    losses = plain_training(other, [torch.ones(1)] * len(list(model.parameters())), 3, 0.01)
    with finetuned(model, words_tokenizer(), FACTS, "all", steps=3, lr=0.01) as training:
        assert training.n_trainable == sum(p.numel() for p in model.parameters())
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        np.testing.assert_allclose(training.losses, losses, rtol=1e-9)
        torch.testing.assert_close(
            model.get_output_embeddings().weight,
            other.get_output_embeddings().weight,
            rtol=0,
            atol=1e-9,
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite", "opt", "gptj", "mistral"])
def test_padding_changes_nothing(name: str) -> None:
    model = tiny(name)
    sequences = encode(model)
    with torch.no_grad():
        expected = mean_loss(model, sequences).item()
    with finetuned(model, words_tokenizer(), FACTS, NEURONS, steps=1, lr=0.01) as training:
        assert training.losses[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_answers_are_those_of_greedy_decoding(name: str) -> None:
    model = tiny(name)
    said = []
    for s in encode(model):
        ids = list(s.ids[: s.n_prompt])
        for _ in s.targets:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        said.append(text(ids[s.n_prompt :]))
    # What the model says with an unknown token in it cannot be asked for.
    right = [
        f if "<unk>" in answer else Fact(f.id, f.prompt, answer)
        for f, answer in zip(FACTS, said, strict=True)
    ]
    assert any(f.answer == answer for f, answer in zip(right, said, strict=True))
    for facts in (FACTS, right, [*FACTS[:2], *right[2:]]):
        sequences = encode(model, facts)
        found = read_answers(model, sequences)
        hits = [f.answer == answer for f, answer in zip(facts, said, strict=True)]
        assert found.greedy.tolist() == hits
        with torch.no_grad():
            loss = [mean_loss(model, [s]).item() * len(s.targets) for s in sequences]
        np.testing.assert_allclose(found.probability, np.exp(-np.array(loss)), rtol=1e-10)


@pytest.mark.parametrize("trainable", ["neurons", "mlp", "all"])
@pytest.mark.parametrize("mode", ["plain", "inference_mode"])
def test_the_model_is_a_guest(trainable: str, mode: str) -> None:
    model = mixed_model("gpt2")
    before = state(model)
    chosen: Any = NEURONS if trainable == "neurons" else trainable
    with (
        torch.inference_mode(mode == "inference_mode"),
        finetuned(model, words_tokenizer(), FACTS, chosen, steps=2, lr=0.1),
    ):
        during = state(model)
    assert state(model) == before
    assert during["weights"] != before["weights"]
    before["grad mode"] = during["grad mode"]
    assert {**during, "weights": 0} == {**before, "weights": 0}


@pytest.mark.parametrize("trainable", ["neurons", "mlp"])
def test_a_callers_autocast_is_not_trained_under(trainable: str) -> None:
    """It keeps short copies of weights, which would never learn of a step."""
    chosen: Any = NEURONS if trainable == "neurons" else trainable
    losses = []
    for short in (False, True):
        model = tiny("llama", torch.float32)
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=short),
            finetuned(model, words_tokenizer(), FACTS, chosen, steps=4, lr=0.01) as training,
        ):
            assert torch.is_autocast_enabled("cpu") == short
            losses.append(training.losses.tolist())
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_the_model_is_restored_when_the_block_raises() -> None:
    model = mixed_model("llama")
    before = state(model)
    with (
        pytest.raises(Boom),
        finetuned(model, words_tokenizer(), FACTS, "all", steps=1, lr=0.1),
    ):
        raise Boom
    assert state(model) == before


def test_the_model_is_restored_when_training_raises() -> None:
    model = mixed_model("llama")
    before = state(model)
    for trainable in (NEURONS, "all"):
        with (
            broken(down_of("llama", model, 2)),
            pytest.raises(Boom),
            finetuned(model, words_tokenizer(), FACTS, trainable, steps=1, lr=0.1),
        ):
            pass
        assert state(model) == before

    def stop(*_: int) -> None:
        raise Boom

    with (
        pytest.raises(Boom),
        finetuned(model, words_tokenizer(), FACTS, "mlp", steps=2, lr=0.1, progress=stop),
    ):
        pass
    assert state(model) == before


@pytest.mark.parametrize("trainable", ["neurons", "mlp", "all"])
def test_the_models_own_parameters_are_never_written_to(trainable: str) -> None:
    model = tiny("llama", tie_word_embeddings=True)
    chosen: Any = NEURONS if trainable == "neurons" else trainable
    own = list(model.named_parameters(remove_duplicate=False))
    versions = [p._version for _, p in own]
    with finetuned(model, words_tokenizer(), FACTS, chosen, steps=2, lr=0.1):
        trained = dict(model.named_parameters(remove_duplicate=False))
        assert any(trained[name] is not p for name, p in own)
        assert (trained["lm_head.weight"] is own[0][1]) is (trainable != "all")
        assert trained["lm_head.weight"] is trained["model.embed_tokens.weight"]
    now = list(model.named_parameters(remove_duplicate=False))
    assert [name for name, _ in now] == [name for name, _ in own]
    assert all(a is b for (_, a), (_, b) in zip(now, own, strict=True))
    assert [p._version for _, p in now] == versions


@pytest.mark.parametrize("part", ["gate_proj", "down_proj"])
def test_gradients_go_through_hooks_that_change_a_projection(part: str) -> None:
    model = tiny("llama")
    model.model.layers[2].mlp.get_submodule(part).register_forward_hook(lambda *a: 1.5 * a[2])
    other = copy.deepcopy(model)
    losses = plain_training(other, masks("llama", model, NEURONS), steps=3, lr=0.01)
    with finetuned(model, words_tokenizer(), FACTS, NEURONS, steps=3, lr=0.01) as training:
        np.testing.assert_allclose(training.losses, losses, rtol=1e-9)


def test_a_weight_that_the_forward_does_not_read_is_refused() -> None:
    model = tiny("llama")
    mlp = model.model.layers[2].mlp
    copied = copy.deepcopy(mlp)
    mlp.register_forward_hook(lambda _module, args, _output: copied(*args))
    with (
        pytest.raises(UnsupportedModelError, match=r"layers\.2\.mlp.*: expected a weight"),
        finetuned(model, words_tokenizer(), FACTS, NEURONS, steps=1, lr=0.1),
    ):
        pass


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", PARTS)
def test_only_rows_get_gradients_where_that_is_the_same(name: str, plain: bool) -> None:
    """In float64, beside the gradient of each whole stand-in, from the second step on without it.

    A model with a hook of the user's keeps to the whole, in the first step and after it.
    """
    model = tiny(name)
    if not plain:
        down_of(name, model, 0).register_forward_hook(lambda *_: None)
    layout = find_layout(model)
    sequences = [
        encode_sequence(model, words_tokenizer(), f.prompt, f.answer, config=FactsConfig())
        for f in FACTS
    ]
    blocks = trainable_blocks(model, layout, NEURONS)
    with guest(model, grad=True), standing_in(model, blocks):
        rows = RowGradients(model, layout, blocks)
        with rows.followed():
            for step in range(2):
                mean_loss(model, sequences).backward()
                assert all((b.stand_in.grad is None) == (plain and step > 0) for b in blocks)
                if not step:
                    whole = [b.part(b.stand_in.grad) for b in blocks if b.stand_in.grad is not None]
                rows.take()
                for block, expected in zip(blocks, whole, strict=True):
                    assert expected.norm() > 0
                    torch.testing.assert_close(block.values.grad, expected, rtol=1e-9, atol=1e-15)
                    block.values.grad = None
        assert not any(b.values.requires_grad for b in blocks)


def test_a_weight_that_is_read_past_its_module_gets_its_whole_gradient() -> None:
    """As where a layer multiplies by both projections at once: no module has the output."""
    model = tiny("llama")
    mlp = model.model.layers[2].mlp

    def read(module: Any, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> Any:
        gate, up = (args[0] @ p.weight.T for p in (module.gate_proj, module.up_proj))
        return mlp.down_proj(torch.nn.functional.silu(gate) * up)

    blocks = trainable_blocks(model, find_layout(model), NEURONS)
    mine = [b for b in blocks if b.layer == 2]
    with guest(model, grad=True), standing_in(model, blocks):
        rows = RowGradients(model, find_layout(model), blocks)
        handle = mlp.register_forward_hook(read)  # after it was seen that nothing has a hook
        with rows.followed():
            for _ in range(2):
                model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1, 8].backward()
                whole = [b.part(b.stand_in.grad) for b in mine if b.stand_in.grad is not None]
                assert len(whole) >= 2
                rows.take()
                for block, expected in zip(mine[:2], whole, strict=False):
                    torch.testing.assert_close(block.values.grad, expected, rtol=0, atol=0)
                    block.values.grad = None
        handle.remove()


def weights(model: Any) -> dict[str, bytes]:
    return {n: p.detach().numpy().tobytes() for n, p in model.named_parameters()}


@pytest.mark.parametrize("trainable", ["neurons", "all"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_training_that_was_killed_goes_on(
    trainable: str, batch_size: int | None, tmp_path: Path
) -> None:
    model = tiny("gpt2", torch.float32)
    chosen: Any = NEURONS if trainable == "neurons" else trainable
    how: dict[str, Any] = {"steps": 7, "lr": 0.01, "batch_size": batch_size, "seed": 5}
    with finetuned(model, words_tokenizer(), FACTS, chosen, **how) as training:
        expected, losses = weights(model), training.losses
    how |= {"checkpoint": tmp_path / "run", "checkpoint_every": 2}

    def kill(done: int, _steps: int) -> None:
        if done == 5:
            raise Boom

    with (
        pytest.raises(Boom),
        finetuned(model, words_tokenizer(), FACTS, chosen, progress=kill, **how),
    ):
        pass
    assert len(list((tmp_path / "run").iterdir())) == 2  # one state and its index
    for expected_steps in ([5, 6, 7], [7]):  # goes on; then it is complete
        done: list[int] = []

        def count(n: int, _: int, done: list[int] = done) -> None:
            done.append(n)

        with finetuned(
            model,
            words_tokenizer(),
            FACTS,
            chosen,
            progress=count,
            **how,
        ) as training:
            assert weights(model) == expected
            assert training.losses.tolist() == losses.tolist()
            assert training.n_state == 2 * training.n_trainable
        assert done == expected_steps


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    model = tiny("gpt2", torch.float32)
    mine: dict[str, Any] = {"model": model, "facts": FACTS, "trainable": NEURONS}
    mine |= {"steps": 2, "lr": 0.01, "checkpoint": tmp_path, "seed": 0, "batch_size": None}

    def run(**change: Any) -> None:
        how = mine | change
        with finetuned(how.pop("model"), words_tokenizer(), how.pop("facts"), **how):
            pass

    run()
    others = {
        "weights": {"model": tiny("gpt2", torch.float32, seed=1)},
        "facts": {"facts": FACTS[:2]},
        "trained weights": {"trainable": NEURONS[::2]},
        "lr": {"lr": 0.02},
        "stop_loss": {"stop_loss": 0.1},
        "steps": {"steps": 3},
        "seed": {"seed": 1},
        "batch_size": {"batch_size": 2},
    }
    for key, change in others.items():
        with pytest.raises(RunDirectoryError, match=f"its {key} is"):
            run(**change)
    run()


def test_a_checkpoint_of_other_code_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("gpt2", torch.float32)
    how: dict[str, Any] = {"steps": 3, "lr": 0.01, "checkpoint": tmp_path}

    def steps() -> list[int]:
        done: list[int] = []

        def count(n: int, _: int, done: list[int] = done) -> None:
            done.append(n)

        with finetuned(
            *(model, words_tokenizer(), FACTS, NEURONS), progress=lambda n, _: done.append(n), **how
        ):
            return done

    assert steps() == [1, 2, 3]
    assert steps() == [3]
    state = "dkn_engine.analysis.experiments.evolvability.training_checkpoint.code_digest"
    monkeypatch.setattr(state, lambda: "0" * 16)
    assert steps() == [1, 2, 3]
    assert caplog.messages == [f"{tmp_path} is of other code; the training begins anew"]
    assert steps() == [3]


def test_a_broken_checkpoint_is_one_line(tmp_path: Path) -> None:
    model = tiny("gpt2", torch.float32)

    def run() -> None:
        how: dict[str, Any] = {"steps": 2, "lr": 0.01, "checkpoint": tmp_path}
        with finetuned(model, words_tokenizer(), FACTS, NEURONS, **how):
            pass

    run()
    (tensors,), index = tmp_path.glob("*.safetensors"), tmp_path / "training.json"
    whole, text_ = tensors.read_bytes(), index.read_text()
    tensors.write_bytes(whole[:-10])
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        run()
    tensors.unlink()
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        run()
    tensors.write_bytes(whole)
    index.write_text(text_[:-10])
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        run()
    index.write_text(json.dumps(json.loads(text_) | {"format": 99}))
    with pytest.raises(RunDirectoryError, match="expected format 1"):
        run()
    index.write_text(text_)
    run()


def test_a_second_training_of_a_model_in_training_is_refused() -> None:
    """Two that end in the order of entry, as tasks of one thread may, would leave its weights."""
    model = tiny("llama", torch.float32)
    before = weights(model)
    how: dict[str, Any] = {"steps": 1, "lr": 0.1}
    first = finetuned(model, words_tokenizer(), FACTS, NEURONS, **how)
    with first:
        trained = weights(model)
        with (
            pytest.raises(UserError, match="another training of this model is open"),
            finetuned(model, words_tokenizer(), FACTS, "mlp", **how),
        ):
            pytest.fail("the block must not run")
        assert weights(model) == trained
    assert weights(model) == before
    with finetuned(model, words_tokenizer(), FACTS, NEURONS, **how):
        assert weights(model) == trained
    assert weights(model) == before


def test_training_stops_when_the_loss_is_low_enough(tmp_path: Path) -> None:
    model = tiny("gpt2", torch.float32)
    how: dict[str, Any] = {"lr": 0.01, "checkpoint_every": 100}
    with finetuned(model, words_tokenizer(), FACTS, "mlp", steps=8, **how) as training:
        losses = training.losses
    assert (np.diff(losses) < 0).all()
    with finetuned(model, words_tokenizer(), FACTS, "mlp", steps=6, **how):
        expected = weights(model)
    how |= {"steps": 8, "stop_loss": float(losses[5]), "checkpoint": tmp_path}
    for counted in ([1, 2, 3, 4, 5, 8], [8]):  # the second time from its state
        done: list[int] = []
        how["progress"] = lambda n, _, done=done: done.append(n)
        with finetuned(model, words_tokenizer(), FACTS, "mlp", **how) as training:
            assert training.losses.tolist() == losses[:6].tolist()
            assert weights(model) == expected
        assert done == counted


def test_other_seeds_see_facts_in_another_order() -> None:
    model = tiny("gpt2")
    losses = []
    for seed in (0, 0, 1):
        how: dict[str, Any] = {"steps": 4, "lr": 0.01, "batch_size": 2, "seed": seed}
        with finetuned(model, words_tokenizer(), FACTS, NEURONS, **how) as training:
            losses.append(training.losses.tolist())
    assert losses[0] == losses[1] != losses[2]


def activations(model: Any, fact: Fact) -> torch.Tensor:
    """Of every neuron at every position of the fact, [L, T, F]."""
    seen: list[torch.Tensor] = []
    handles = [
        down_of("llama", model, layer).register_forward_pre_hook(lambda _, a: seen.append(a[0][0]))
        for layer in range(3)
    ]
    with torch.no_grad():
        model(torch.tensor([encode(model, [fact])[0].ids]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def test_a_set_that_reaches_the_answer_learns_and_a_dead_one_cannot() -> None:
    model = tiny("llama", hidden_act="relu")
    fact = FACTS[0]
    x = activations(model, fact)
    dead = [(layer, int(i)) for layer in range(3) for i in (x[layer] == 0).all(0).nonzero()]
    active = [(2, int(i)) for i in (x[2, -1] != 0).nonzero()]
    assert len(dead) >= 5
    assert len(active) >= 5
    before = read_answers(model, encode(model, [fact]))
    assert before.probability[0] < 0.2
    how: dict[str, Any] = {"steps": 30, "lr": 0.05}
    with finetuned(model, words_tokenizer(), [fact], np.array(active[:5]), **how) as training:
        assert read_answers(model, encode(model, [fact])).probability[0] > 0.9
        moved = training.neuron_change() > 0
        assert sorted(zip(*np.nonzero(moved), strict=True)) == active[:5]
    start = weights(model)
    with finetuned(model, words_tokenizer(), [fact], np.array(dead), **how) as training:
        # No activation and no gradient: not one bit of them moves.
        assert weights(model) == start
        assert not training.neuron_change().any()
        assert len(set(training.losses)) == 1
        after = read_answers(model, encode(model, [fact]))
        assert after.probability[0] == before.probability[0]


@pytest.mark.parametrize("name", PARTS)
def test_change_of_a_neuron_is_relative_to_all_its_weights(name: str) -> None:
    model = tiny(name)
    start = copy.deepcopy(model)
    with finetuned(model, words_tokenizer(), FACTS, "all", steps=2, lr=0.01) as training:
        found = training.neuron_change()
        for layer, i in [(0, 0), (1, 39), (2, 7)]:
            where = masks(name, model, [(layer, i)])
            pairs = list(zip(model.parameters(), start.parameters(), where, strict=True))
            parts = [(a[m].detach(), b[m].detach()) for a, b, m in pairs if a.ndim == 2]
            moved = sum(float((a - b).square().sum()) for a, b in parts)
            length = sum(float(b.square().sum()) for _, b in parts)
            assert found[layer, i] == pytest.approx((moved / length) ** 0.5, rel=1e-10)
    assert found.shape == (3, WIDTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"stop_loss": -1.0}, "stop_loss must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"checkpoint_every": True}, "checkpoint_every must be"),
        ({"facts": []}, "facts must hold"),
        ({"trainable": "neurons"}, "trainable must be"),
        ({"trainable": []}, "at least one neuron"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    model = tiny("llama")
    how: dict[str, Any] = {"facts": FACTS, "trainable": NEURONS, "steps": 1, "lr": 0.1} | change
    with (
        pytest.raises(UserError, match=message),
        finetuned(model, words_tokenizer(), how.pop("facts"), **how),
    ):
        pass


def test_neurons_and_facts_must_fit_the_model() -> None:
    model = tiny("llama")
    for neurons in ([[3, 0]], [[0, WIDTH]], [[0, 1], [0, 1]]):
        with (
            pytest.raises(ValueError, match="neurons must be"),
            finetuned(model, words_tokenizer(), FACTS, neurons, steps=1, lr=0.1),
        ):
            pass
    with (
        pytest.raises(FactError, match="'bad'"),
        finetuned(model, words_tokenizer(), [Fact("bad", "w5", " ")], "mlp", steps=1, lr=0.1),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"bfloat16.*dtype='float32'"),
        finetuned(
            tiny("llama", torch.bfloat16), words_tokenizer(), FACTS, NEURONS, steps=1, lr=0.1
        ),
    ):
        pass


def test_a_loss_that_is_lost_is_an_error() -> None:
    model = tiny("llama", torch.float32)
    before = weights(model)
    with (
        pytest.raises(Diverged, match="a smaller lr"),
        finetuned(model, words_tokenizer(), FACTS, "all", steps=9, lr=1e30),
    ):
        pass
    assert weights(model) == before
