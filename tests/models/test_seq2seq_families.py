"""Every encoder-decoder of transformers, against brute force and its row of the page."""

from __future__ import annotations

import pytest
import transformers

from tests.support.family_page import row
from tests.support.seq2seq_families import encoder_decoders, outcome, rows_of_the_page

# Widely used ones, and one of each way; the rest is marked slow.
QUICK = ("t5", "bart", "marian", "pegasus", "encoder-decoder", "fsmt", "nllb-moe")
# Both sides add the same float64 numbers in another order.
ALLOWED = 1e-12


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in encoder_decoders()],
)
def test_an_encoder_decoder_does_what_its_row_says_and_equals_brute_force(kind: str) -> None:
    """``python -m tests.support.seq2seq_families`` writes the rows anew."""
    found = outcome(kind)
    assert found.apart < ALLOWED
    assert dict(rows_of_the_page())[kind] == row(found)


def test_the_page_has_every_encoder_decoder_once() -> None:
    assert sorted(kind for kind, _ in rows_of_the_page()) == sorted(encoder_decoders())
