"""The last lines of ``dkn-engine find``: what was found, the page, what to do next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from dkn_engine.cli.console import number_of
from dkn_engine.config import Config, FilterConfig

if TYPE_CHECKING:
    from dkn_engine.cli.find_options import FindOptions
    from dkn_engine.cli.results import Overview

NOTHING_KNOWN = 3  # exit code of a run whose model knows none of the facts


def ending(options: FindOptions, config: Config, overview: Overview, page: str | None) -> str:
    """Lines of text, ending in a newline.

    Args:
        options: of the run.
        config: its settings.
        overview: its results in short.
        page: where its page is, if one was written.
    """
    summary = overview.summary
    if not summary.n_facts:
        lines = ["No facts were computed."]
    elif not summary.n_known:
        lines = _advice(config.filter, overview)
    else:
        known = number_of(summary.n_known, "known fact")
        verb = "has" if 1 in (summary.n_degenerate, summary.n_known) else "have"
        lines = [f"{summary.n_degenerate} of {known} {verb} a DKN."]
    if page is not None:
        lines.append(f"Open {page}")
    return "\n".join([*lines, f"Next: {_next(options)}"]) + "\n"


def _advice(rule: FilterConfig, overview: Overview) -> list[str]:
    """The rule by which nothing is known, the fact that comes closest, and what can be done."""
    needed = f"p at least {rule.min_probability:g} (filter.min_probability)"
    if rule.require_rank_1:
        needed = f"rank 1 among the next tokens (filter.require_rank_1) and {needed}"
    lines = ["The model knows none of these facts, so that there is nothing to locate.", ""]
    lines[1] = f"To be known, an answer must have {needed}."
    asked = [r for r in overview.first if r.status == "not_known"]
    if asked:
        best = max(asked, key=lambda r: r.probability)
        lines.append(
            f"The closest: {best.prompt!r} → {best.answer!r}: rank {best.rank}, "
            f"p {best.probability:.2g}."
        )
    lines.append("Ask so that the answer comes next, or give another model or other settings.")
    return lines


def _next(options: FindOptions) -> str:
    """A command that goes on from here."""
    model, facts = options.input.model, options.question.facts
    if facts is None:
        asked = ["find", "--model", model, "--facts", "demo"]
    elif facts.startswith("demo"):
        asked = ["find", "--model", model]
        asked += ["--prompt", "The capital of Italy is", "--answer", "Rome"]
    else:
        asked = ["analyze", "all", "--models", model, "--facts", facts]
    return shlex.join(["dkn-engine", *asked])
