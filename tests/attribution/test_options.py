"""Objectives, fixed rules, factors and the combination of answer tokens, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from dkn_engine.config import AttributionConfig
from tests.support.attribution_runs import LEFT, attributed, fixed, tolerance
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import N_LAYERS, WIDTH, relative_error, sequence, sequences, tiny

FLOAT64 = 1e-10
# The rules as a textbook writes them, for n steps.
RULES: dict[str, Any] = {
    "riemann_left": lambda n: ([i / n for i in range(n)], [1 / n] * n),
    "riemann_middle": lambda n: ([(i + 0.5) / n for i in range(n)], [1 / n] * n),
    "riemann_right": lambda n: ([(i + 1) / n for i in range(n)], [1 / n] * n),
    "trapezoid": lambda n: (
        [i / (n - 1) for i in range(n)],
        [(0.5 if i in {0, n - 1} else 1) / (n - 1) for i in range(n)],
    ),
    "linspace": lambda n: ([i / (n - 1) for i in range(n)], [1 / n] * n),
    "gauss_legendre": lambda n: (
        (np.polynomial.legendre.leggauss(n)[0] + 1) / 2,
        np.polynomial.legendre.leggauss(n)[1] / 2,
    ),
}


@pytest.mark.parametrize("n_steps", [2, 5])
@pytest.mark.parametrize("rule", RULES)
def test_fixed_rules_equal_brute_force(rule: str, n_steps: int) -> None:
    model, one = tiny("llama"), sequence(4, 2)
    found = attributed("llama", model, fixed(quadrature=rule, n_steps=n_steps), [one])
    expected = BruteForce("llama", model, "post").scores(one, RULES[rule](n_steps)).mean(0)
    assert relative_error(found.scores[0], expected) < FLOAT64


@pytest.mark.parametrize(
    ("rule", "paid"),
    [
        ("riemann_left", 5),
        ("riemann_middle", 6),  # and alpha = 0, for the convergence delta
        ("riemann_right", 5),  # alpha = 1 is free
        ("trapezoid", 4),
        ("linspace", 4),
        ("gauss_legendre", 6),
    ],
)
def test_fixed_rules_count_every_point_paid(rule: str, paid: int) -> None:
    found = attributed("llama", tiny("llama"), fixed(quadrature=rule, n_steps=5))
    tokens = np.array([len(s.targets) for s in sequences()])
    assert np.array_equal(found.n_points, np.repeat(paid * tokens[:, None], N_LAYERS, axis=1))
    assert found.converged.all()
    assert np.isnan(found.error).all()


@pytest.mark.parametrize("objective", ["log_probability", "logit"])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["gpt2", "phi3", "opt", "gemma2", "granite", "gptj"])
def test_other_objectives_equal_brute_force(name: str, site: str, objective: Any) -> None:
    """Also behind a cap (Gemma 2), a scale (Granite) and in blocks (GPT-J)."""
    model = tiny(name)
    found = attributed(name, model, fixed(site=site, objective=objective))
    oracle = BruteForce(name, model, site)
    for scores, one in zip(found.scores, sequences(), strict=True):
        expected = oracle.scores(one, LEFT, kind=objective).mean(0)
        assert relative_error(scores, expected) < tolerance(name)


@pytest.mark.parametrize("objective", ["log_probability", "logit"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj"])
def test_scores_sum_to_the_change_of_the_objective(name: str, objective: Any) -> None:
    """To the tolerance: a sum of F errors is at most sqrt(F) times their length."""
    model = tiny(name)
    config = AttributionConfig(objective=objective, tolerance=1e-4)
    found, oracle = attributed(name, model, config), BruteForce(name, model, "post")
    assert found.converged.all()
    for scores, one in zip(found.scores, sequences(), strict=True):
        change = oracle.change(one, "masked", objective).mean(0).numpy()
        apart = np.abs(scores.sum(-1) - change).max()
        assert apart <= config.tolerance * WIDTH**0.5 * np.linalg.norm(scores)


@pytest.mark.parametrize("site", ["post", "pre"])
def test_multiplying_by_the_activation_equals_brute_force(site: str) -> None:
    model = tiny("llama")
    found = attributed("llama", model, fixed(site=site, multiply_by="activation"))
    oracle = BruteForce("llama", model, site)
    for scores, one in zip(found.scores, sequences(), strict=True):
        expected = oracle.scores(one, LEFT, multiply_by="activation").mean(0)
        assert relative_error(scores, expected) < FLOAT64


@pytest.mark.parametrize("quadrature", ["riemann_left", "adaptive"])
@pytest.mark.parametrize("how", ["mean", "sum", "first"])
def test_answer_tokens_are_combined(how: str, quadrature: str) -> None:
    model = tiny("gpt2")  # LLaMA's norms round to float32 even in a float64 model
    n_steps = 3 if quadrature == "riemann_left" else None
    config = fixed(answer_tokens=how, quadrature=quadrature, n_steps=n_steps, tolerance=1e-9)
    found = attributed("gpt2", model, config)
    oracle = BruteForce("gpt2", model, "post")
    rule = LEFT if quadrature == "riemann_left" else RULES["gauss_legendre"](40)
    combine = {"mean": lambda x: x.mean(0), "sum": lambda x: x.sum(0), "first": lambda x: x[0]}
    for i, one in enumerate(sequences()):
        scores = combine[how](oracle.scores(one, rule))
        assert relative_error(found.scores[i], scores) < (FLOAT64 if n_steps else 1e-9)
        change = combine[how](oracle.change(one, "masked", "probability"))
        delta = scores.sum(-1) - change
        # The reported delta is float32; it sums F scores, so sqrt(F) times their L2 error at most.
        atol = 1e-9 * float(scores.norm()) * WIDTH**0.5
        assert np.allclose(found.convergence_delta[i], delta, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("how", ["mean", "sum", "first"])
def test_the_probability_is_the_whole_answers_whatever_is_attributed(how: str) -> None:
    model = tiny("llama")
    found = attributed("llama", model, fixed(answer_tokens=how))
    for p, one in zip(found.probability, sequences(), strict=True):
        expected = 1.0
        for i, target in enumerate(one.targets):
            ids = torch.tensor([one.ids[: one.n_prompt + i]])
            logits = model(input_ids=ids).logits[0, -1].detach()
            expected *= float(torch.softmax(logits, -1)[target])
        assert abs(p - expected) < 1e-6 * expected  # float32 inside LLaMA's norms


def test_captum_gives_the_same_by_its_own_rule() -> None:
    """captum integrates a function of the patched activation; its rule is Gauss-Legendre."""
    model, one, layer = tiny("gpt2"), sequence(5, 1), 1
    oracle = BruteForce("gpt2", model, "post")
    position, target = one.n_prompt - 1, one.targets[0]

    def p(x: torch.Tensor) -> torch.Tensor:
        rows = [oracle.objective(one.ids, position, target, layer, r, "probability") for r in x]
        return torch.stack(rows)

    x = oracle.activations(one.ids, position)[layer]
    start = oracle.masked_baseline(one, position)[layer]
    by_captum = IntegratedGradients(p).attribute(
        x[None], start[None], n_steps=6, method="gausslegendre", internal_batch_size=6
    )
    found = attributed("gpt2", model, fixed(quadrature="gauss_legendre", n_steps=6), [one])
    assert relative_error(found.scores[0, layer], by_captum[0].detach()) < FLOAT64
