"""Inputs rounded to 8 bits and attribution: bitsandbytes int8 beside its unpacked weights.

LLM.int8 rounds what each projection multiplies to 8 bits, a token at a time, but for columns with
an entry above a threshold (6; 0: none) anywhere in the batch; its backward pass is that of the
unpacked product. Asked of the demo model, by plain loops over the module's own forward and backward
passes: does a fact's probability depend on what else is in the batch, and do integrated gradients
(zero baseline, 8 Gauss-Legendre points, one sequence a pass) sum up to the change of the
probability? ``python -m benchmarks.science.int8_inputs`` writes int8_inputs.csv.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import dkn_engine as dkn
from benchmarks.rows import Row, row, write
from dkn_engine.models.dequantized import dequantized
from dkn_engine.models.packaged.smollm2 import demo_folder

N_FACTS, N_POINTS, LAYERS = 4, 8, range(1, 30, 7)
THRESHOLDS = {"int8, threshold 6": 6.0, "int8, threshold 0": 0.0}


@dataclass(frozen=True)
class Asked:
    """A prompt's tokens and the first one of its answer."""

    ids: tuple[int, ...]
    target: int


def asked(tokenizer: Any) -> list[Asked]:
    return [
        Asked(tuple(tokenizer(f.prompt)["input_ids"]), tokenizer(f" {f.answer}")["input_ids"][0])
        for f in dkn.load_facts("demo")
    ]


def int8(threshold: float) -> Any:
    config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        demo_folder(), quantization_config=config, dtype=torch.float32
    )
    return model.eval()


def probabilities(model: Any, batch: Sequence[Asked]) -> Tensor:
    """``[B]``, of sequences of one length."""
    logits = model(input_ids=torch.tensor([one.ids for one in batch])).logits[:, -1]
    found: Tensor = logits.softmax(-1)[torch.arange(len(batch)), [one.target for one in batch]]
    return found


def apart_in_batches(model: Any, facts: Sequence[Asked]) -> list[float]:
    """How far p of each fact among those of its length is from p alone, as a share of that."""
    by_length: dict[int, list[Asked]] = defaultdict(list)
    for one in facts:
        by_length[len(one.ids)].append(one)
    found = []
    with torch.no_grad():
        for batch in by_length.values():
            alone = torch.cat([probabilities(model, [one]) for one in batch])
            found += ((probabilities(model, batch) - alone).abs() / alone).tolist()
    return found


def at_activation(model: Any, layer: int, one: Asked, share: float) -> tuple[float, Tensor, Tensor]:
    """p with a share of a layer's activation at the last position; its gradient there, and x."""
    seen: list[Tensor] = []
    points: list[Tensor] = []

    def scale(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0][0, -1].detach().clone())
        inputs = args[0].clone()
        points.append((share * seen[0]).requires_grad_(True))
        inputs[0, -1] = points[0]
        return (inputs,)

    handle = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(scale)
    p = probabilities(model, [one])[0]
    handle.remove()
    return float(p.detach()), torch.autograd.grad(p, points[0])[0], seen[0]


def scores(model: Any, layer: int, one: Asked) -> tuple[np.ndarray, float]:
    """Integrated gradients ``[F]``, and how far their sum is from the change of p."""
    nodes, weights = np.polynomial.legendre.leggauss(N_POINTS)
    total: Any = 0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        _, gradient, x = at_activation(model, layer, one, float(node))
        total = total + weight * (gradient * x).double().numpy()
    ends = [at_activation(model, layer, one, share)[0] for share in (0.0, 1.0)]
    return total, abs(total.sum() - (ends[1] - ends[0]))


def measured() -> Iterator[Row]:
    _, tokenizer = dkn.load_model("demo", "cpu")
    facts, cases = asked(tokenizer), [(layer, i) for layer in LAYERS for i in range(N_FACTS)]
    plain = dequantized(int8(6.0), torch.float32)
    models = {"weights unpacked": plain} | {n: int8(t) for n, t in THRESHOLDS.items()}
    expected = [scores(plain, layer, facts[i])[0] for layer, i in cases]
    for name, model in models.items():
        case = f"demo model, {len(facts)} facts"
        yield row(case, name, "change_of_p_in_a_batch", apart_in_batches(model, facts))
        found = [scores(model, layer, facts[i]) for layer, i in cases]
        case = f"demo model, {N_FACTS} facts, {len(LAYERS)} layers"
        errors = [error / float(np.linalg.norm(s)) for s, error in found]
        yield row(case, name, "completeness_error_of_length", errors)
        apart = [
            float(np.linalg.norm(s - own) / np.linalg.norm(own))
            for (s, _), own in zip(found, expected, strict=True)
        ]
        yield row(case, name, "distance_of_scores", apart)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # that it rounds, at every product
    write("int8_inputs.csv", list(measured()))
