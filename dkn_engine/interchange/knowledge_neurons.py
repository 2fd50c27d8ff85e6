"""EleutherAI's class ``KnowledgeNeurons`` by its names, with scores by the engine.

Source: https://github.com/EleutherAI/knowledge-neurons, whose README says what each method does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dkn_engine.attribution.attribute_facts import attribute
from dkn_engine.attribution.sites import require_own_act, require_site, site_activation
from dkn_engine.config import AttributionConfig, FactsConfig
from dkn_engine.degeneracy.edits import enhance, require_inside
from dkn_engine.degeneracy.weight_edits import refuse_shared_weights
from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.forward.contexts import scored_contexts
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.forward.prefill import prefill
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from dkn_engine.models.model_lock import locked
from dkn_engine.neurons import existing
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Neurons = list[list[int]]
Changed = tuple[dict[str, dict[str, Any]], Callable[..., None]]
# The text as it stands, its tokens all of the answer's, the model's own behind each of them.
_TEXTS = FactsConfig(
    blank="literal",
    answer_space=False,
    answer_special_tokens=True,
    teacher_forced=False,
    continuation="edited_text",
)


class KnowledgeNeurons:
    """Attribution, suppression and edits by the names of EleutherAI's ``knowledge-neurons``.

    Where that class and its README differ, this one does what the README says: with any GPT an
    answer of several tokens is asked token by token, and neurons of negative examples are left out
    of refined ones. Nothing is printed.

    Args:
        model: a language model of transformers that the engine knows; it is in eval mode in a
            call, and else as it was, but for what ``undo_modification=False`` asks for.
        tokenizer: the model's.
        model_type: as there: ``bert``, whose neurons are those behind the non-linearity, at the
            mask; anything else, whose neurons are those in front of it, at the last position.
        device: where to put the model; None leaves it where it is.

    Raises:
        UnsupportedModelError: the model is none that the engine knows, or has no such site.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        model_type: str = "gpt2",
        device: str | torch.device | None = None,
    ) -> None:
        self.model, self.tokenizer, self.model_type = model, tokenizer, model_type
        if device is not None:
            model.to(device)
        self._layout = find_layout(model)
        if self._layout.encoder is not None:
            raise UnsupportedModelError(
                "KnowledgeNeurons is for a decoder or an encoder alone, as EleutherAI's is; found "
                f"encoder-decoder {type(model).__name__}: use dkn.attribute, dkn.intervene"
            )
        self.device = self._layout.device
        self.site = "post" if model_type == "bert" else "pre"
        self._texts = FactsConfig() if model_type == "bert" else _TEXTS
        require_site(self._layout, self.site)

    def n_layers(self) -> int:
        return self._layout.n_layers

    def intermediate_size(self) -> int:
        """Of the largest layer, where they differ."""
        return self._layout.width

    def get_scores(
        self,
        prompt: str,
        ground_truth: str,
        batch_size: int = 10,
        steps: int = 20,
        attribution_method: str = "integrated_grads",
        pbar: bool = True,
    ) -> Tensor:
        """Scores ``[L, F]`` of every neuron, the mean over the answer's tokens.

        Args:
            prompt, ground_truth: as they stand; the answer of a GPT mostly begins with a space.
            batch_size, pbar: not read; rows are batched by the memory there is.
            steps: points from zero to the activation, both ends among them.
            attribution_method: ``integrated_grads``, or ``max_activations``, the activations.
        """
        if attribution_method == "max_activations":
            return self._activations(prompt, ground_truth)
        if attribution_method != "integrated_grads":
            raise UserError(
                "attribution_method must be integrated_grads or max_activations; got "
                f"{attribution_method!r}"
            )
        site: Any = self.site
        config = AttributionConfig(site=site, baseline="zero", quadrature="linspace", n_steps=steps)
        fact = [Fact("prompt", prompt, ground_truth)]
        found = attribute(self.model, self.tokenizer, fact, config, facts_config=self._texts)
        return torch.from_numpy(found.scores[0]).to(self.device)

    def _activations(self, prompt: str, ground_truth: str) -> Tensor:
        one = encode_sequence(
            self.model, self.tokenizer, prompt, ground_truth, config=self._texts, fact_id="prompt"
        )
        with guest(self.model, grad=False):
            clean = prefill(self.model, self._layout, scored_contexts([one], self.device, "prompt"))
            return site_activation(self._layout, clean, self.site)[0].mean(0)

    def get_coarse_neurons(
        self,
        prompt: str,
        ground_truth: str,
        batch_size: int = 10,
        steps: int = 20,
        threshold: float | None = None,
        adaptive_threshold: float | None = None,
        percentile: float | None = None,
        attribution_method: str = "integrated_grads",
        pbar: bool = True,
    ) -> Neurons:
        """Neurons ``[[layer, index], ...]`` whose scores are above one of the three limits.

        Args:
            prompt, ground_truth, batch_size, steps, attribution_method, pbar: of
                :meth:`get_scores`.
            threshold: a score; adaptive_threshold: a share of the highest score; percentile: of
                all scores.
        """
        limits = (threshold, adaptive_threshold, percentile)
        if sum(limit is not None for limit in limits) != 1:
            raise UserError(
                "give one of threshold, adaptive_threshold and percentile, and only one; got "
                f"{threshold}, {adaptive_threshold} and {percentile}"
            )
        scores = self.get_scores(
            prompt, ground_truth, batch_size, steps, attribution_method, pbar
        ).cpu()
        real = torch.from_numpy(existing(tuple(scores.shape), self._layout.widths))
        if adaptive_threshold is not None:
            threshold = float(scores.max()) * adaptive_threshold
        elif percentile is not None:
            threshold = float(np.percentile(scores[real].numpy(), percentile))
        assert threshold is not None
        found: Neurons = torch.nonzero(real & (scores > threshold)).tolist()
        return found

    def get_refined_neurons(
        self,
        prompts: list[str],
        ground_truth: str,
        negative_examples: list[str] | None = None,
        p: float = 0.5,
        batch_size: int = 10,
        steps: int = 20,
        coarse_adaptive_threshold: float | None = 0.3,
        coarse_threshold: float | None = None,
        coarse_percentile: float | None = None,
        quiet: bool = False,
    ) -> Neurons:
        """Coarse neurons of more than a share ``p`` of the prompts, and of no negative example.

        Args:
            prompts: that say the same; ground_truth: the answer to all of them.
            negative_examples: prompts that say something else.
            p: from 0, below 1.
            batch_size, steps: of :meth:`get_scores`; coarse_*: of :meth:`get_coarse_neurons`.
            quiet: not read; nothing is printed.
        """
        if isinstance(prompts, str) or not 0 <= p < 1:
            raise UserError(f"prompts must be a list, and p in [0, 1); got {prompts!r} and {p!r}")

        def coarse(prompt: str) -> list[tuple[int, ...]]:
            limits = (coarse_threshold, coarse_adaptive_threshold, coarse_percentile)
            found = self.get_coarse_neurons(prompt, ground_truth, batch_size, steps, *limits)
            return [tuple(neuron) for neuron in found]

        counts = Counter(neuron for prompt in prompts for neuron in coarse(prompt))
        unwanted = {neuron for prompt in negative_examples or [] for neuron in coarse(prompt)}
        return [
            list(neuron)
            for neuron, count in counts.items()
            if count > len(prompts) * p and neuron not in unwanted
        ]

    def suppress_knowledge(
        self,
        prompt: str,
        ground_truth: str,
        neurons: Neurons,
        undo_modification: bool = True,
        quiet: bool = False,
    ) -> Changed:
        """The answer before and after the neurons' activations are 0 at the asked position.

        Args:
            prompt, ground_truth: as in :meth:`get_scores`.
            neurons: ``[[layer, index], ...]``.
            undo_modification: the model is as before when the call ends; else when the function
                that is returned is called.
            quiet: not read; nothing is printed.

        Returns:
            ``{"before": ..., "after": ...}``, each with ``gt_prob``, the probability of the
            answer's tokens behind the model's own, ``argmax_completion`` and ``argmax_prob``; and
            the function that undoes it.
        """
        with locked(self.model):
            return self._modify_activations(prompt, ground_truth, neurons, 0.0, undo_modification)

    def enhance_knowledge(
        self,
        prompt: str,
        ground_truth: str,
        neurons: Neurons,
        undo_modification: bool = True,
        quiet: bool = False,
    ) -> Changed:
        """As :meth:`suppress_knowledge`, with activations doubled."""
        with locked(self.model):
            return self._modify_activations(prompt, ground_truth, neurons, 2.0, undo_modification)

    def edit_knowledge(
        self,
        prompt: str,
        target: str,
        neurons: Neurons,
        undo_modification: bool = True,
        quiet: bool = False,
    ) -> Changed:
        """As :meth:`suppress_knowledge`, for ``target``, with output weights moved towards it.

        What each neuron writes loses twice the embedding of the token that is most probable, and
        gains twice that of the target's first.
        """
        table = self._embeddings()
        with locked(self.model):
            with guest(self.model, grad=False):
                old = int(self._next(prompt).argmax())
            move = 2 * (table[self._targets(target)[0]] - table[old])
            return self._modify_weights(
                prompt, target, neurons, lambda w: w + move.to(w), undo_modification
            )

    def erase_knowledge(
        self,
        prompt: str,
        neurons: Neurons,
        erase_value: str = "zero",
        target: str | None = None,
        undo_modification: bool = True,
        quiet: bool = False,
    ) -> Changed:
        """As :meth:`edit_knowledge`, with output weights that become ``zero``, or those of ``unk``.

        ``unk`` is the embedding of the tokenizer's token for what it does not know.
        """
        if target is None:
            raise UserError("target must be the answer whose probability is asked for; got None")
        unknown = self.tokenizer.unk_token_id
        if erase_value not in {"zero", "unk"} or (erase_value == "unk" and unknown is None):
            raise UserError(
                "erase_value must be zero, or unk where the tokenizer has a token for what it "
                f"does not know; got {erase_value!r}"
            )
        value = 0.0 if erase_value == "zero" else self._embeddings()[unknown]
        with locked(self.model):
            return self._modify_weights(
                prompt,
                target,
                neurons,
                lambda w: torch.as_tensor(value).to(w).expand_as(w),
                undo_modification,
            )

    def _embeddings(self) -> Tensor:
        found: Any = self.model.get_input_embeddings()  # type: ignore[operator]  # of transformers
        weight: Tensor = found.weight.detach()
        if weight.shape[1] != self._layout.d_model:
            raise UnsupportedModelError(
                f"edits of weights need embeddings of the stream's width {self._layout.d_model}; "
                f"found {weight.shape[1]}"
            )
        return weight

    def _modify_activations(
        self, prompt: str, ground_truth: str, neurons: Neurons, factor: float, undo: bool
    ) -> Changed:
        edit = enhance(neurons, factor)
        require_inside([edit], self._layout)
        if self.site == "pre":
            require_own_act(self._layout, self.site)
        at = self._encoded(prompt)[1]
        before, handles = self._generate(prompt, ground_truth), []
        for layer in np.unique(edit.neurons[:, 0]).tolist():
            index = torch.from_numpy(edit.neurons[edit.neurons[:, 0] == layer, 1].astype(int))

            def multiply(_: Any, args: tuple[Any, ...], index: Tensor = index) -> tuple[Any, ...]:
                x = args[0].clone()
                x[..., at, index.to(x.device)] *= factor
                return (x, *args[1:])

            module = self._layout.mlps[layer].site_module(self.site)
            handles.append(module.register_forward_pre_hook(multiply))

        def restore(*_: Any) -> None:
            for handle in handles:
                handle.remove()

        return self._after(before, prompt, ground_truth, restore, undo)

    def _modify_weights(
        self,
        prompt: str,
        target: str,
        neurons: Neurons,
        change: Callable[[Tensor], Tensor],
        undo: bool,
    ) -> Changed:
        edit = enhance(neurons, 0.0)
        require_inside([edit], self._layout)
        refuse_shared_weights(self._layout, np.unique(edit.neurons[:, 0]).tolist())
        before, kept = self._generate(prompt, target), list[tuple[Tensor, Tensor, Tensor]]()

        @torch.no_grad()
        def restore(*_: Any) -> None:
            with locked(self.model), torch.inference_mode(False):
                for rows, index, old in kept:
                    rows[index] = old

        with locked(self.model), torch.inference_mode(False), torch.no_grad():
            for layer in np.unique(edit.neurons[:, 0]).tolist():
                mlp, index = self._layout.mlps[layer], edit.neurons[edit.neurons[:, 0] == layer, 1]
                rows, where = mlp.w_out(slice(None)), torch.from_numpy(index.astype(int))
                weight: Any = mlp.down.weight
                if rows.data_ptr() != weight.data_ptr():
                    raise UnsupportedModelError(
                        "edits of weights need plain weights; those of "
                        f"{type(mlp.down).__name__} are computed anew at each forward"
                    )
                kept.append((rows, where.to(rows.device), rows[where].clone()))
            for rows, where, old in kept:
                rows[where] = change(old)
        return self._after(before, prompt, target, restore, undo)

    def _after(
        self,
        before: dict[str, Any],
        prompt: str,
        ground_truth: str,
        restore: Callable[..., None],
        undo: bool,
    ) -> Changed:
        done = False
        try:
            after = self._generate(prompt, ground_truth)
            done = not undo
        finally:
            if not done:
                restore()
        return {"before": before, "after": after}, restore

    def _generate(self, prompt: str, ground_truth: str) -> dict[str, Any]:
        """Probability of the answer's tokens, and of the model's own, behind the model's own."""
        own, gold, text = [], [], ""
        with guest(self.model, grad=False):
            for target in self._targets(ground_truth):
                p = self._next(prompt + text)
                best = int(p.argmax())
                gold.append(float(p[target]))
                own.append(float(p[best]))
                text += str(self.tokenizer.decode([best]))
        return {
            "gt_prob": math.prod(gold),
            "argmax_completion": text,
            "argmax_prob": math.prod(own),
        }

    def _next(self, text: str) -> Tensor:
        """Probabilities ``[V]`` at the asked position."""
        encoded, at = self._encoded(text)
        logits: Tensor = self.model(**encoded).logits[0, at]
        return torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)

    def _encoded(self, text: str) -> tuple[dict[str, Tensor], int]:
        """What the model is given, and the position that is asked."""
        encoded = dict(self.tokenizer(text, return_tensors="pt").to(self.device))
        if self.model_type != "bert":
            return encoded, -1
        (place,) = torch.nonzero(encoded["input_ids"][0] == self.tokenizer.mask_token_id).T
        if len(place) != 1:
            raise UserError(f"prompt must hold one mask token; got {len(place)} in {text!r}")
        return encoded, int(place[0])

    def _targets(self, answer: str) -> Sequence[int]:
        if self.model_type == "bert":
            found: Any = self.tokenizer.convert_tokens_to_ids(answer)
            return [found]
        ids: Sequence[int] = self.tokenizer.encode(answer)
        return ids


def initialize_model_and_tokenizer(model_name: str) -> tuple[Any, Any]:
    """A model in eval mode and its tokenizer, as :func:`dkn_engine.load_model` gives them."""
    from dkn_engine.models.load import load_model

    return load_model(model_name)


def model_type(model_name: str) -> str:
    """``bert`` for names of such models, else ``gpt``."""
    return "bert" if "bert" in model_name.lower() else "gpt"
