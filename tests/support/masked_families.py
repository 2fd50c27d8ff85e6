"""Every masked-LM architecture of transformers as a tiny model, beside brute force, and its page.

``python -m tests.support.masked_families`` writes the encoders' part of ``docs/models.md`` anew.
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
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from dkn_engine.models.shared_layers import separate_layers
from tests.support.families import options
from tests.support.family_outcomes import Outcome
from tests.support.family_page import rows_between, write_between
from tests.support.plain_passes import brute_force, suppression
from tests.support.tiny import redraw, relative_error
from tests.support.tiny_encoders import masked

BEGIN, END = "<!-- written by tests/support/masked_families.py -->", "<!-- end of encoders -->"
ASKED = (masked(2, 2, 3, seed=1), masked(3, 1, 1, seed=2))
_HOW = {"blocks": "in blocks", "general": "by full forward passes"}
_MOST = 160  # characters of a sentence on the page
# What single ones need beside.
_MORE: dict[str, dict[str, Any]] = {
    "convbert": {"head_ratio": 2},
    "esmc": {"num_key_value_heads": 4},
    "neomme": {"head_dim": 16, "hidden_size": 64},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
}


def encoders() -> dict[str, str]:
    """The class of each architecture's masked language model, by its kind.

    Encoder-decoders, which have a page of their own, are also named among them.
    """
    two = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
    return {k: name for k, name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.items() if name not in two}


def encoder(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model, in eval mode; raises what transformers raises where it cannot be made so small."""
    model_class = getattr(transformers, encoders()[kind])
    config_class = model_class.config_class or CONFIG_MAPPING[kind]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        more = {"is_decoder": False, **_MORE.get(kind, {})}
        config = config_class(**options(config_class, more))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = model_class(config)
        redraw(model)
        model = model.to(dtype).eval()
        separate_layers(model)
        with torch.no_grad():
            model(input_ids=torch.tensor([ASKED[0].ids]))
    return model  # type: ignore[no-any-return]  # of transformers


def outcome(kind: str) -> Outcome:
    """Attribute and suppress in a tiny model of the architecture, against brute force."""
    name = encoders()[kind]
    try:
        model = encoder(kind)
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


def short(text: str) -> str:
    """The first words, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST else line[:_MOST].rsplit(" ", 1)[0] + " …"


def rows_of_the_page() -> list[tuple[str, str]]:
    """Kinds and their rows."""
    return rows_between(BEGIN, END)


if __name__ == "__main__":
    write_between(BEGIN, END, encoders(), outcome)
