"""Every encoder-decoder of texts of transformers, tiny, beside brute force, and its page.

``python -m tests.support.seq2seq_families`` writes their part of ``docs/models.md`` anew.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.families import options
from tests.support.family_outcomes import Outcome
from tests.support.family_page import rows_between, write_between
from tests.support.masked_families import short
from tests.support.plain_passes import brute_force, read, suppression
from tests.support.tiny import VOCABULARY, redraw, relative_error

BEGIN = "<!-- written by tests/support/seq2seq_families.py -->"
END = "<!-- end of encoder-decoders -->"
# Encoders' inputs of five, seven and five tokens; answers of two tokens, one and one.
ASKED = (
    AnswerSequence((1, 9, 5, 6), 3, (6, 21), source=(7, 11, 9, 13, 2)),
    AnswerSequence((1, 17), 2, (8,), source=(7, 11, 9, 13, 5, 4, 2)),
    AnswerSequence((1, 9), 2, (12,), source=(3, 20, 9, 30, 2)),
)
_HOW = {"blocks": "in blocks", "general": "by full forward passes"}
_DTYPES = {"fsmt": torch.float32}  # it does not run in float64
_T5 = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
# What single ones need beside.
_MORE: dict[str, dict[str, Any]] = {
    **{kind: {"d_ff": 40, "d_kv": 8} for kind in _T5},
    "encoder-decoder": {
        "encoder": {"model_type": "bert", **options(transformers.BertConfig, {})},
        "decoder": {
            "model_type": "bert",
            **options(transformers.BertConfig, {"is_decoder": True, "add_cross_attention": True}),
        },
    },
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["en", "de"]},
}


def encoder_decoders() -> dict[str, str]:
    """The class of each architecture's model of texts, by its kind."""
    named = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items()
    # Decoders that read sounds are among them.
    return {kind: name for kind, name in named if CONFIG_MAPPING[kind].is_encoder_decoder}


def encoder_decoder(kind: str, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """The model, in eval mode; raises what transformers raises where it cannot be made so small."""
    model_class = getattr(transformers, encoder_decoders()[kind])
    config_class = model_class.config_class or CONFIG_MAPPING[kind]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        config = config_class(**options(config_class, {**_MORE.get(kind, {}), **changes}))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = model_class(config)
        redraw(model)
        model = model.to(dtype).eval()
        with torch.no_grad():
            model(**read(ASKED[0]))
    return model  # type: ignore[no-any-return]  # of transformers


def outcome(kind: str) -> Outcome:
    """Attribute and suppress in a tiny model of the architecture, against brute force."""
    name = encoder_decoders()[kind]
    try:
        model = encoder_decoder(kind, _DTYPES.get(kind, torch.float64))
    except Exception as error:
        return Outcome(kind, name, "not tried", f"{type(error).__name__}: {short(str(error))}")
    try:
        layout = find_layout(model)
        config = AttributionConfig(baseline="zero", quadrature="riemann_left", n_steps=3)
        found = attribute_chunk(model, layout, ASKED, config)
    except UnsupportedModelError as error:
        return Outcome(kind, name, "refused", short(str(error)))
    apart = [
        relative_error(scores, brute_force(model, layout, one))
        for scores, one in zip(found.scores, ASKED, strict=True)
    ]
    words = layout.name_of(0, layout.mlps[0].down).replace("[0]", "[i]")
    return Outcome(
        kind, name, _HOW[found.path], words, max(*apart, suppression(model, layout, ASKED))
    )


def rows_of_the_page() -> list[tuple[str, str]]:
    """Kinds and their rows."""
    return rows_between(BEGIN, END)


if __name__ == "__main__":
    write_between(BEGIN, END, encoder_decoders(), outcome)
