"""How well scores rank what suppressing a neuron does: one gradient, a path, and the truth.

Of facts that a model knows and whose answer is one token: every method's scores with the baseline
zero, and the change of the objective (probability, logit) when one neuron alone is suppressed, for
the first 100 of every method and 1,000 drawn from all. Writes benchmarks/results/one_pass.csv, a
row a fact, objective and method; docs/one_pass.md reads it. One thread:
``python -m benchmarks.science.one_pass demo [PATH ...] [--facts N]``.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

import dkn_engine as dkn
from benchmarks.rows import read, records_csv, write_csv
from dkn_engine.config import FactsConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.forward.contexts import AnswerSequence, build_contexts
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.forward.prefill import prefill
from dkn_engine.forward.row_check import checked_rows
from dkn_engine.models.guest import guest, hooks
from dkn_engine.models.layout import Layout, find_layout
from dkn_engine.ops.answer_probability import answer_probability

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "one_pass.csv"
OBJECTIVES = ("probability", "logit")
N_FIRST, N_DRAWN, AT_ONCE = 100, 1000, 256
METHODS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {},
    "10 points": {"quadrature": "riemann_right", "n_steps": 10},
    "attribution_patching": {"method": "attribution_patching"},
    "grad_drop": {"method": "grad_drop"},
    "relp": {"method": "relp"},
}
RANDOM = "random"


@dataclass(frozen=True)
class Ranked:
    """How one method ranks one fact's neurons.

    Attributes:
        spearman_drawn, spearman_first: rank correlation of sizes of scores with sizes of effects,
            over the neurons drawn from all, and over all that were examined.
        recall_20, recall_100: share of the 20 (100) examined neurons of the largest effects that
            are among the method's first 20 (100) of all neurons.
        missed: share of the 20 that are not among its first 1,000.
        kept, removed: areas of ``dkn.faithfulness`` over all neurons, activations that are taken
            away becoming the mean over the facts, by signed scores.
        seconds: processor time of the attribution.
    """

    model: str
    fact: str
    objective: str
    method: str
    spearman_drawn: float
    spearman_first: float
    recall_20: float
    recall_100: float
    missed: float
    kept: float
    removed: float
    seconds: float


@torch.no_grad()
def effects(engine: RowEngine, neurons: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """By what each objective falls if one neuron is suppressed: ``[n]`` each.

    Args:
        engine: rows of one context.
        neurons: ``[n, 2]``, by layers ascending.
    """
    d, device = engine.layout.d_model, engine.contexts.ids.device
    here = torch.zeros(1, 1, dtype=torch.int64, device=device)
    hidden = engine.clean_rows(here[0], 0)[:, :0]
    with engine.active():
        for layer in range(engine.layout.n_layers):
            index = torch.from_numpy(neurons[neurons[:, 0] == layer, 1]).to(device)
            new = engine.clean_rows(here[0], layer).expand(1, len(index), d)
            hidden = torch.cat([hidden, new], dim=1)
            if not hidden.shape[1]:
                continue

            def off(_: Any, args: Any, index: torch.Tensor = index) -> Any:
                x = args[0].clone()
                x[0, torch.arange(x.shape[1] - len(index), x.shape[1]), index] = 0
                return (x, *args[1:])

            down = engine.layout.mlps[layer].down
            with hooks([down.register_forward_pre_hook(off)]):
                hidden = engine.run_layer(layer, hidden, RowSet(here, aligned=True))
        # The clean row, which nothing is suppressed in, last.
        last = engine.layout.n_layers - 1
        clean = engine.run_layer(last, engine.clean_rows(here[0], last), RowSet(here, aligned=True))
        rows = torch.cat([hidden, clean], dim=1)[0]
        target = engine.contexts.target.expand(len(rows))
        found = {}
        for objective in OBJECTIVES:
            value, _ = answer_probability(
                engine.tail, rows, target, objective=objective, gradient=False
            )
            table = value.double().cpu().numpy()
            found[objective] = table[-1] - table[:-1]
    return found


def truth(
    model: Any, layout: Layout, sequence: AnswerSequence, neurons: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """:func:`effects` of many neurons, some at a time."""
    contexts = build_contexts([sequence], next(model.parameters()).device)
    with guest(model, grad=False):
        clean = prefill(model, layout, contexts)
        engine = checked_rows(model, layout, contexts, clean, "auto")
        parts = [
            effects(engine, neurons[start : start + AT_ONCE])
            for start in range(0, len(neurons), AT_ONCE)
        ]
    return {o: np.concatenate([part[o] for part in parts]) for o in OBJECTIVES}


def scored(
    model: Any, tokenizer: Any, fact: dkn.Fact
) -> dict[tuple[str, str], tuple[NDArray[np.float64], float]]:
    """Scores ``[L * F]`` by objective and method, and their seconds."""
    found = {}
    for objective in OBJECTIVES:
        for name, options in METHODS.items():
            config = dkn.AttributionConfig(baseline="zero", objective=objective, **options)  # type: ignore[arg-type]
            started = time.process_time()
            one = dkn.attribute(model, tokenizer, [fact], config)
            seconds = time.process_time() - started
            if not one.converged.all():
                raise SystemExit(f"{fact.id}: {name} has not converged")
            found[objective, name] = one.scores[0].astype(np.float64).ravel(), seconds
        noise = np.random.default_rng(0).standard_normal(one.scores[0].size)
        found[objective, RANDOM] = noise, 0.0
    return found


def compare(
    name: str, model: Any, tokenizer: Any, fact: dkn.Fact, sequence: AnswerSequence, means: Any
) -> list[Ranked]:
    """Every method on one fact."""
    layout = find_layout(model)
    scores = scored(model, tokenizer, fact)
    n = layout.n_layers * layout.width
    drawn = np.random.default_rng(1).choice(n, N_DRAWN, replace=False)
    first = [np.argsort(-np.abs(s), kind="stable")[:N_FIRST] for s, _ in scores.values()]
    examined = np.unique(np.concatenate([drawn, *first]))
    pairs = np.stack(np.divmod(examined, layout.width), 1)
    true = truth(model, layout, sequence, pairs)
    rows = []
    for (objective, method), (score, seconds) in scores.items():
        effect = np.abs(true[objective])
        curve = _faithful(model, tokenizer, fact, score, layout, means)
        rows.append(
            Ranked(
                model=name,
                fact=fact.id,
                objective=objective,
                method=method,
                **{k: round(v, 4) for k, v in _ranks(score, effect, examined, drawn).items()},
                kept=round(curve.area_kept, 4),
                removed=round(curve.area_removed, 4),
                seconds=round(seconds, 3),
            )
        )
    return rows


def _ranks(score: Any, effect: Any, examined: Any, drawn: Any) -> dict[str, float]:
    """The figures of :class:`Ranked` that compare scores with effects."""
    size = np.abs(score)
    place = np.empty(len(size), dtype=np.int64)
    place[np.argsort(-size, kind="stable")] = np.arange(len(size))
    by_effect = examined[np.argsort(-effect, kind="stable")]
    among = np.isin(examined, drawn)
    return {
        "spearman_drawn": float(spearmanr(size[examined[among]], effect[among]).statistic),
        "spearman_first": float(spearmanr(size[examined], effect).statistic),
        "recall_20": float((place[by_effect[:20]] < 20).mean()),
        "recall_100": float((place[by_effect[:100]] < 100).mean()),
        "missed": float((place[by_effect[:20]] >= 1000).mean()),
    }


def _faithful(
    model: Any, tokenizer: Any, fact: dkn.Fact, score: Any, layout: Layout, means: Any
) -> dkn.Faithfulness:
    order = np.argsort(-score, kind="stable")
    ranking = np.stack(np.divmod(order, layout.width), 1)
    (found,) = dkn.faithfulness(model, tokenizer, [fact], ranking, means=means)
    return found


def known_facts(
    model: Any, tokenizer: Any, limit: int
) -> tuple[list[dkn.Fact], list[AnswerSequence], NDArray[np.float64]]:
    """Facts of one answer token that the model knows, and the mean of their activations."""
    facts, sequences = [], []
    for fact in dkn.load_facts("demo"):
        one = encode_sequence(
            model, tokenizer, fact.prompt, fact.answer, config=FactsConfig(), fact_id=fact.id
        )
        if len(one.targets) == 1:
            facts.append(fact)
            sequences.append(one)
    prompts = Prompts(model, find_layout(model), sequences)
    known = np.flatnonzero((prompts.rank == 1) & (prompts.probability >= 0.05))[:limit]
    means = prompts.first_activations().mean(0)
    return [facts[i] for i in known], [sequences[i] for i in known], means


def main(models: Sequence[str], limit: int) -> None:
    """Compare model by model, and write the table after every fact; other models' rows stay."""
    torch.set_num_threads(1)
    rows: list[Mapping[str, object]] = list(read(OUTPUT.name))
    for path in models:
        model, tokenizer = dkn.load_model(path)
        # As folders of the cache are called: name, digest, version.
        name = re.sub(r"-[0-9a-f]{12}-v\d+$", "", Path(path).name)
        rows = [row for row in rows if row["model"] != name]
        facts, sequences, means = known_facts(model, tokenizer, limit)
        for fact, sequence in zip(facts, sequences, strict=True):
            rows += map(asdict, compare(name, model, tokenizer, fact, sequence, means))
            write_csv(OUTPUT, records_csv(rows))
            print(f"{name}: {fact.id}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--facts", type=int, default=12)
    arguments = parser.parse_args()
    main(arguments.models, arguments.facts)
