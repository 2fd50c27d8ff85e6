"""What flows between the stages: frozen records of NumPy arrays, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import FactError, UserError
from dkn_engine.files.sections import integer
from dkn_engine.files.visible_text import prompt_without_space, without_space
from dkn_engine.showing import shown
from dkn_engine.showing.tables import data_frame

if TYPE_CHECKING:
    import pandas as pd

_REQUIRED = ("id", "prompt", "answer")
_NAN = float("nan")
# Called as ``progress(done, total)``.
Progress = Callable[[int, int], None]
Status = Literal["ok", "not_known", "skipped", "error"]
Path = Literal["sweep", "blocks", "general"]  # the fastest first


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a run directory's tables that keeps a field, or says something of it.

    Attributes:
        kind: of Arrow: ``string``, ``bool``, ``int32``, ..., or ``list<int32>`` and the like.
        name: of the column; empty if it is the field's.
        table: that it is in.
        later: files of older versions lack it; it is read as if it were empty there.
        nullable: it may be empty.
    """

    kind: str
    name: str = ""
    table: str = "facts"
    later: bool = False
    nullable: bool = False


def _kept(*columns: Column) -> dict[str, tuple[Column, ...]]:
    """A field's metadata, from which :mod:`dkn_engine.store.schema` makes the tables."""
    return {"columns": columns}


_TEXT = _kept(Column("string"))
_FIGURE = _kept(Column("float64"))
_LATER_FIGURE = _kept(Column("float64", later=True, nullable=True))
_LATER_FIGURES = _kept(Column("list<float64>", later=True, nullable=True))
_LATER_COUNT = _kept(Column("int32", later=True, nullable=True))
_OF_DROPS = _kept(Column("float64", nullable=True))
_OF_COMPONENT = _kept(Column("float64", table="components"))
_LATER_TEXT = _kept(Column("string", later=True, nullable=True))
# Names that a result's controls have, which are the beginnings of their columns' names.
CONTROLS = ("random", "paraphrases", "unrelated", "mean_ablation")
# A DKN holds on its held-out paraphrases if one member off costs at most the first share of their
# probability, on average, and all off cost the second.
HOLDS_SINGLE, HOLDS_FULL = 0.35, 0.5


@dataclass(frozen=True, slots=True)
class Fact:
    """A prompt that a model should continue with ``answer``, or whose blank it should fill.

    Space and other invisible characters at the ends of its texts, which nobody sees but a model
    does, are taken away; only line breaks and tabs that end a prompt stay, as chat templates need
    them. Lists become tuples, and None in place of a list is an empty one.

    Attributes:
        id: unique within a list of facts.
        prompt: raw text, without the answer; for an encoder with a blank, ``[MASK]``, where the
            answer belongs (see ``docs/howto/encoders.md``).
        answer: what is expected there; the space in front of it is the tokenizer's matter.
        aliases: other spellings of the answer that count as right.
        subject, relation, date: metadata, where the dataset has them.
        paraphrases: other prompts with the same answer.
        wrong_answers: answers of the right kind that are false.

    Raises:
        FactError: a field is not text, or not a tuple of texts; names the fact.

    Example:
        >>> from dkn_engine import Fact
        >>> Fact("italy", "The capital of Italy is ", " Rome", relation="capital").answer
        'Rome'
    """

    id: str
    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    subject: str | None = None
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    wrong_answers: tuple[str, ...] = ()
    date: str | None = None

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "answer", "subject", "relation", "date"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, _clean(name, value))
            elif value is not None or name in _REQUIRED:
                raise FactError(f"fact {self.id!r}: {name} must be text; got {value!r}")
        for name in ("aliases", "paraphrases", "wrong_answers"):
            value = getattr(self, name)
            value = () if value is None else value  # As in files.
            if not isinstance(value, tuple | list) or not all(isinstance(v, str) for v in value):
                raise FactError(f"fact {self.id!r}: {name} must be a tuple of texts; got {value!r}")
            object.__setattr__(self, name, tuple(_clean(name, v) for v in value))


