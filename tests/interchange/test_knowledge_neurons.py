"""EleutherAI's class by its procedure, restated in plain loops over the model's own forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dkn_engine as dkn
from dkn_engine.compat import KnowledgeNeurons, initialize_model_and_tokenizer, model_type
from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.models.shared_layers import separate_layers
from tests.attribution.test_eleuther_rule import N_STEPS, eleuther_scores
from tests.attribution.test_published_bert import BOTH_ENDS, published
from tests.degeneracy.test_released_chain import CASES, Case
from tests.models.test_guest import assert_unchanged, state
from tests.support.published import Asked
from tests.support.saved import save_tiny
from tests.support.tiny import N_LAYERS, WIDTH
from tests.support.tiny_encoders import tiny_encoder
from tests.support.words import words_tokenizer

NEURONS = [[0, 3], [2, 39], [0, 7], [1, 0]]
CASE = Case("gpt2", "byte", False, "hu jo")
SOME = CASES[::5]  # answers of one to three tokens, both layouts, tokenizers, with and without BOS
OTHERS = ("al be co", "jo ka el fi")


def ours(case: Case) -> tuple[Asked, KnowledgeNeurons]:
    asked = case.asked()
    return asked, KnowledgeNeurons(asked.model, asked.tokenizer, "gpt2")


def close(found: Any, expected: Any) -> bool:
    return np.allclose(found, expected, rtol=2e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("case", SOME, ids=str)
def test_scores_are_those_of_the_procedure(case: Case) -> None:
    asked, kn = ours(case)
    found = kn.get_scores(case.prompt, case.answer, steps=N_STEPS)
    assert found.shape == (kn.n_layers(), kn.intermediate_size()) == (N_LAYERS, WIDTH)
    assert close(found.numpy(), eleuther_scores(asked, case.prompt, case.answer))


def test_activations_are_the_mean_over_the_answers_tokens() -> None:
    asked, kn = ours(CASE)
    text, total = CASE.prompt, np.zeros((N_LAYERS, WIDTH))
    targets = asked.tokenizer(CASE.answer)["input_ids"]
    for _ in targets:
        each = [asked.activation(asked.ids(text), layer) for layer in range(N_LAYERS)]
        total += np.stack([x.numpy() for x, _ in each]) / len(targets)
        text += asked.tokenizer.decode([int(each[0][1].argmax())])
    found = kn.get_scores(CASE.prompt, CASE.answer, attribution_method="max_activations")
    assert close(found.numpy(), total)


def test_coarse_and_refined_neurons() -> None:
    asked, kn = ours(CASE)
    every = [eleuther_scores(asked, prompt, CASE.answer) for prompt in (CASE.prompt, *OTHERS)]

    def above(scores: np.ndarray, limit: float) -> list[list[int]]:
        return [[l, i] for l in range(N_LAYERS) for i in range(WIDTH) if scores[l, i] > limit]

    options: dict[str, Any] = {"steps": N_STEPS}
    limits: dict[str, Any] = {
        "threshold": 0.001,
        "adaptive_threshold": 0.3 * every[0].max(),
        "percentile": np.percentile(every[0], 90),
    }
    for name, given in (("threshold", 0.001), ("adaptive_threshold", 0.3), ("percentile", 90)):
        limit: dict[str, Any] = {name: given}
        found = kn.get_coarse_neurons(CASE.prompt, CASE.answer, **options, **limit)
        assert found == above(every[0], limits[name])
    coarse = [above(scores, 0.3 * scores.max()) for scores in every]
    prompts = [CASE.prompt, OTHERS[0]]
    shared = [n for n in coarse[0] if n in coarse[1]]
    either = coarse[0] + [n for n in coarse[1] if n not in coarse[0]]
    assert kn.get_refined_neurons(prompts, CASE.answer, **options) == shared
    assert kn.get_refined_neurons(prompts, CASE.answer, p=0.1, **options) == either
    without = kn.get_refined_neurons(
        prompts, CASE.answer, negative_examples=[OTHERS[1]], p=0.1, **options
    )
    assert without == [n for n in either if n not in coarse[2]]
    assert len(without) < len(either)


def answered(asked: Asked, prompt: str, answer: str) -> dict[str, Any]:
    """The answer's tokens behind the model's own, by plain loops."""
    text, gold, own, completion = prompt, 1.0, 1.0, ""
    for target in asked.tokenizer(answer)["input_ids"]:
        p = torch.softmax(asked.logits(asked.ids(text)).detach(), -1)
        gold, own = gold * float(p[target]), own * float(p.max())
        more = asked.tokenizer.decode([int(p.argmax())])
        text, completion = text + more, completion + more
    return {"gt_prob": gold, "argmax_completion": completion, "argmax_prob": own}


def require_answer(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["argmax_completion"] == expected["argmax_completion"]
    assert found["gt_prob"] == pytest.approx(expected["gt_prob"], rel=1e-6)
    assert found["argmax_prob"] == pytest.approx(expected["argmax_prob"], rel=1e-6)


@contextmanager
def multiplied(asked: Asked, factor: float) -> Iterator[None]:
    """What the projections into the non-linearity give at the last position."""

    def hook(layer: int) -> Callable[..., Tensor]:
        def multiply(_module: Any, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            for l, i in NEURONS:
                if l == layer:
                    output[:, -1, i] *= factor
            return output

        return multiply

    handles = [m.register_forward_hook(hook(l)) for l, m in enumerate(asked.modules)]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("case", SOME, ids=str)
def test_suppression_and_enhancement(case: Case) -> None:
    asked, kn = ours(case)
    before, given = state(asked.model), (case.prompt, case.answer, NEURONS)
    for verb, factor in ((kn.suppress_knowledge, 0.0), (kn.enhance_knowledge, 2.0)):
        found, _ = verb(*given)
        assert_unchanged(before, state(asked.model))
        require_answer(found["before"], answered(asked, case.prompt, case.answer))
        with multiplied(asked, factor):
            require_answer(found["after"], answered(asked, case.prompt, case.answer))
    found, undo = kn.suppress_knowledge(*given, undo_modification=False)
    require_answer(found["after"], answered(asked, case.prompt, case.answer))
    undo()
    assert_unchanged(before, state(asked.model))
    require_answer(found["before"], answered(asked, case.prompt, case.answer))


def rows_of(asked: Asked, layer: int) -> Tensor:
    """What the layer's neurons write, ``[F, d]``, a view of the weights."""
    if hasattr(asked.model, "transformer"):
        weight: Tensor = asked.model.transformer.h[layer].mlp.c_proj.weight
        return weight.detach()
    return asked.model.model.layers[layer].mlp.down_proj.weight.detach().T  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["edit", "zero", "unk"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_are_edited_and_put_back(name: str, kind: str) -> None:
    case = Case(name, "byte", False, "go")
    asked, kn = ours(case)
    before, table = state(asked.model), asked.model.get_input_embeddings().weight.detach()
    target = asked.tokenizer(case.answer)["input_ids"][0]
    best = int(asked.logits(asked.ids(case.prompt)).argmax())
    whole = answered(asked, case.prompt, case.answer)

    def run(undo_modification: bool) -> Any:
        if kind == "edit":
            return kn.edit_knowledge(
                case.prompt, case.answer, NEURONS, undo_modification=undo_modification
            )
        return kn.erase_knowledge(
            case.prompt, NEURONS, kind, case.answer, undo_modification=undo_modification
        )

    old = {(l, i): rows_of(asked, l)[i].clone() for l, i in NEURONS}
    found, undo = run(False)
    for (l, i), row in old.items():
        moved = row - 2 * table[best] + 2 * table[target]
        expected = {"edit": moved, "zero": 0 * row, "unk": table[asked.tokenizer.unk_token_id]}
        torch.testing.assert_close(rows_of(asked, l)[i], expected[kind], rtol=1e-12, atol=1e-12)
    require_answer(found["before"], whole)
    require_answer(found["after"], answered(asked, case.prompt, case.answer))
    assert found["after"]["gt_prob"] != found["before"]["gt_prob"]
    undo()
    assert_unchanged(before, state(asked.model))
    again, _ = run(True)
    assert again == found
    assert_unchanged(before, state(asked.model))


BERT = (("w5 w9 [MASK] w7", "w11"), ("[MASK] w8 w20", "w31"), ("w8 w20 w3 w45 [MASK]", "w6"))


def asked_bert(prompt: str, answer: str) -> tuple[Any, KnowledgeNeurons, dict[str, Any], int, int]:
    """A tiny BERT, ours, what it reads, the mask's place and the answer's token."""
    model, tokenizer = tiny_encoder("bert"), words_tokenizer(ends=True)
    text = prompt.replace("[MASK]", tokenizer.mask_token)
    ids = dict(tokenizer(text, return_tensors="pt"))
    at = int((ids["input_ids"][0] == tokenizer.mask_token_id).nonzero())
    kn = KnowledgeNeurons(model, tokenizer, "bert")
    assert kn.site == "post"
    return model, kn, ids, at, tokenizer.convert_tokens_to_ids(answer)


@pytest.mark.parametrize(("prompt", "answer"), BERT)
def test_scores_of_bert_are_those_of_the_procedure(prompt: str, answer: str) -> None:
    model, kn, _, at, _ = asked_bert(prompt, answer)
    text = prompt.replace("[MASK]", kn.tokenizer.mask_token)
    expected = published(model, kn.tokenizer, dkn.Fact("a", prompt, answer), BOTH_ENDS)
    assert close(kn.get_scores(text, answer).numpy(), expected)
    seen: list[Tensor] = []
    handles = [
        layer.intermediate.register_forward_hook(lambda _m, _a, y: seen.append(y[0, at].detach()))
        for layer in model.bert.encoder.layer
    ]
    model(**asked_bert(prompt, answer)[2])
    for handle in handles:
        handle.remove()
    found = kn.get_scores(text, answer, attribution_method="max_activations")
    assert close(found.numpy(), torch.stack(seen).numpy())


@pytest.mark.parametrize("verb", ["suppress", "enhance", "edit", "erase"])
def test_bert_is_changed_at_its_mask_or_in_its_weights(verb: str) -> None:
    prompt, answer = BERT[0]
    model, kn, ids, at, target = asked_bert(prompt, answer)
    before, text = state(model), prompt.replace("[MASK]", kn.tokenizer.mask_token)

    def p() -> Tensor:
        logits: Tensor = model(**ids).logits[0, at].detach()
        return logits.softmax(-1)

    whole = p()
    layers, table = model.bert.encoder.layer, model.bert.embeddings.word_embeddings.weight.detach()
    if verb in {"suppress", "enhance"}:
        found, _ = getattr(kn, f"{verb}_knowledge")(text, answer, NEURONS)
        handles = []
        for l, i in NEURONS:

            def scale(_m: Any, _a: Any, y: Tensor, i: int = i) -> Tensor:
                y = y.clone()
                y[:, at, i] *= 0 if verb == "suppress" else 2
                return y

            handles.append(layers[l].intermediate.register_forward_hook(scale))
        expected = p()
        for handle in handles:
            handle.remove()
    else:
        if verb == "edit":
            found, undo = kn.edit_knowledge(text, answer, NEURONS, undo_modification=False)
        else:
            found, undo = kn.erase_knowledge(text, NEURONS, target=answer, undo_modification=False)
        old = before["weights"]
        for l, i in NEURONS:
            row = old[f"bert.encoder.layer.{l}.output.dense.weight"][:, i]
            moved = row - 2 * table[whole.argmax()] + 2 * table[target]
            wanted = moved if verb == "edit" else 0 * row
            torch.testing.assert_close(layers[l].output.dense.weight[:, i], wanted)
        expected = p()
        undo()
    assert found["before"]["gt_prob"] == pytest.approx(float(whole[target]), rel=1e-6)
    assert found["after"]["gt_prob"] == pytest.approx(float(expected[target]), rel=1e-6)
    assert found["after"]["argmax_prob"] == pytest.approx(float(expected.max()), rel=1e-6)
    assert_unchanged(before, state(model))


def test_names_beside_the_class(tmp_path: Any) -> None:
    model, tokenizer = initialize_model_and_tokenizer(str(save_tiny(tmp_path / "tiny")))
    assert not model.training
    kn = KnowledgeNeurons(model, tokenizer, model_type=model_type("gpt2"))
    assert kn.site == "pre"
    assert model_type("bert-base-uncased") == "bert"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda kn: kn.get_scores("co du", "go", attribution_method="grads"), "attribution_method"),
        (lambda kn: kn.get_coarse_neurons("co du", "go"), "give one of threshold, adaptive_"),
        (lambda kn: kn.get_refined_neurons("co du", "go"), "prompts must be a list"),
        (lambda kn: kn.erase_knowledge("co du", NEURONS), "target must be the answer"),
        (lambda kn: kn.erase_knowledge("co", NEURONS, "one", "go"), "erase_value must be zero, or"),
    ],
)
def test_what_cannot_be_meant_is_said(run: Any, message: str) -> None:
    _, kn = ours(CASE)
    with pytest.raises(UserError) as caught:
        run(kn)
    assert message in str(caught.value)


def test_neurons_that_the_model_lacks_are_said() -> None:
    _, kn = ours(CASE)
    with pytest.raises(ValueError, match=r"neurons must be below layer 3 and index 40"):
        kn.suppress_knowledge("co du", "go", [[3, 0]])


def test_weights_that_layers_share_are_not_edited() -> None:
    tokenizer = words_tokenizer(ends=True)
    model = tiny_encoder("albert", num_hidden_groups=1)
    separate_layers(model)
    kn = KnowledgeNeurons(model, tokenizer, "bert")
    prompt = BERT[0][0].replace("[MASK]", tokenizer.mask_token)
    with pytest.raises(UnsupportedModelError, match="expected each layer to have weights of its"):
        kn.erase_knowledge(prompt, NEURONS, target=BERT[0][1])
