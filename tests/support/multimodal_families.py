"""Models that read pictures or sounds beside text, given text alone; and their page.

``python -m tests.support.multimodal_families`` writes their part of ``docs/models.md`` anew.
"""

from __future__ import annotations

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tests.support.families import families
from tests.support.family_outcomes import Outcome
from tests.support.family_outcomes import outcome as outcome_of
from tests.support.family_page import rows_between, write_between
from tests.support.seq2seq_families import encoder_decoders

BEGIN = "<!-- written by tests/support/multimodal_families.py -->"
END = "<!-- end of multimodal models -->"


def multimodal() -> dict[str, str]:
    """The class of each kind, but for those that are among the decoders or encoder-decoders."""
    named = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES | MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    elsewhere = {*families().items(), *encoder_decoders().items()}
    return {kind: name for kind, name in named.items() if (kind, name) not in elsewhere}


def outcome(kind: str) -> Outcome:
    return outcome_of(kind, multimodal()[kind])


def rows_of_the_page() -> list[tuple[str, str]]:
    """Kinds and their rows."""
    return rows_between(BEGIN, END)


if __name__ == "__main__":
    write_between(BEGIN, END, multimodal(), outcome)