def _clean(name: str, text: str) -> str:
    is_prompt = name in {"prompt", "paraphrases"}
    return prompt_without_space(text) if is_prompt else without_space(text)


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Integrated-gradient scores of every MLP neuron for every fact.

    Attributes:
        fact_ids: in the order of the facts given.
        scores: float32 ``[n_facts, L, F]``, in units of the objective (probability by default).
        convergence_delta: float32 ``[n_facts, L]``; sum of a layer's scores minus the change of
            the objective between baseline and input (mean over answer tokens).
        probability: float64 ``[n_facts]``; the answer's probability (product over its tokens).
        n_points: int32 ``[n_facts, L]``; path points paid for, over all answer tokens.
        converged: bool ``[n_facts, L]``; False where the fact is not within ``tolerance`` since
            ``max_points`` stopped the layer's refinement, or since rounding alone leaves it no
            equal share of the tolerance.
        error: float32 ``[n_facts]``; estimated relative L2 error of a fact's scores (NaN for
            fixed rules), of the quadrature and of rounding in the model's dtype. Rounding grows
            with the prompt: masking one of many tokens leaves x' close to x, and their difference
            has the rounding of both (1e-5 of the scores at 100 tokens in float32, more in
            shorter dtypes). By so much scores also differ between batch sizes.
        path: for each fact ``"sweep"``, ``"blocks"`` or ``"general"``.
        widths: how many neurons each layer has; None: F each. F is the largest: what a narrower
            layer does not have scores exactly 0 and is no neuron.
    """

    fact_ids: tuple[str, ...]
    scores: NDArray[np.float32]
    convergence_delta: NDArray[np.float32]
    probability: NDArray[np.float64]
    n_points: NDArray[np.int32]
    converged: NDArray[np.bool_]
    error: NDArray[np.float32]
    path: tuple[Path, ...]
    widths: tuple[int, ...] | None = None

    def top(self, k: int = 20) -> dict[str, NDArray[np.int32]]:
        """The neurons of each fact with the highest scores, as interventions take them.

        Args:
            k: how many, at least 1.

        Returns:
            By fact id int32 ``[k, 2]`` (layer, index), by descending score, ties by layer and
            index; fewer where the model has no more.

        Raises:
            UserError: ``k`` is not a positive integer.
        """
        return {fact_id: self._highest(i, k) for i, fact_id in enumerate(self.fact_ids)}

    def to_pandas(self, k: int = 20) -> pd.DataFrame:
        """The scores of :meth:`top`'s neurons, a row each: fact_id, layer, index, score.

        Raises:
            UserError: ``k`` is not a positive integer, or pandas is not installed.
        """
        rows = [
            (fact_id, layer, index, self.scores[i, layer, index])
            for i, fact_id in enumerate(self.fact_ids)
            for layer, index in self._highest(i, k).tolist()
        ]
        return data_frame(rows, ("fact_id", "layer", "index", "score"))

    def _repr_html_(self) -> str:
        return str(shown("attribution_html", self))

    def _highest(self, fact: int, k: int) -> NDArray[np.int32]:
        if (integer(k) or 0) < 1:
            raise UserError(f"k must be an integer of at least 1; got {k!r}")
        scores = self.scores[fact]
        widths = [scores.shape[1]] if self.widths is None else self.widths
        real = np.arange(scores.shape[1]) < np.reshape(widths, (-1, 1))
        places = np.argwhere(np.broadcast_to(real, scores.shape))
        order = np.argsort(-scores[tuple(places.T)], kind="stable")[:k]
        return places[order].astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class FactAttribution:
    """One fact of a stream of attributions; fields as in :class:`Attribution`, without its axis.

    Attributes:
        fact_id: of the fact.
        scores: float32 ``[L, F]``, or None where only the top or nothing is kept.
        neurons: int32 ``[k, 2]`` (layer, index) of the kept scores by descending score, with
            ``keep="top"``; else empty. ``top_scores``: float32 ``[k]``.
        convergence_delta: float32 ``[L]``; n_points: int32 ``[L]``; converged: bool ``[L]``.
        probability, error: of the fact; path: ``"sweep"``, ``"blocks"`` or ``"general"``.
    """

    fact_id: str
    scores: NDArray[np.float32] | None
    neurons: NDArray[np.int32]
    top_scores: NDArray[np.float32]
    convergence_delta: NDArray[np.float32]
    probability: float
    n_points: NDArray[np.int32]
    converged: NDArray[np.bool_]
    error: float
    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """A base degenerate component (BDC): a set of located neurons that one merge keeps together.

    Attributes:
        neurons: int32 ``[k, 2]``, columns layer and index, sorted.
        birth, death: merge heights (in units of the distance ``1/|w|``) of the component and of its
            parent (or the end of the filtration, for a root).
        persistence: death - birth.
        probability_alone: the answer's probability with every other candidate suppressed.
        drop_if_suppressed: relative drop of the answer's probability with only this suppressed.
    """

    neurons: NDArray[np.int32] = field(
        metadata=_kept(
            Column("list<int32>", "layers", "components"),
            Column("list<int32>", "indices", "components"),
        )
    )
    birth: float = field(metadata=_OF_COMPONENT)
    death: float = field(metadata=_OF_COMPONENT)
    persistence: float = field(metadata=_OF_COMPONENT)
    probability_alone: float = field(default=_NAN, metadata=_OF_COMPONENT)
    drop_if_suppressed: float = field(default=_NAN, metadata=_OF_COMPONENT)


@dataclass(frozen=True, slots=True)
class Drops:
    """How an answer's probability falls when members of a family of sets are suppressed.

    Attributes:
        partial_drop: mean relative drop over the proper non-empty subsets of the family.
        full_drop: relative drop with the whole family suppressed.
        redundancy: log-drop of all suppressed / sum of the log-drops of each suppressed alone; 1
            for independent members, above 1 if they cover for one another, below 1 if each is
            needed; the median where several measurements are averaged. NaN where that sum is 0 or
            less: members whose loss costs nothing as long as the others are there are the most
            redundant ones, and have no such ratio.
        n: number of measurements averaged (draws, prompts or facts).
        partial_std, full_std: standard deviation over those (NaN for fewer than two).
        excess: the same two log-drops, the first minus the second: 0 for independent members, above
            0 if they cover for one another; the median of several measurements. It is defined
            wherever no probability is 0. NaN in what older versions wrote.
        n_redundancy: measurements in which the redundancy is defined; None in what older versions
            wrote.
        single_drop: relative drop with one member suppressed, the mean over the members. NaN in
            what older versions wrote.
        objective: where attribution's objective is another than the probability, its value with
            nothing suppressed, with each member alone, and with all, ``[members + 2]``; means over
            the measurements that have it. Else empty, as in what older versions wrote.
    """

    partial_drop: float = field(metadata=_OF_DROPS)
    full_drop: float = field(metadata=_OF_DROPS)
    redundancy: float = field(default=_NAN, metadata=_OF_DROPS)
    n: int = field(default=1, metadata=_kept(Column("int32", nullable=True)))
    partial_std: float = field(default=_NAN, metadata=_OF_DROPS)
    full_std: float = field(default=_NAN, metadata=_OF_DROPS)
    excess: float = field(default=_NAN, metadata=_LATER_FIGURE)
    n_redundancy: int | None = field(default=None, metadata=_LATER_COUNT)
    single_drop: float = field(default=_NAN, metadata=_LATER_FIGURE)
    objective: tuple[float, ...] = field(default=(), metadata=_LATER_FIGURES)


def _array(empty: NDArray[np.generic], *columns: Column) -> Any:
    """A field that is an empty array unless it is given."""
    return field(default_factory=empty.copy, metadata=_kept(*columns))


_NO_NEURONS = np.empty((0, 2), dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Answered:
    """One fact as it was asked, and how well the model knows its answer.

    Attributes:
        fact_id, prompt, relation: of the fact; ``answer``: the spelling that was taken.
        status: ``ok``; ``not_known`` (the model does not know the fact; left out of headline
            shares); ``skipped`` (not usable); ``error``. ``reason`` says why, unless ``ok``.
        probability: the answer's probability; ``rank``: of its first token, 1 = most probable.
    """

    fact_id: str = field(metadata=_TEXT)
    status: Status = field(metadata=_TEXT)
    reason: str = field(default="", metadata=_TEXT)
    prompt: str = field(default="", metadata=_TEXT)
    answer: str = field(default="", metadata=_TEXT)
    relation: str | None = field(default=None, metadata=_kept(Column("string", nullable=True)))
    probability: float = field(default=_NAN, metadata=_FIGURE)
    rank: int = field(default=0, metadata=_kept(Column("int64")))


@dataclass(frozen=True, eq=False)
class Selection:
    """Knowledge neurons of one fact.

    Attributes:
        neurons: int32 ``[n, 2]`` (layer, index), by descending score; ties by layer and index.
        scores: float32 ``[n]``.
        borderline: int32 ``[b, 2]``, neurons within 1e-5 of the fact's maximum from the
            threshold, on either side of it, in the same order.
        connection_weights: float32 ``[m]``, what the lower writes times what the upper reads, for
            the pairs of :func:`dkn_engine.neurons.adjacent_pairs`; empty in what older versions
            wrote.
    """

    neurons: NDArray[np.int32] = _array(
        _NO_NEURONS,
        Column("int32", "n_neurons"),
        Column("int32", "layer", "neurons"),
        Column("int32", "index", "neurons"),
    )
    scores: NDArray[np.float32] = _array(
        np.empty(0, np.float32),
        Column("float32", "score", "neurons", nullable=True),
        Column("bool", "selected", "neurons"),
    )
    borderline: NDArray[np.int32] = _array(
        _NO_NEURONS,
        Column("bool", "borderline", "neurons"),
        Column("int32", "borderline_order", "neurons", nullable=True),
    )
    connection_weights: NDArray[np.float32] = _array(
        np.empty(0, np.float32), Column("list<float32>", later=True, nullable=True)
    )


@dataclass(frozen=True, eq=False)
class Degeneracy:
    """What suppression shows about one fact: its candidate components, its DKN, controls.

    Attributes:
        components: the candidates, most persistent first.
        dkn: indices into ``components``; empty if the fact has no degenerate family.
        partial_drop, full_drop, redundancy, excess: of the DKN if there is one, else of all
            candidates; see :class:`Drops`.
        candidates: the same figures for all candidates, whatever the DKN.
        controls: the same figures for ``random`` sets matched by size and layer,
            ``paraphrases`` not used for finding, ``unrelated`` facts, ``mean_ablation``.
        n_paraphrases_not_known: held-out paraphrases that the model does not answer, which are no
            part of the control.
        n_reference: facts that unrelated facts and mean activations are taken from, and
            ``n_reference_packaged``: how many of them are the packaged English ones, which fill up
            where a run has fewer than eight facts of use. These three are None where nothing was
            measured, and in what older versions wrote.
        n_paraphrases_known: held-out paraphrases that the model answers; None in what older
            versions wrote.
        null: what chance finds is measured on: ``regrouped``, the fact's own located neurons in
            groups of the same sizes and layers, put through the same filter
            (:mod:`dkn_engine.degeneracy.regrouped`); ``regrouped tree``, a choice from the whole
            tree repeated on permuted labels (:mod:`dkn_engine.degeneracy.regrouped_trees`);
            ``random search``, a search repeated among other neurons of the same layers
            (:mod:`dkn_engine.degeneracy.covering_choice`); None
            where nothing was.
        null_draws: of it; ``null_passing``: in how many of them the filter keeps a family.
        null_p: p-value of the family, (1 + draws that do at least as well) / (1 + draws). A family
            that the filter keeps does better than one that it does not, a greater excess better
            than a smaller one. 1 without a family (with ``control_precision=0`` by the same rule,
            the excess being that of all candidates); NaN without draws.
        pair_interactions: float32 ``[n (n - 1) / 2]`` in nats, what two of the n located neurons
            lose together beyond what each does by itself; their pairs a < b in the order of
            ``neurons``, by a, then b. As :func:`dkn_engine.interactions` estimates them by
            gradients; of facts examined by ``clustering="covering"``, which measures them, else
            empty.
        subset_probabilities: float64 ``[2**q]``; bit i of the index = component i suppressed.
        subset_masks: int64, the index of each entry; ``arange(2**q)`` unless sampled.
        subset_objective: float64 ``[2**q]``, attribution's objective in place of the probability,
            by its rule for several tokens (``AttributionConfig.answer_tokens``); empty where the
            objective is the probability, where given neurons are of a fact without the wrong
            answers that it needs, and in what older versions wrote.
        rest_suppressed: for the DKN, with the neurons of no member suppressed too: the
            probabilities of each member alone, then of none (float64 ``[members + 1]``).
    """

    components: tuple[Component, ...] = field(
        default=(), metadata=_kept(Column("int32", "n_components"))
    )
    dkn: tuple[int, ...] = field(
        default=(), metadata=_kept(Column("list<int32>"), Column("bool", "is_degenerate"))
    )
    partial_drop: float = field(default=_NAN, metadata=_FIGURE)
    full_drop: float = field(default=_NAN, metadata=_FIGURE)
    redundancy: float = field(default=_NAN, metadata=_FIGURE)
    excess: float = field(default=_NAN, metadata=_LATER_FIGURE)
    candidates: Drops | None = field(default=None, metadata={"drops": ("candidates",)})
    controls: Mapping[str, Drops] = field(default_factory=dict, metadata={"drops": CONTROLS})
    n_paraphrases_not_known: int | None = field(default=None, metadata=_LATER_COUNT)
    n_reference: int | None = field(default=None, metadata=_LATER_COUNT)
    n_reference_packaged: int | None = field(default=None, metadata=_LATER_COUNT)
    n_paraphrases_known: int | None = field(
        default=None,
        metadata=_kept(
            Column("int32", later=True, nullable=True),
            Column("bool", "holds", later=True, nullable=True),
        ),
    )
    null: str | None = field(default=None, metadata=_LATER_TEXT)
    null_draws: int | None = field(default=None, metadata=_LATER_COUNT)
    null_passing: int | None = field(default=None, metadata=_LATER_COUNT)
    null_p: float = field(default=_NAN, metadata=_LATER_FIGURE)
    subset_probabilities: NDArray[np.float64] = _array(np.empty(0), Column("list<float64>"))
    subset_masks: NDArray[np.int64] = _array(np.empty(0, np.int64), Column("list<int64>"))
    subset_objective: NDArray[np.float64] = _array(
        np.empty(0), Column("list<float64>", later=True, nullable=True)
    )
    rest_suppressed: NDArray[np.float64] = _array(np.empty(0), Column("list<float64>"))
    pair_interactions: NDArray[np.float32] = _array(
        np.empty(0, np.float32), Column("list<float32>", later=True, nullable=True)
    )

    @property
    def is_degenerate(self) -> bool:
        """Whether a degenerate family of at least two components was found."""
        return len(self.dkn) >= 2

    @property
    def holds(self) -> bool | None:
        """Whether there is a DKN that shows on the held-out paraphrases that the model answers.

        Over those, one member suppressed costs at most 0.35 of the answer's probability on average,
        all members at least 0.5. None where no such paraphrase was asked, and for DKNs of older
        versions, which did not keep the first figure.
        """
        held_out = self.controls.get("paraphrases")
        n = self.n_paraphrases_known
        n = (0 if held_out is None else held_out.n) if n is None else n
        if not n:
            return None
        if not self.is_degenerate:
            return False
        if held_out is None or math.isnan(held_out.single_drop + held_out.full_drop):
            return None
        return bool(held_out.single_drop <= HOLDS_SINGLE and held_out.full_drop >= HOLDS_FULL)


@dataclass(frozen=True, eq=False)
class AttributionQuality:
    """How well the scores of one fact were integrated.

    Attributes:
        convergence_delta: float32 ``[L]``; ``n_points``: int32 ``[L]``; see :class:`Attribution`.
        converged: whether all layers are.
        path: ``"sweep"``, ``"blocks"`` or ``"general"``; empty where nothing was attributed.
    """

    convergence_delta: NDArray[np.float32] = _array(
        np.empty(0, np.float32),
        Column("float32", "max_abs_convergence_delta"),
        Column("float32", table="attribution"),
    )
    n_points: NDArray[np.int32] = _array(
        np.empty(0, np.int32), Column("int64", "n_points"), Column("int32", table="attribution")
    )
    converged: bool = field(default=True, metadata=_kept(Column("bool")))
    path: str = field(default="", metadata=_TEXT)


@dataclass(frozen=True, eq=False)
class FactResult(AttributionQuality, Degeneracy, Selection, Answered):
    """Everything found about one fact; the row of a run directory.

    It is made of four records, whose fields are its own, in this order: :class:`Answered`,
    :class:`Selection`, :class:`Degeneracy`, :class:`AttributionQuality`. A field that is added to
    one of them with its column is in the tables and in what is read from them.
    """

    @classmethod
    def of(
        cls,
        answered: Answered,
        selection: Selection,
        degeneracy: Degeneracy,
        quality: AttributionQuality,
    ) -> FactResult:
        """The result that the four records are together."""
        parts = (answered, selection, degeneracy, quality)
        return cls(**{f.name: getattr(part, f.name) for part in parts for f in fields(part)})

    def _repr_html_(self) -> str:
        return str(shown("fact_html", self))
