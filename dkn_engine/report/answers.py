"""What a run says first: whether there are DKNs, and whether they stand against their controls."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dkn_engine.report.columns import CONTROL_WORDS
from dkn_engine.report.family import NULL_WORDS
from dkn_engine.report.summary import Summary
from dkn_engine.statistics.words import number
from dkn_engine.types import HOLDS_FULL, HOLDS_SINGLE

WORDS = (
    "Knowledge neurons (KNs): the neurons of the MLPs that the answer's probability is attributed "
    "to, above a threshold.",
    "Component: KNs that the clustering puts together. The default joins neurons of adjacent "
    "layers in the order of their connection weights w, the strongest first (a filtration by the "
    "distance 1/|w|): a component is born when neurons join and dies when it joins an older one.",
    "Family: some of a fact's components. DKN, degenerate knowledge neurons: a family whose "
    "members cover for one another. With any one of them left the model keeps most of the answer's "
    "probability, with all suppressed it loses a good part of it (by the settings of the filter).",
    f"Hold: on wordings that were not used for finding, one component suppressed costs "
    f"{HOLDS_SINGLE:.0%} of the probability at most on average, all cost {HOLDS_FULL:.0%} or more. "
    "Null: what the same filter finds by chance.",
)


def answers(summary: Summary) -> list[str]:
    """Sentences: are there DKNs, more than chance finds, on other wordings, beyond any neurons."""
    if not summary.n_facts:
        return []
    if not summary.n_known:
        return ["The model knows none of these facts, so there is nothing to say of DKNs."]
    return [" ".join(_found(summary)), *_held_out(summary), *_random(summary)]


def _found(summary: Summary) -> Iterator[str]:
    n, known = summary.n_degenerate, f"{summary.n_known:,}"
    of = f"the {known} known facts" if summary.n_known > 1 else "the one known fact"
    if n:
        yield f"Of {of} {n:,} {'has' if n == 1 else 'have'} a DKN."
    else:
        yield f"No fact has a DKN: no degenerate family of components was found in {of}."
    chance = summary.chance
    if chance is None:
        yield "What chance finds was not measured."
        return
    drawn = ", ".join(NULL_WORDS.get(name, name) for name in summary.nulls)
    start = f"Chance ({drawn}) finds {chance.expected:.1f} in the same facts"
    low, high = chance.beyond.ci_low, chance.beyond.ci_high
    if not math.isfinite(low):
        yield f"{start}: too few facts to tell the two apart."
    elif low > 0:
        yield f"{start}: there are more than chance finds."
    elif high < 0:
        yield f"{start}: there are fewer than chance finds."
    else:
        yield f"{start}: it is not shown that there are more than chance finds."


def _held_out(summary: Summary) -> Iterator[str]:
    """The control that decides: other wordings, of facts with and without a DKN."""
    if not summary.n_degenerate:
        return
    if not summary.n_held_out_dkn:
        yield "No fact with a DKN has a held-out paraphrase that the model knows."
        return
    text = (
        f"On held-out paraphrases {summary.n_holding:,} of {summary.n_held_out_dkn:,} DKNs hold; "
        "there the median redundancy (1: independent) is"
    )
    groups = {"with a DKN": summary.dkn, "without one": summary.no_dkn}
    medians = [
        f"{number(group.controls['paraphrases'].redundancy.median)} {words}"
        for words, group in groups.items()
        if "paraphrases" in group.controls
    ]
    yield f"{text} {', '.join(medians)}."


def _random(summary: Summary) -> Iterator[str]:
    """Whether it matters which neurons are suppressed."""
    for c in summary.comparisons:
        if c.group == "DKN families" and c.against == CONTROL_WORDS["random"]:
            own, control = summary.dkn.drops, summary.dkn.controls["random"]
            costs = f"{own.full_drop.mean:z.0%} against {control.full_drop.mean:z.0%}"
            yield (
                "Suppressing a whole DKN against suppressing random neurons of the same number and "
                f"layers: {costs} of the answer's probability, {c.verdict}."
            )
