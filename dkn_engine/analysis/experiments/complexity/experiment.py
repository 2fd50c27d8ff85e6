"""Complexity: how degenerate the same facts are in short and in long text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dkn_engine.analysis.config import ComplexityConfig
from dkn_engine.analysis.experiments.complexity.long_forms import known_forms, long_form
from dkn_engine.analysis.experiments.complexity.text_complexity import text_complexity
from dkn_engine.analysis.light_runs import without_controls
from dkn_engine.analysis.neuron_groups import require_results_of
from dkn_engine.config import Config, FactsConfig
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.files.local_paths import local_path
from dkn_engine.models.layout import decoder_layout
from dkn_engine.run.pipeline import find_dkns
from dkn_engine.run.progress import showing
from dkn_engine.statistics.table import COMPARED, Sample, Table, tabulate
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

SHORT = "short"
# Of the family of all candidate components, whether or not some of them form a DKN.
CANDIDATES = (("sets", "candidates"),)
USABLE = ("ok", "not_known")


def complexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    results: Sequence[FactResult],
    settings: ComplexityConfig | None = None,
    *,
    config: Config | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | bool | None = None,
    **changes: Any,
) -> Table:
    """Degeneracy of facts in long forms beside the short one, paired by fact.

    Groups are the forms, ``short`` among them. Every long form goes through
    :func:`dkn_engine.find_dkns` with the configuration of the short one. A fact counts in a form
    whether or not the model knows it there (``known``); the other figures are of known facts.

    Args:
        model, tokenizer, facts: as in :func:`dkn_engine.find_dkns`.
        results: what it gave for these facts.
        settings: the long forms; None for the defaults.
        config: the one that ``results`` were found with; the defaults if None.
        seed: of the draw of templates and of the resampling.
        out: folder of a run directory for each form, created or continued; None keeps nothing. Its
            facts have no other control than random neurons.
        progress: True shows a bar, or lines in a log; a callable is called with (facts done, facts
            of all long forms).
        changes: of single settings, by their names.

    Raises:
        UserError: an unknown or repeated form, or results that are not those of the facts; and
            what :func:`dkn_engine.find_dkns` raises.

    Source:
        Chen et al., Cracking Factual Knowledge (arXiv 2402.13731), the analysis of complexity.
    """
    forms = ComplexityConfig.of(settings, **changes).forms
    decoder_layout(model, "complexity")
    config = Config() if config is None else config
    # Of the controls, random neurons alone are in the table.
    light = without_controls(config, n_random=config.filter.n_random, n_random_searches=0)
    facts = fact_list(facts, config.facts)
    require_results_of(facts, results)
    _require_forms(forms)
    usable = [f for f, r in zip(facts, results, strict=True) if r.status in USABLE]
    texts = {SHORT: usable, **{f: _rewritten(tokenizer, usable, f, seed) for f in forms}}
    found: dict[str, Sequence[FactResult]] = dict.fromkeys(texts, ())
    found[SHORT] = [r for r in results if r.status in USABLE]
    total = sum(len(texts[f]) for f in forms)
    starts = accumulate((len(texts[f]) for f in forms), initial=0)
    with showing(progress) as watch:
        for done, form in zip(starts, forms, strict=False):
            tell = None if watch is None else _shifted(watch, done, total)
            folder = None if out is None else local_path(out) / form
            if texts[form]:
                found[form] = find_dkns(model, tokenizer, texts[form], light, folder, progress=tell)
    samples: list[Sample] = []
    for form in texts:
        samples += _text_samples(model, tokenizer, form, texts[form], config.facts)
        samples += degeneracy_samples(form, "form", found[form])
    counts = {f: _counts(found[f], len(usable)) for f in texts}
    return tabulate(
        "complexity",
        samples,
        seed=seed,
        compared=(*((f, SHORT) for f in forms), *COMPARED),
        settings={"config": config.hash, "facts": len(facts), "forms": counts},
        notes=_notes(len(facts) - len(usable), counts),
    )


def degeneracy_samples(group: str, name: str, results: Sequence[FactResult]) -> Iterator[Sample]:
    """What :func:`dkn_engine.find_dkns` found, fact by fact, as figures of one group.

    ``known`` is of every fact that could be asked; everything else of the known ones.
    ``relative_persistence`` is persistence / death, which has no unit, so that it can be compared
    between models. Partial
    drop, full drop and redundancy are those of all candidates (two or more; under the condition
    ``sets``), and again of the DKN beside random sets matched to it, as groups ``D`` and ``Rnd``
    under the condition ``name=group``.

    Args:
        group: of the samples.
        name: what the groups are, such as ``form``.
        results: of one run.
    """
    for r in results:
        if r.status in USABLE:
            yield Sample(r.fact_id, group, "known", float(r.status == "ok"))
    for r in results:
        if r.status != "ok":
            continue
        for figure, value in _figures(r).items():
            yield Sample(r.fact_id, group, figure, value)
        # One candidate alone has no partial drop, and a redundancy of 1.
        whole = r.candidates if len(r.components) >= 2 else None
        for figure in ("partial_drop", "full_drop", "redundancy"):
            value = math.nan if whole is None else getattr(whole, figure)
            yield Sample(r.fact_id, group, figure, value, CANDIDATES)
        random = r.controls.get("random")
        if not r.is_degenerate or random is None:
            continue
        for figure in ("partial_drop", "full_drop"):
            for of, drops in (("D", r), ("Rnd", random)):
                yield Sample(r.fact_id, of, figure, getattr(drops, figure), ((name, group),))


def _figures(r: FactResult) -> dict[str, float]:
    sizes = [len(c.neurons) for c in r.components]
    persistence = [c.persistence for c in r.components]
    # Heights are positive: a component of two neurons or more has merged.
    relative = [c.persistence / c.death for c in r.components if c.death > 0]
    return {
        "probability": r.probability,
        "knowledge_neurons": len(r.neurons),
        "components": len(sizes),
        "component_size": float(np.mean(sizes)) if sizes else math.nan,
        "persistence": float(np.mean(persistence)) if sizes else math.nan,
        "relative_persistence": float(np.mean(relative)) if relative else math.nan,
        "degenerate": float(r.is_degenerate),
        "dkn_components": len(r.dkn) if r.is_degenerate else math.nan,
    }


def _text_samples(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    form: str,
    facts: Sequence[Fact],
    config: FactsConfig,
) -> Iterator[Sample]:
    """Length and surprisal of the prompts of the facts that can be encoded."""
    texts = text_complexity(model, tokenizer, facts, config)
    for fact, found in zip(facts, texts, strict=True):
        if found is not None:  # Else it is counted as unusable.
            n_tokens, surprisal = found
            yield Sample(fact.id, form, "prompt_tokens", n_tokens)
            yield Sample(fact.id, form, "surprisal", surprisal)


def _rewritten(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], form: str, seed: int
) -> list[Fact]:
    def n_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    rewritten = (long_form(f, form, n_tokens, seed) for f in facts)
    return [f for f in rewritten if f is not None]


def _require_forms(forms: Sequence[str]) -> None:
    for form in forms:
        if form not in known_forms():
            raise UserError(f"forms must be among {', '.join(known_forms())}; got {form!r}")
    if not forms or len(set(forms)) < len(forms):
        raise UserError(f"forms must name at least one form, each once; got {list(forms)}")


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _counts(results: Sequence[FactResult], n_facts: int) -> dict[str, int]:
    status = Counter(r.status for r in results)
    return {
        "known": status["ok"],
        "not_known": status["not_known"],
        "unusable": status["skipped"] + status["error"],
        "no_long_form": n_facts - len(results),
    }


def _notes(n_unusable: int, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    notes = [
        f"{form}: the model knows {c['known']} facts, {c['not_known']} it does not know, "
        f"{c['unusable']} could not be used, {c['no_long_form']} have no such form."
        for form, c in counts.items()
    ]
    if n_unusable:
        notes.append(f"{n_unusable} facts could not be used in their short form and are left out.")
    return [
        *notes,
        "Rows are means over the facts known in a form, comparisons over those known in both.",
        "Facts that were chosen because the model knows them in the short form are known less "
        "often in any other one.",
    ]
