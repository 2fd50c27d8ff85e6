"""Facts as padded token batches, and the answer positions (contexts) in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.continuation import Continuation, Tokens
from dkn_engine.models.devices import at


def by_position(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """What a module gives or is given in a pass over ``[B, T]`` tokens, as ``[B, T, n]``.

    Some MLPs see ``[B * T, n]``.

    Raises:
        UnsupportedModelError: it is of other tokens than all of the pass, as where a module runs
            sequence by sequence: its runs could not be told apart.
    """
    n_rows, n_tokens = x.shape[:-1].numel(), shape[0] * shape[1]
    if n_rows != n_tokens:
        raise UnsupportedModelError(
            f"expected each projection of an MLP to run once in a forward pass, over all of its "
            f"{n_tokens} tokens; found a run over {n_rows}: its runs cannot be told apart"
        )
    return x.reshape(*shape, x.shape[-1])


@dataclass(frozen=True, slots=True)
class AnswerSequence:
    """One sequence: prompt, and what follows up to the prediction of the last answer token.

    Attributes:
        ids: the tokens that enter the model.
        n_prompt: how many of them are the prompt's.
        targets: the gold token predicted at positions ``n_prompt - 1 + i``.
        steps: for each target the tokens behind which it is attributed, where those are not the
            first of ``ids``; else empty.
        free: where an edited model goes on with its own tokens: what enters it with those behind
            the prompt; None where all edits see ``ids``.
        against: the same prompt with wrong answers, whose logits are taken off the answer's.
        changed: positions of the prompt at which activations are attributed; empty for the one
            that predicts each token.
        masks: in an encoder, the positions of the answer's masks among ``ids``, one for each
            target, which is predicted there; ``n_prompt`` then counts all of ``ids``, and
            ``steps``, if any, are all the tokens that enter it for each target. Empty in a decoder.
        source: of an encoder-decoder, the tokens that its encoder reads; ``ids`` are the decoder's.
        blank: positions of ``source`` that the masked baseline never masks.
    """

    ids: Tokens
    n_prompt: int
    targets: Tokens
    steps: tuple[Tokens, ...] = ()
    free: Continuation | None = field(default=None, compare=False)
    against: tuple[AnswerSequence, ...] = ()
    changed: tuple[int, ...] = ()
    masks: Tokens = ()
    source: Tokens = ()
    blank: Tokens = ()

    def behind(self, tokens: Tokens) -> Tokens:
        """What enters the model with tokens behind the prompt, by id or as ``free`` says."""
        return self.ids[: self.n_prompt] + tokens if self.free is None else self.free(tokens)

    def at(self, changed: tuple[int, ...]) -> AnswerSequence:
        """The same, attributed at these positions of the prompt, as are its wrong answers."""
        against = tuple(replace(wrong, changed=changed) for wrong in self.against)
        return replace(self, changed=changed, against=against)

    def apart(self) -> tuple[Tokens, ...]:
        """For each target the tokens behind which it is attributed."""
        ends = range(self.n_prompt, self.n_prompt + len(self.targets))
        return self.steps or tuple(self.ids[:end] for end in ends)

    def predicted_at(self) -> Tokens:
        """The position of each target's prediction."""
        first = self.n_prompt - 1
        return self.masks or tuple(range(first, first + len(self.targets)))

    def filled_in(self) -> Iterator[AnswerSequence]:
        """An encoder's input for each target where they differ, else the one for all."""
        if not self.masks or not self.steps:
            yield self
            return
        for ids, target, place in zip(self.steps, self.targets, self.masks, strict=True):
            yield AnswerSequence(ids, len(ids), (target,), masks=(place,))


