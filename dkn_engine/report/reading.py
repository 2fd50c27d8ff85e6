"""Sentences that say what the figures mean and what the controls do and do not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dkn_engine.config import CONTROL_EXACT, CONTROL_SAMPLES
from dkn_engine.report.summary import Summary, drop_rows
from dkn_engine.statistics.intervals import FEWEST
from dkn_engine.store.manifest import versions_of

DEFINITIONS = (
    "Partial drop: the share of the answer's probability that is lost, on average, when some but "
    "not all components of a family are suppressed. Full drop: when all are.",
    "A partial drop below the full drop proves nothing alone: independent components show it too. "
    "Redundancy, the log-drop of all suppressed over the sum of the log-drops of each, is above 1 "
    "if components cover for one another, 1 if they are independent, below 1 if each is needed. "
    "Excess is the same two log-drops' difference, 0 for independent components; it is there too "
    "where single components cost nothing and so have no redundancy.",
    "Random neurons are as many in the same layers and none of the fact's own knowledge neurons: "
    "a larger drop than theirs says that it matters which neurons are suppressed, not only how "
    "many. A larger one than on unrelated facts says that they are specific to their own fact. The "
    "prompt's own drops are what families were chosen by; held-out paraphrases were not used for "
    "that. A larger drop than with mean activations instead of zeros is in part the zero's own.",
)
FULL_DROPS = (
    "Full drop minus the control's on the same facts; two-sided sign-flip test, corrected (Holm) "
    f"for the number of rows; at least {FEWEST} facts are needed to say anything"
)
DISPUTED = (
    "Whether facts live in single neurons is disputed: read these figures as what an intervention "
    "does to this model, not as where it stores a fact."
)


def versions_text(manifest: Mapping[str, Any]) -> str:
    """What a run was made with, and what was other when it was continued."""
    first, *later = versions_of(manifest)
    text, before = _named(first), first
    for versions in later:
        changed = {key: value for key, value in versions.items() if before.get(key) != value}
        text, before = f"{text}; continued with {_named(changed)}", versions
    return text


def _named(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def caveats(summary: Summary) -> Iterator[str]:
    """What the figures leave out, and what their controls were measured on."""
    groups = {f: getattr(summary, f).n for f in ("dkn", "no_dkn", "candidates")}
    if any(0 < n < FEWEST for n in groups.values()):
        yield f"A mean of fewer than {FEWEST} facts has no interval."
    drops = [e for *_, row in drop_rows(summary) for e in (row.partial_drop, row.full_drop)]
    for reason in dict.fromkeys(e.reason for e in drops if e.n >= FEWEST and e.reason):
        yield f"Other means without an interval have none since {reason}."
    if drops and not summary.comparisons:
        yield "No controls were measured, so these drops cannot be told from chance."
    yield from _undefined(summary)
    if n := summary.n_sampled_controls:
        yield (
            f"{'1 fact has' if n == 1 else f'{n:,} facts have'} a family of more than "
            f"{CONTROL_EXACT} components: its controls are measured on up to {CONTROL_SAMPLES} of "
            "its subsets, its own partial drop on its whole lattice."
        )
    if summary.n_paraphrases_not_known:
        total = summary.n_paraphrases + summary.n_paraphrases_not_known
        yield (
            f"Of {total:,} held-out paraphrases the model does not answer "
            f"{summary.n_paraphrases_not_known:,}; they are left out."
        )
    if summary.n_reference_packaged:
        yield (
            f"Unrelated facts and mean activations come from {summary.n_reference:,} facts, of "
            f"which {summary.n_reference_packaged:,} are packaged English ones and not of this "
            "run, which has too few (filter.fill_reference = false leaves them out)."
        )


def _undefined(summary: Summary) -> Iterator[str]:
    """How many facts have no redundancy, row by row of the table of drops."""
    left_out, family = [], ""
    for label, is_control, _, row in drop_rows(summary):
        family = family if is_control else label
        n, there = row.full_drop.n, row.redundancy.n
        if there < n:
            name = f"{family}, {label}" if is_control else family
            left_out.append(f"{n - there:,} of {n:,} ({name})")
    if left_out:
        yield (
            "The redundancy is not defined, and its median leaves facts out, where suppressing "
            f"single components costs nothing: {'; '.join(left_out)}."
        )
