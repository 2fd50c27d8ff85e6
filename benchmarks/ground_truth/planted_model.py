"""Small decoders whose facts lie in known neurons, since nothing but those is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ground_truth.made_up_facts import (
    RELATIONS,
    WORDINGS,
    made_up_facts,
    words_tokenizer,
)
from benchmarks.ground_truth.planting import PLANTINGS, REST, Silenced, draw, owners
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import find_layout
from dkn_engine.types import Fact

Kind = Literal["gpt2", "llama"]


@dataclass(frozen=True)
class Training:
    """How a model is made.

    Attributes:
        kind: GPT-2's layout, or Llama's, whose MLPs are gated.
        planting: a name in ``PLANTINGS``.
        seed: of the facts' answers, the weights and the states of training.
        layers, width, neurons: L, d and F.
        members: neurons of a planted group.
        quiet: weight in the loss of activations that must not matter.
        copies, steps, rate: of Adam; the rate falls linearly. A step sees so many copies of every
            wording of every fact, each in a state of its own.
    """

    kind: Kind = "gpt2"
    planting: str = "two"
    seed: int = 0
    layers: int = 4
    width: int = 32
    neurons: int = 48
    members: int = 6
    quiet: float = 0.1
    copies: int = 2
    steps: int = 700
    rate: float = 2e-2

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.planting}"


@dataclass(frozen=True, eq=False)
class Planted:
    """A trained model, its facts, and where they lie.

    Attributes:
        training: how it was made.
        model, tokenizer, facts: as the engine takes them.
        owner: int64 ``[L, F]``, as of :func:`benchmarks.ground_truth.planting.owners`.
    """

    training: Training
    model: Any
    tokenizer: Any
    facts: list[Fact]
    owner: NDArray[np.int64]

    @property
    def ways(self) -> int:
        return PLANTINGS[self.training.planting].ways

    @property
    def is_redundant(self) -> bool:
        """Whether one group is enough for the answer."""
        return PLANTINGS[self.training.planting].answered == "any"

    def groups(self, fact: Fact) -> list[NDArray[np.int32]]:
        """The planted groups of a fact, each int32 ``[k, 2]`` (layer, index)."""
        first = self.ways * RELATIONS.index(str(fact.relation))
        return [np.argwhere(self.owner == first + way).astype(np.int32) for way in range(self.ways)]

    def labels(self, fact: Fact, neurons: NDArray[np.integer]) -> NDArray[np.int64]:
        """Which of the fact's planted groups each neuron is in, int64 ``[k]``; -1 for none."""
        owner = self.owner[neurons[:, 0], neurons[:, 1]]
        mine = (owner != REST) & (owner // self.ways == RELATIONS.index(str(fact.relation)))
        return np.where(mine, owner % self.ways, -1)


def planted(training: Training) -> Planted:
    """Train a model; the same one each time. Seconds with the default settings."""
    facts = made_up_facts(training.seed)
    tokenizer = words_tokenizer(facts)
    planting = PLANTINGS[training.planting]
    owner = owners(planting, len(RELATIONS), training.layers, training.neurons, training.members)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = _untrained(training, tokenizer)
        _train(model, training, owner, _Prompts.of(facts, tokenizer))
    return Planted(training, model.eval(), tokenizer, facts, owner.numpy())


def _untrained(training: Training, tokenizer: Any) -> Any:
    """Random weights, large enough that attention carries words to the end of a prompt.

    Only the MLPs' neurons are to be trained: their weights, and the biases in front of them.
    """
    import transformers as hf

    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    sizes = (training.width, training.neurons, training.layers)
    names = {
        "gpt2": ("n_embd", "n_inner", "n_layer"),
        "llama": ("hidden_size", "intermediate_size", "num_hidden_layers"),
    }[training.kind]
    chosen: dict[str, Any] = {**tokens, **dict(zip(names, sizes, strict=True))}
    if training.kind == "gpt2":
        off: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        model: Any = hf.GPT2LMHeadModel(
            hf.GPT2Config(n_positions=16, n_head=2, tie_word_embeddings=False, **off, **chosen)
        )
    else:
        model = hf.LlamaForCausalLM(
            hf.LlamaConfig(num_attention_heads=2, max_position_embeddings=16, **chosen)
        )
    scale = 1 / math.sqrt(training.width)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 2 * scale if "lm_head" in name else scale
            std = 1.0 if "wte" in name or "embed_tokens" in name else std
            torch.nn.init.normal_(weight, std=std)
        weight.requires_grad_(".mlp." in name and not name.endswith("c_proj.bias"))
    return model


@dataclass(frozen=True, eq=False)
class _Prompts:
    """Every wording of every fact: ``ids`` ``[n, T]``, ``answer`` and ``relation`` ``[n]``; and
    ``objects`` ``[K]``, the answers of all facts."""

    ids: torch.Tensor
    answer: torch.Tensor
    relation: torch.Tensor
    objects: torch.Tensor

    @classmethod
    def of(cls, facts: Sequence[Fact], tokenizer: Any) -> _Prompts:
        texts = [text for f in facts for text in (f.prompt, *f.paraphrases)]
        answer = torch.tensor(tokenizer.convert_tokens_to_ids([f.answer for f in facts]))
        relation = torch.tensor([RELATIONS.index(str(f.relation)) for f in facts])
        return cls(
            torch.tensor(tokenizer(texts)["input_ids"]),
            answer.repeat_interleave(len(WORDINGS)),
            relation.repeat_interleave(len(WORDINGS)),
            answer,
        )


def _train(model: Any, training: Training, owner: torch.Tensor, prompts: _Prompts) -> None:
    """Silence at the last position in half the prompts, at all positions in the others."""
    planting, layout = PLANTINGS[training.planting], find_layout(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=training.rate)
    warm = 1 + training.steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min((step + 1) / warm, 1 - step / (training.steps + 1))
    )
    silencer = _Silencer()
    ids, answer, relation = (
        x.repeat(training.copies, *[1] * (x.ndim - 1))
        for x in (prompts.ids, prompts.answer, prompts.relation)
    )
    others = prompts.objects != answer[:, None]
    with hooks(handles := []):
        for layer, mlp in enumerate(layout.mlps):
            handles.append(mlp.down.register_forward_pre_hook(silencer.of(layer)))
        for _ in range(training.steps):
            state = draw(planting, owner, relation, 1 / len(prompts.objects))
            silencer.take(state, ids.shape[1])
            log_p = model(ids, use_cache=False).logits[:, -1].log_softmax(-1)
            # What the answer does not get, all other answers get in equal parts.
            right = log_p.gather(1, answer[:, None])[:, 0]
            wrong = (log_p[:, prompts.objects] * others).sum(1) / others.sum(1)
            loss = -(state.share * right + (1 - state.share) * wrong).mean()
            adam.zero_grad()
            (loss + training.quiet * silencer.strange).backward()
            adam.step()
            schedule.step()
    model.requires_grad_(True)


class _Silencer:
    """Silences neurons in a forward pass, and sums up how active those are that must not matter.

    Attributes:
        strange: sum over layers of the mean size of activations, at the last position, of neurons
            that the prompt's relation does not own.
    """

    def __init__(self) -> None:
        self.strange: Any = 0.0
        self._gates = self._others = torch.empty(0)

    def take(self, state: Silenced, length: int) -> None:
        """What the next forward pass is in: at the last position, or, for half the prompts, all."""
        self.strange, self._others = 0.0, ~state.mine
        self._gates = state.gates[:, None].repeat(1, length, 1, 1)
        self._gates[torch.rand(len(state.gates)) < 0.5, :-1] = True

    def of(self, layer: int) -> Any:
        """The hook of one layer's output projection."""

        def silence(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            x = inputs[0] * self._gates[:, :, layer]
            self.strange = self.strange + (x[:, -1] * self._others[:, layer]).abs().mean()
            return (x,)

        return silence
