"""What suppression showed of a fact's DKN, in words that say no more than was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dkn_engine.report.columns import own_drops
from dkn_engine.report.content import cell_text
from dkn_engine.statistics.words import number
from dkn_engine.types import HOLDS_FULL, HOLDS_SINGLE, Drops, FactResult

# What nulls draw, by their names.
NULL_WORDS = {
    "regrouped": "the fact's own neurons regrouped",
    "regrouped tree": "the choice repeated on the fact's own neurons regrouped",
    "random search": "the search repeated on other neurons of the same layers",
}
_MOST_OF_IT = 0.5  # of the clean probability


def about_family(result: FactResult) -> str:
    """What was tested of the DKN, in its own figures; else, that nothing passed the test."""
    if not result.is_degenerate:
        return (
            "No DKN: in no two or more of these components does each, with the others suppressed, "
            "keep enough of the answer's probability while all suppressed lose enough of it "
            "(by the settings of the filter). The figures below are of all candidates."
            + "".join(f" {text}" for text in (*_objective(result), *_by_chance(result)))
        )
    names = ", ".join(component_name(i) for i in result.dkn)
    texts = [f"The DKN is {names} (marked *).", *_kept(result), _covering(result), *_alone(result)]
    return " ".join([*texts, *_objective(result), *_held_out(result), *_by_chance(result)])


def objectives(drops: Drops) -> tuple[float, float, float]:
    """The objective with nothing, with one member (on average) and with all suppressed; or NaN."""
    if len(drops.objective) < 3:
        return math.nan, math.nan, math.nan
    whole, *alone, none = drops.objective
    return whole, sum(alone) / len(alone), none


def _objective(result: FactResult) -> Iterator[str]:
    """What attribution scores, where it is not the probability."""
    whole, one, none = objectives(own_drops(result))
    if not math.isnan(whole):
        yield (
            f"The objective of attribution is {cell_text(whole)}, with one component suppressed "
            f"{cell_text(one)} on average, with all {cell_text(none)}."
        )


def _held_out(result: FactResult) -> Iterator[str]:
    """Whether the DKN shows on paraphrases that were not used for finding it."""
    held_out = result.controls.get("paraphrases")
    if result.holds is None or held_out is None:
        return
    verdict = "It holds" if result.holds else "It does not hold"
    yield (
        f"{verdict} on held-out paraphrases (n = {held_out.n:,}): there one component suppressed "
        f"costs {held_out.single_drop:z.0%} on average, all cost {held_out.full_drop:z.0%} (to "
        f"hold, {HOLDS_SINGLE:.0%} at most and {HOLDS_FULL:.0%} or more)."
    )


def _by_chance(result: FactResult) -> Iterator[str]:
    """What the null finds in the fact's place."""
    if not result.null_draws:
        return
    drawn = NULL_WORDS.get(result.null or "", result.null)
    yield (
        f"By chance ({drawn}, {result.null_draws:,} draws) {result.null_passing:,} draws have a "
        f"DKN; p = {result.null_p:.2g} for doing as well as this fact."
    )


def _kept(result: FactResult) -> Iterator[str]:
    """What is left of the probability with all but one of the DKN suppressed, and with all."""
    p = dict(zip(result.subset_masks.tolist(), result.subset_probabilities.tolist(), strict=True))
    whole = sum(1 << i for i in result.dkn)
    left = {i: p[whole ^ 1 << i] / p[0] for i in result.dkn if p.get(0) and whole ^ 1 << i in p}
    if left:
        shares = ", ".join(f"{p:z.0%} if {component_name(i)} is left" for i, p in left.items())
        yield (
            "With all but one of its components suppressed the model keeps of the answer's "
            f"probability {shares};"
        )
    random = result.controls.get("random")
    beside = (
        f" (random neurons, as many in the same layers: {1 - random.full_drop:z.0%})"
        if random is not None and math.isfinite(random.full_drop)
        else ""
    )
    start = "with all suppressed" if left else "With all of them suppressed the model keeps"
    yield f"{start} {1 - result.full_drop:z.0%}{beside}."


def _covering(result: FactResult) -> str:
    """Whether the components cover for one another."""
    ratio = round(result.redundancy, 2)
    if not math.isfinite(ratio):
        return (
            "Their redundancy is not defined, since suppressing them one at a time costs nothing; "
            f"excess {number(result.excess)}."
        )
    if ratio > 1:
        return f"They cover for one another: redundancy {ratio:.2f}, above 1."
    return f"They do not cover for one another: redundancy {ratio:.2f}, not above 1."


def _alone(result: FactResult) -> Iterator[str]:
    """What the components do with all other knowledge neurons suppressed, too."""
    if len(result.rest_suppressed) != len(result.dkn) + 1:
        return
    *alone, none = result.rest_suppressed.tolist()
    figures = ", ".join(
        f"p = {p:.3g} with {component_name(i)} alone"
        for i, p in zip(result.dkn, alone, strict=True)
    )
    enough = _MOST_OF_IT * result.probability
    if max(alone) < enough:
        start = "They do not carry the fact alone: with"
    elif min(alone) >= enough:
        start = "Each carries most of it alone, too: with"
    else:
        start = "Not every one of them carries most of it alone: with"
    yield (
        f"{start} all other knowledge neurons suppressed as well, {figures}, and p = {none:.3g} "
        "with none."
    )


def component_name(component: int) -> str:
    """As figures and tables name a candidate."""
    return f"C{component + 1}"


def members_of(mask: int) -> str:
    """The components of a subset, whose bits are set, by their names."""
    members = [i for i in range(mask.bit_length()) if mask >> i & 1]
    return " + ".join(map(component_name, members)) or "nothing"
