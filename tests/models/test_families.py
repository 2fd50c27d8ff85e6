"""Every causal architecture of transformers, against brute force and its row of the page."""

from __future__ import annotations

import pytest
import transformers

from tests.support.families import families
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


def test_the_page_has_every_family_once() -> None:
    assert sorted(kind for kind, _ in rows_of_the_page()) == sorted(families())
