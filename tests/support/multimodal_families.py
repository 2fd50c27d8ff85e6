"""Models that read pictures or sounds beside text, given text alone; and their page.

``python -m tests.support.multimodal_families`` writes their part of ``docs/models.md`` anew.
"""

from __future__ import annotations

import re
import warnings

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tests.support.families import families
from tests.support.family_outcomes import Outcome
from tests.support.family_outcomes import outcome as outcome_of
from tests.support.family_page import PAGE, rendered
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
    part = PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0]
    return re.findall(r"^(?=\| `(\S+)` )(.*)$", part, re.M)


def main() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    text = rendered([outcome(kind) for kind in multimodal()])
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    page = f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"
    PAGE.write_text(page, encoding="utf-8", newline="")


if __name__ == "__main__":
    main()
