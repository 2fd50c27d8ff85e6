"""Every masked-LM architecture of transformers, against brute force and its row of the page."""

from __future__ import annotations

import pytest
import transformers

from tests.support.family_page import row
from tests.support.masked_families import encoders, outcome, rows_of_the_page

# Widely used ones, and one of each way; the rest is marked slow.
QUICK = (
    "bert",
    "xlm-roberta",
    "deberta-v2",
    "esm",
    "eurobert",
    "longformer",
    "mobilebert",
)
# Both sides add the same float64 numbers in another order ...
ALLOWED = 1e-12
# ... but in some models norms and softmax round to float32, 6e-8: a hundred such steps.
ROUNDED = {"neomme": 1e-5}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in encoders()]
)
def test_an_encoder_does_what_its_row_says_and_equals_brute_force(kind: str) -> None:
    """``python -m tests.support.masked_families`` writes the rows anew."""
    found = outcome(kind)
    assert found.apart < ROUNDED.get(kind, ALLOWED)
    assert dict(rows_of_the_page())[kind] == row(found)


def test_the_page_has_every_encoder_once() -> None:
    assert sorted(kind for kind, _ in rows_of_the_page()) == sorted(encoders())
