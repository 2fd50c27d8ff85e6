"""Every causal architecture of transformers, against brute force and its row of the page."""

from __future__ import annotations

import pytest
import torch
import transformers

from dkn_engine.models.layout import find_layout
from tests.support.families import families, family
from tests.support.family_outcomes import outcome
from tests.support.family_page import row, rows_of_the_page

# Families of each way, widely used ones first; the rest is marked slow.
QUICK = (
    "gptj",
    "bloom",
    "stablelm",
    "codegen",
    "opt",
    "phi",
    "llama",
    "mixtral",
    "openai-gpt",
    "mpt",
    "xlnet",
)
# Both sides add the same numbers in another order, partly in float32 (norms, softmax), which
# rounds to 6e-8: a hundred such steps.
ALLOWED = 1e-5


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in families()]
)
def test_a_family_does_what_its_row_says_and_equals_brute_force(kind: str) -> None:
    """``python -m tests.support.family_page`` writes the rows anew."""
    found = outcome(kind)
    assert found.apart < ALLOWED
    assert dict(rows_of_the_page())[kind] == row(found)


# Whose parts have names of their own.
@pytest.mark.parametrize("kind", ["mpt", "ctrl", "bamba", "recurrent_gemma", "cpmant", "xlnet"])
def test_the_gate_feeds_the_non_linearity_and_up_its_factor(kind: str) -> None:
    model = family(kind)
    seen: dict[str, torch.Tensor] = {}
    mlp = find_layout(model).mlps[1]
    assert mlp.act is not None
    assert (mlp.up is None) == (kind in {"mpt", "ctrl", "xlnet"})
    mlp.gate.register_forward_hook(lambda _m, _a, y: seen.update(gate=y))
    mlp.act.register_forward_hook(lambda _m, a, y: seen.update(pre=a[0], acted=y))
    mlp.down.register_forward_pre_hook(lambda _m, a: seen.update(post=a[0]))
    if mlp.up is not None:
        mlp.up.register_forward_hook(lambda _m, _a, y: seen.update(up=y))
    with torch.no_grad():
        model(input_ids=torch.arange(3, 9)[None], use_cache=False)
    assert torch.equal(seen["gate"], seen["pre"])
    assert torch.equal(seen["acted"] * seen.get("up", 1.0), seen["post"])


def test_the_page_has_every_family_once() -> None:
    assert sorted(kind for kind, _ in rows_of_the_page()) == sorted(families())
