"""How much of an answer the first neurons of a ranking carry, and how much goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import AttributionConfig, FactsConfig, Positions
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import require_inside, suppress
from dkn_engine.degeneracy.interventions import (
    Neurons,
    means_table,
    neurons_of_fact,
    require_ids,
    require_word,
)
from dkn_engine.degeneracy.objectives import Objective
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.files.sections import integer
from dkn_engine.forward.encoding import encode_sequence, wrong_answers_of
from dkn_engine.models.layout import find_layout

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Measure = Literal["probability", "log_probability", "logit", "logit_difference"]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """What the objective m is with the first k neurons of a ranking kept, or removed.

    Attributes:
        fact_id: whose answer.
        sizes: int64 ``[K]``, the numbers k, ascending.
        whole: m of the unmodified model.
        none: m with all neurons of the ranking suppressed.
        kept: float64 ``[K]``, m with all of them suppressed but the first k.
        removed: float64 ``[K]``, m with the first k suppressed.
    """

    fact_id: str
    sizes: NDArray[np.int64]
    whole: float
    none: float
    kept: NDArray[np.float64]
    removed: NDArray[np.float64]

    @property
    def faithfulness(self) -> NDArray[np.float64]:
        """``[K]``: the share of ``whole - none`` that the first k keep; 1 is all of it.

        NaN where the ranking's neurons together change nothing.
        """
        return self._share(self.kept - self.none)

    @property
    def completeness(self) -> NDArray[np.float64]:
        """``[K]``: the share of ``whole - none`` that goes when the first k are removed."""
        return self._share(self.whole - self.removed)

    @property
    def area_kept(self) -> float:
        """Area under :attr:`faithfulness` over ln k, by trapezoids, per unit of its width."""
        return self._area(self.faithfulness)

    @property
    def area_removed(self) -> float:
        """The same under :attr:`completeness`."""
        return self._area(self.completeness)

    def _share(self, part: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            share: NDArray[np.float64] = part / (self.whole - self.none)
        return np.where(np.isfinite(share), share, np.nan)

    def _area(self, curve: NDArray[np.float64]) -> float:
        if len(curve) == 1:
            return float(curve[0])
        place = np.log(self.sizes)
        return float(np.trapezoid(curve, place) / (place[-1] - place[0]))


def faithfulness(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    ranking: Neurons,
    *,
    sizes: Sequence[int] | None = None,
    objective: Measure = "probability",
    means: ArrayLike | None = None,
    positions: Positions = "answer",
    facts_config: FactsConfig | None = None,
) -> list[Faithfulness]:
    """How much of facts' answers the first k neurons of a ranking keep, and take with them.

    The neurons of the ranking are the whole that shares are of: rank all of a model's to compare
    with its MLPs, or those that were located to compare with them.

    Args:
        model: a causal decoder of transformers; it is left as it was found.
        tokenizer: the model's.
        facts: whose answers.
        ranking: neurons int ``[n, 2]`` (layer, index), distinct, the first ones foremost; the same
            for all facts, or by fact id.
        sizes: how many of the first are kept and removed, ascending, from 1 to n; None: 1, 2, 4
            and so on, and n.
        objective: m: the ``probability`` of the answer, the product over its tokens, or its
            natural logarithm; the ``logit`` of its tokens, their mean; or ``logit_difference``,
            that minus the mean of the fact's wrong answers', each by its own tokens.
        means: real ``[L, F]``; suppressed activations become these instead of 0.
        positions: where neurons are suppressed; see :func:`dkn_engine.answer_probability`.
        facts_config: how facts become tokens; None for the defaults.

    Returns:
        One of each fact, in their order.

    Raises:
        FactError: a fact cannot be encoded, or has no wrong answers that the objective needs;
            names it.
        UnsupportedModelError: the model is not a causal decoder that the engine knows.
        UserError: an option has a value that is not allowed, a fact has no ranking, or sizes are
            not ascending numbers from 1 to that of its neurons.
        TypeError, ValueError: neurons that are not integers ``[n, 2]``, not distinct, or not the
            model's.

    Source:
        Faithfulness and completeness of circuits: Wang et al. 2022 (arXiv 2211.00593); as shares:
        Marks et al. 2024, section 4 (arXiv 2403.19647).

    Example:
        >>> import dkn_engine as dkn
        >>> model, tokenizer = dkn.load_model("demo")
        >>> fact = ("The capital of France is", "Paris")
        >>> ranking = [(19, 606), (19, 1133), (20, 1188)]  # (layer, index)
        >>> found = dkn.faithfulness(model, tokenizer, fact, ranking)[0]
        >>> found.sizes, found.completeness.round(2)
        (array([1, 2, 3]), array([0.52, 0.61, 1.  ]))
    """
    require_word("objective", objective, get_args(Measure))
    require_word("positions", positions, get_args(Positions))
    config = FactsConfig() if facts_config is None else facts_config
    facts = fact_list(facts, config)
    require_ids("ranking", ranking, facts)
    layout, scoring = find_layout(model), AttributionConfig(objective=objective)
    table = means_table(means, layout)
    found, said = [], False
    for fact in facts:
        neurons = suppress(neurons_of_fact(ranking, fact.id)).neurons
        k = _sizes(sizes, len(neurons), fact.id)
        require_inside([suppress(neurons)], layout)
        sequence = encode_sequence(
            model,
            tokenizer,
            fact.prompt,
            fact.answer,
            config=config,
            fact_id=fact.id,
            wrong_answers=wrong_answers_of(fact, scoring),
        )
        asked: dict[str, Any] = {"positions": positions, "objective": _read(objective)}
        prompts = Prompts(model, layout, [sequence], warn=not said, **asked)
        said |= prompts.stands_in
        found.append(_measured(fact.id, prompts, neurons, k, table))
    return found


def _read(objective: Measure) -> Objective | None:
    """What is read beside the probability, whose logarithm is the sum over the tokens."""
    if objective == "probability":
        return None
    return Objective(objective, "sum" if objective == "log_probability" else "mean")


def _measured(
    fact_id: str,
    prompts: Prompts,
    neurons: NDArray[np.int32],
    sizes: NDArray[np.int64],
    means: NDArray[np.float64] | None,
) -> Faithfulness:
    """Of the only sequence of ``prompts``."""
    off = [neurons[:0], neurons, *(neurons[k:] for k in sizes), *(neurons[:k] for k in sizes)]
    edits = [suppress(some, means) for some in off]
    ((p, read),) = prompts.with_objective([Asked(edits, [0], objective=True)])
    m = (p if read is None else read)[:, 0]
    kept, removed = m[2 : 2 + len(sizes)], m[2 + len(sizes) :]
    return Faithfulness(fact_id, sizes, float(m[0]), float(m[1]), kept, removed)


def _sizes(sizes: Sequence[int] | None, n: int, fact_id: str) -> NDArray[np.int64]:
    """The numbers of neurons to keep and to remove, of n."""
    if not n:
        raise UserError(f"ranking must hold a neuron or more; fact {fact_id!r} has none")
    if sizes is None:
        return np.unique([*(2**i for i in range(n.bit_length())), n])
    numbers = [integer(k) for k in sizes]
    found = [k for k in numbers if k is not None and 1 <= k <= n]
    if not found or len(found) < len(numbers) or sorted(set(found)) != found:
        raise UserError(
            f"sizes must be ascending integers from 1 to {n}, the neurons of fact {fact_id!r}; "
            f"got {list(sizes)}"
        )
    return np.array(found)
