"""Every encoder-decoder of texts of transformers, tiny, beside brute force, and its page.

``python -m tests.support.seq2seq_families`` writes their part of ``docs/models.md`` anew.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout, find_layout
from tests.support.families import options
from tests.support.family_outcomes import Outcome
from tests.support.family_page import PAGE, rendered
from tests.support.masked_families import OFF, short
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
_ALPHAS = (0.0, 1 / 3, 2 / 3)
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
            model(**_read(ASKED[0]))
    return model  # type: ignore[no-any-return]  # of transformers


def _read(one: AnswerSequence) -> dict[str, Tensor]:
    return {
        "input_ids": torch.tensor([one.source]),
        "decoder_input_ids": torch.tensor([one.ids]),
    }


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
    return Outcome(kind, name, _HOW[found.path], words, max(*apart, suppression(model, layout)))


def brute_force(model: Any, layout: Layout, one: AnswerSequence) -> Tensor:
    """Scores ``[L, F]`` from zero by the left rule: a whole forward and a backward a point."""
    total = torch.zeros(layout.n_layers, layout.width, dtype=torch.float64)
    for at, target in zip(one.predicted_at(), one.targets, strict=True):
        for layer, mlp in enumerate(layout.mlps):
            for alpha in _ALPHAS:
                kept: list[Tensor] = []

                def scale(
                    _m: nn.Module,
                    args: tuple[Tensor, ...],
                    at: int = at,
                    alpha: float = alpha,
                    kept: list[Tensor] = kept,
                ) -> tuple[Tensor, ...]:
                    x = args[0].detach().reshape(-1, layout.width)[at]
                    kept.extend((x, (alpha * x).requires_grad_(True)))
                    whole = args[0].reshape(-1, layout.width).clone()
                    whole[at] = kept[1]
                    return (whole.view_as(args[0]), *args[1:])

                with hooks([mlp.down.register_forward_pre_hook(scale)]):
                    logits = model(**_read(one)).logits[0, at]
                p = logits.softmax(-1)[target]
                (gradient,) = torch.autograd.grad(p, kept[1])
                total[layer] += kept[0] * gradient / len(_ALPHAS)
    return total / len(one.targets)


def suppression(model: Any, layout: Layout) -> float:
    """How far probabilities with some neurons of every layer off are from plain forwards'."""
    off = [[layer, index] for layer in range(layout.n_layers) for index in OFF]
    found = Prompts(model, layout, ASKED).probabilities([suppress(off)])
    expected = []
    for one in ASKED:
        p = 1.0
        for at, target in zip(one.predicted_at(), one.targets, strict=True):

            def clear(_m: nn.Module, args: tuple[Tensor, ...], at: int = at) -> Any:
                x = args[0].clone()
                x.view(-1, x.shape[-1])[at, list(OFF)] = 0
                return (x, *args[1:])

            with hooks([m.down.register_forward_pre_hook(clear) for m in layout.mlps]):
                logits = model(**_read(one)).logits[0, at]
            p *= logits.softmax(-1)[target].item()
        expected.append(p)
    return relative_error(found[0], expected)


def rows_of_the_page() -> list[tuple[str, str]]:
    """Kinds and their rows."""
    part = PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0]
    return re.findall(r"^(?=\| `(\S+)` )(.*)$", part, re.M)


def main() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    text = rendered([outcome(kind) for kind in encoder_decoders()])
    page = f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"
    PAGE.write_text(page, encoding="utf-8", newline="")


if __name__ == "__main__":
    main()