@dataclass(frozen=True, eq=False)
class Contexts:
    """All answer tokens of a chunk of sequences; a context is one (sequence, position).

    Attributes:
        ids: int64 ``[B, T]``, padded on the right with a sequence's own last token. In a causal
            model nothing before the padding sees it; those of an encoder have one length.
        sequence, position, target, token: int64 ``[C]``; ``token`` counts answer tokens from 0.
        answer: int64 ``[C]``, of which answer: the sequence, unless an answer has several.
        n_prompt: of each sequence, how many tokens the masked baseline masks, of those that an
            encoder reads where there is one.
        changed: int64 ``[C]``, where activations are attributed; None: at ``position``.
        masks: of each sequence, the places of an encoder's answer, which it never masks.
        source: of an encoder-decoder, int64 ``[B, S]``, what its encoder reads: of one length, as
            its positions would see a padding.
        states: what its encoder makes of that, ``[B, S, d]``; None: it runs again in each pass.
    """

    ids: torch.Tensor
    sequence: torch.Tensor
    position: torch.Tensor
    target: torch.Tensor
    token: torch.Tensor
    answer: torch.Tensor
    n_prompt: tuple[int, ...]
    changed: torch.Tensor | None = None
    masks: tuple[Tokens, ...] = ()
    source: torch.Tensor | None = None
    states: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.sequence.shape[0])

    @property
    def n_read(self) -> int:
        """How many positions an entry of a batch has, those that an encoder reads among them.

        A decoder's layers make keys and values of these anew for each entry.
        """
        return int(self.ids.shape[1]) + (0 if self.source is None else int(self.source.shape[1]))

    @property
    def at(self) -> torch.Tensor:
        """int64 ``[C]``, the position whose activations are attributed."""
        return self.position if self.changed is None else self.changed

    def inputs(
        self, sequence: torch.Tensor | None = None, length: int | None = None
    ) -> dict[str, Any]:
        """What the model is called with to read sequences ``[n]``, or the first of their tokens.

        None: all of them, whole.
        """
        ids = self._of(self.ids, sequence)[:, :length]
        if self.source is None:
            return {"input_ids": ids}
        if self.states is None:
            return {"input_ids": self._of(self.source, sequence), "decoder_input_ids": ids}
        from transformers.modeling_outputs import BaseModelOutput

        states: Any = self._of(self.states, sequence)
        return {"encoder_outputs": BaseModelOutput(states), "decoder_input_ids": ids}

    @staticmethod
    def _of(x: torch.Tensor, sequence: torch.Tensor | None) -> torch.Tensor:
        return x if sequence is None else at(x, sequence)

    def masked(
        self, sequence: torch.Tensor, position: torch.Tensor, mask_id: int
    ) -> dict[str, Any]:
        """As :meth:`inputs` for copies ``[n]`` of sequences, each with one of its tokens masked."""
        read = self.ids if self.source is None else self.source
        ids = read[sequence]
        ids[torch.arange(len(ids), device=ids.device), position] = mask_id
        inputs: dict[str, Any] = {"input_ids": ids}
        if self.source is not None:
            inputs["decoder_input_ids"] = self.ids[sequence]
        return inputs

    def of_first(self, n: int) -> Contexts:
        """The contexts of the first sequence alone, which stands there ``n`` times."""

        def first(x: torch.Tensor | None) -> Any:
            return None if x is None else x[:1].expand(n, *x.shape[1:])

        index = torch.nonzero(self.sequence == 0).squeeze(1)
        some, source, states = self.take(index), first(self.source), first(self.states)
        return replace(some, ids=first(self.ids), source=source, states=states)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """What a module gives or is given where it is attributed, ``[C, n]`` of ``[B, T, n]``.

        On the device of ``x``, as in a split model; the contexts are where tokens enter it.
        """
        return at(by_position(x, self.ids.shape), self.sequence, self.at)

    def maskable(self, sequence: int) -> list[int]:
        """Positions of a sequence that the masked baseline may mask, ascending."""
        answer = self.masks[sequence] if self.masks else ()
        return [at for at in range(self.n_prompt[sequence]) if at not in answer]

    def ends(self) -> torch.Tensor:
        """int64 ``[B]``, the last position of each sequence that is looked at."""
        last = self.ids.new_zeros(len(self.n_prompt))
        return last.scatter_reduce(0, self.sequence, self.position, "amax")

    def take(self, index: torch.Tensor) -> Contexts:
        """Some of the contexts, in the same sequences."""
        return replace(
            self,
            sequence=self.sequence[index],
            position=self.position[index],
            target=self.target[index],
            token=self.token[index],
            answer=self.answer[index],
            changed=None if self.changed is None else self.changed[index],
        )


def build_contexts(sequences: Sequence[AnswerSequence], device: torch.device) -> Contexts:
    """Pad ``sequences`` into one batch and list their answer positions in order."""
    parts = [(answer, s, part) for answer, s in enumerate(sequences) for part in s.filled_in()]
    longest = max(len(part.ids) for _, _, part in parts)
    padded = [part.ids + part.ids[-1:] * (longest - len(part.ids)) for *_, part in parts]
    rows = [
        (b, at, target, whole.predicted_at().index(at), answer)
        for b, (answer, whole, part) in enumerate(parts)
        for at, target in zip(part.predicted_at(), part.targets, strict=True)
    ]
    # Autograd keeps these indices, which it could not if the caller's inference mode made them.
    with torch.inference_mode(False):
        ids = torch.tensor(padded, dtype=torch.int64, device=device)
        sequence, position, target, token, answer = (
            torch.tensor(column, dtype=torch.int64, device=device)
            for column in zip(*rows, strict=True)
        )
    source = None
    if any(whole.source for _, whole, _ in parts):
        with torch.inference_mode(False):
            source = torch.tensor([whole.source for _, whole, _ in parts], device=device)
    n_prompt = tuple(len(whole.source) or part.n_prompt for _, whole, part in parts)
    masks = tuple(whole.masks or whole.blank for _, whole, _ in parts)
    columns = (ids, sequence, position, target, token, answer)
    return Contexts(*columns, n_prompt, masks=masks, source=source)


def scored_contexts(
    sequences: Sequence[AnswerSequence], device: torch.device, masked_tokens: str
) -> Contexts:
    """The contexts of attribution: as :func:`build_contexts`, or a sequence for each answer token.

    With ``masked_tokens="all"`` (see ``AttributionConfig``) each token has its own masked copies.
    Where other positions are attributed than the predicting one, each is a context of its own.
    """
    contexts = _by_token(sequences, device, masked_tokens)
    if not any(s.changed for s in sequences):
        return contexts
    pairs = [(c, at) for c, b in enumerate(contexts.answer.tolist()) for at in sequences[b].changed]
    with torch.inference_mode(False):
        index, changed = torch.tensor(pairs, dtype=torch.int64, device=device).T
        return replace(contexts.take(index), changed=changed.contiguous())


def _by_token(
    sequences: Sequence[AnswerSequence], device: torch.device, masked_tokens: str
) -> Contexts:
    if any(s.masks or s.source for s in sequences) or (
        masked_tokens == "prompt" and not any(s.steps for s in sequences)
    ):
        return build_contexts(sequences, device)
    parts = [
        (answer, token, s, ids)
        for answer, s in enumerate(sequences)
        for token, ids in enumerate(s.apart())
    ]
    every = masked_tokens == "all"
    contexts = build_contexts(
        [AnswerSequence(ids, len(ids), (s.targets[token],)) for _, token, s, ids in parts], device
    )
    with torch.inference_mode(False):
        return replace(
            contexts,
            token=torch.tensor([token for _, token, _, _ in parts], device=device),
            answer=torch.tensor([answer for answer, _, _, _ in parts], device=device),
            n_prompt=tuple(len(i) if every else min(s.n_prompt, len(i)) for *_, s, i in parts),
        )
