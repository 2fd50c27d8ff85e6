"""Fact checking: do the scores of a fact's neurons tell true statements from false ones?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.config import FactCheckConfig, Form
from dkn_engine.analysis.experiments.fact_check.asking import yes_over_no
from dkn_engine.analysis.experiments.fact_check.detection import Reals
from dkn_engine.analysis.experiments.fact_check.neuron_scores import (
    Sets,
    deal,
    golden_sets,
    mean_attributions,
    practical_sets,
)
from dkn_engine.analysis.experiments.fact_check.scored_statements import ASK, PROB, Scored
from dkn_engine.analysis.experiments.fact_check.statements import (
    Statement,
    make_statements,
    packaged_templates,
)
from dkn_engine.analysis.neuron_groups import NeuronGroups, neuron_groups
from dkn_engine.config import AttributionConfig, Config
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence, encode_sequences
from dkn_engine.models.layout import decoder_layout, find_layout
from dkn_engine.models.tokens import mask_token_id
from dkn_engine.run.progress import showing
from dkn_engine.statistics.table import Sample, Table, tabulate
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

SETTINGS = ("golden", "practical")


def fact_check(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    results: Sequence[FactResult],
    settings: FactCheckConfig | None = None,
    *,
    config: Config | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **changes: Any,
) -> Table:
    """How well scorers tell true statements from false ones, one of each a fact.

    Scorers are the groups of the table. ``D``, ``N`` and ``Rnd``: mean attribution of the stated
    answer over the fact's neurons (setting ``golden``), or over those of the facts of its relation
    in all other folds (``practical``). ``prob``: the model's own log-probability of the stated
    answer. ``ask <template>``: log p(yes) - log p(no) when the model is asked.

    Figures: ``auroc``; ``precision``, ``recall`` and ``f1`` with the threshold of best F1 over the
    other folds (``threshold=fitted``), or with asking also without one (``threshold=none``: yes is
    more probable than no); ``ranked_right``, whether a fact's true statement scores above its
    false one. Rnd is the mean over draws, each with its own threshold. Intervals and p-values
    leave out one fact at a time, with its two statements; thresholds and neurons stay as they were
    fitted.

    Conditions: ``setting``; ``query``, the form of the statements; ``facts``: ``all`` that the
    scorer can score, or those ``with DKN``, which D scores, too. AUROC of D is compared with Rnd,
    N and prob over the latter.

    Args:
        model, tokenizer: as in :func:`dkn_engine.find_dkns`; the model is left as it was found.
        facts, results: of a run, in the same order. Facts that the model does not know have no
            neurons of their own, and count in the practical setting.
        settings: what is stated and how it is scored; None for the defaults.
        config: of the run; None for the defaults.
        seed: of false answers, folds, templates, random neurons and tests.
        progress: True shows a bar, or lines in a log; a callable is called with (statements scored,
            all statements).
        changes: of single settings, by their names.

    Raises:
        UserError: a setting has a value that is not allowed, results are not those of the facts,
            or nothing can be stated.

    Source:
        Chen et al., Cracking Factual Knowledge (arXiv 2402.13731), section 4.
    """
    settings = FactCheckConfig.of(settings, **changes)
    config = Config(seed=seed) if config is None else config
    facts = fact_list(facts, config.facts)
    templates = packaged_templates("ask") if settings.templates is None else settings.templates
    config = dataclasses.replace(config, attribution=_attribution(config, settings.tolerance))
    widths = decoder_layout(model, "fact_check").widths
    groups = neuron_groups(facts, results, widths, n_random=settings.n_random, seed=seed)
    encode = partial(encode_sequences, model, tokenizer, config=config.facts)
    statements, left_out = _stated(facts, results, encode, config, settings.queries, seed)
    said = {s.fact_id for s in statements}
    stated = [f for f in facts if f.id in said]
    known = {g.fact.id: g for g in groups if g.fact.id in said}
    folds = deal(stated, settings.n_folds, seed)
    n_random, share = settings.n_random, settings.relation_share
    practical = practical_sets(stated, folds, known, share, widths, n_random, seed)
    sets = {"golden": {i: golden_sets(g) for i, g in known.items()}, "practical": practical}
    with showing(progress, "statement") as tell:
        scores = _scores(model, tokenizer, statements, sets, templates, n_random, config, tell)
    bench = Scored(statements, folds, seed)
    cells = product(SETTINGS, settings.queries)
    parts = [part for s, form in cells for part in bench.measure(s, form, scores[s])]
    told = {
        "templates": {name: dict(template) for name, template in templates.items()},
        "attribution": config.attribution.written(),
    }
    return tabulate(
        "fact_check",
        [part for part in parts if isinstance(part, Sample)],
        seed=seed,
        compared=(),
        others=[part for part in parts if not isinstance(part, Sample)],
        settings=settings.to_dict() | told,
        notes=_notes(facts, statements, left_out, known, scores),
    )


def _attribution(config: Config, tolerance: float) -> AttributionConfig:
    if config.attribution.baseline == "given":
        raise UserError("baseline must be 'masked' or 'zero' for fact checking; got 'given'")
    if config.attribution.objective == "logit_difference":
        raise UserError(
            "objective must be of the stated answer alone for fact checking; got 'logit_difference'"
        )
    if config.attribution.quadrature != "adaptive":
        return config.attribution
    return dataclasses.replace(config.attribution, tolerance=tolerance)


def _stated(
    facts: Sequence[Fact],
    results: Sequence[FactResult],
    encode: Callable[[Sequence[tuple[str, str]]], list[AnswerSequence]],
    config: Config,
    forms: Sequence[Form],
    seed: int,
) -> tuple[list[Statement], Counter[str]]:
    """The statements about the facts that could be asked, and why facts have none."""
    asked = zip(facts, results, strict=True)
    statements, left_out = make_statements(
        [(fact, r.answer) for fact, r in asked if r.status in {"ok", "not_known"}],
        facts,
        forms,
        lambda prompt, answer: bool(encode([(prompt, answer)])),
        seed=seed,
        n_paraphrases=config.selection.n_paraphrases,
    )
    if not statements:
        raise UserError(f"none of the {len(facts)} facts can be stated both true and false")
    return statements, left_out


_BySetting = Mapping[str, Mapping[str, Sets]]


def _places(
    sets: _BySetting, fact_id: str
) -> Iterator[tuple[tuple[str, str, int], NDArray[np.int32]]]:
    """All sets of a fact, each with its setting, group and draw."""
    for setting in SETTINGS:
        for group, draws in sets[setting].get(fact_id, {}).items():
            for i, neurons in enumerate(draws):
                yield (setting, group, i), neurons


def _scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    statements: Sequence[Statement],
    sets: _BySetting,
    templates: Mapping[str, Mapping[str, str]],
    n_random: int,
    config: Config,
    progress: Progress | None,
) -> dict[str, dict[str, Reals]]:
    """By setting and scorer ``[draws, n_statements]``: NaN where a fact has no such neurons."""
    n, attribution = len(statements), config.attribution
    masked = attribution.baseline == "masked"
    encode = partial(encode_sequence, model, tokenizer, config=config.facts)
    places = [list(_places(sets, s.fact_id)) for s in statements]
    means, probability = mean_attributions(
        model,
        find_layout(model),
        [encode(s.prompt, s.answer) for s in statements],
        [[neurons for _, neurons in of_one] for of_one in places],
        attribution,
        mask_token_id(tokenizer, attribution.mask_token) if masked else None,
        None if progress is None else lambda done: progress(done, n),
    )
    with np.errstate(divide="ignore"):
        of_model = {PROB: np.log(probability)[None]}
    sentences = [s.sentence for s in statements]
    for name, template in templates.items():
        margins = yes_over_no(model, tokenizer, sentences, template, config.facts)
        of_model[f"{ASK}{name}"] = margins[None]
    sizes = {"D": 1, "N": 1, "Rnd": n_random}
    found = {s: {g: np.full((k, n), np.nan) for g, k in sizes.items()} for s in SETTINGS}
    for column, (of_one, values) in enumerate(zip(places, means, strict=True)):
        for ((setting, group, draw), _), value in zip(of_one, values, strict=True):
            found[setting][group][draw, column] = value
    return {setting: scores | of_model for setting, scores in found.items()}


def _notes(
    facts: Sequence[Fact],
    statements: Sequence[Statement],
    left_out: Counter[str],
    known: Mapping[str, NeuronGroups],
    scores: Mapping[str, Mapping[str, Reals]],
) -> Iterator[str]:
    said = {s.fact_id for s in statements}
    yield (
        f"{len(statements)} statements, half of them false, about {len(said)} of {len(facts)} "
        "facts; calling all of them true has an F1 of 0.667."
    )
    for reason, n in left_out.items():
        yield f"{n} facts are left out: {reason}."
    yield (
        f"{len(known)} of them are known to the model, {sum(g.has_dkn for g in known.values())} "
        "have a DKN; the others are left out of D and Rnd in the golden setting."
    )
    for name, values in scores["golden"].items():
        if name not in {"D", "N", "Rnd"}:
            spoilt = np.flatnonzero(~np.isfinite(values).all(axis=0)).tolist()
            n = len({statements[i].fact_id for i in spoilt})
            if n:
                yield f"{n} facts are left out of {name}: they have no finite score of a statement."
    scored = np.isfinite(scores["practical"]["D"][0])
    n = len({s.fact_id for s, there in zip(statements, scored, strict=True) if there})
    yield f"In the practical setting other facts of the relation give D to {n} facts."
    if len(known) == len(said):
        yield (
            "The model knows every fact stated: it ranks each true answer first, which favours "
            "prob and every scorer that follows the answer's probability."
        )
