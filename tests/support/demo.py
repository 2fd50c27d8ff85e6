"""The demo model loaded once in a process, and what is asked of it again and again, asked once.

Pages, notebooks and docstrings begin with the same questions. Each runs as it stands; only a call
that was made before, of the same loaded model with the same arguments, is given what it gave then.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import dkn_engine as dkn
from dkn_engine.attribution import attribute_facts
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.models import load
from dkn_engine.run import stages

VERBS = ("find", "find_dkns", "attribute")


@functools.cache
def demo_model() -> tuple[Any, Any]:
    """Model and tokenizer on the CPU, for tests that leave the model as it is."""
    return dkn.load_model("demo", device="cpu")


def load_once(name: Any, device: Any = "auto", dtype: Any = "auto", **more: Any) -> tuple[Any, Any]:
    """In place of ``load_model``: the one demo model where it is loaded without options."""
    if (name, device, dtype) == ("demo", "auto", "auto") and not any(more.values()):
        return demo_model()
    return LOAD(name, device, dtype, **more)


LOAD: Callable[..., tuple[Any, Any]] = load.load_model


def load_copy(*name: Any, **options: Any) -> tuple[Any, Any]:
    """In place of ``load_model``, for pages that change what they load."""
    model, tokenizer = load_once(*name, **options)
    return copy.deepcopy(model), tokenizer


@functools.cache
def asked_once(verb: str) -> Callable[..., Any]:
    """The verb, which answers a question about the one demo model from memory the second time.

    Whatever writes a run or shows progress is no mere question. Arguments are matched as the
    verb's own signature takes them, so that a call that it refuses is refused.
    """
    ask: Callable[..., Any] = getattr(dkn, verb)
    signature, answers = inspect.signature(ask), dict[bytes, Any]()

    @functools.wraps(ask)
    def answer(*args: Any, **kwargs: Any) -> Any:
        asked = dict(signature.bind(*args, **kwargs).arguments)
        asks_demo = (asked.pop("model", None), asked.pop("tokenizer", None)) == demo_model()
        if not asks_demo or "out" in asked or "progress" in asked:
            return ask(*args, **kwargs)
        question = pickle.dumps(asked)
        if question not in answers:
            answers[question] = ask(*args, **kwargs)
        return answers[question]

    return answer


@contextmanager
def loading_copies() -> Iterator[None]:
    """Within it ``dkn.load_model`` is :func:`load_copy`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dkn, "load_model", load_copy)
        yield


@functools.cache
def attributed_once() -> Callable[..., Any]:
    """``attribute_chunk``, which runs of other thresholds and controls ask for the same scores."""
    answers = dict[str, Any]()

    @functools.wraps(attribute_chunk)
    def answer(model: Any, layout: Any, sequences: Any, config: Any, **more: Any) -> Any:
        if model is not demo_model()[0]:
            return attribute_chunk(model, layout, sequences, config, **more)
        given = more.get("baselines")
        question = repr(
            (sequences, config, more | {"baselines": given if given is None else given.tolist()})
        )
        if question not in answers:
            answers[question] = attribute_chunk(model, layout, sequences, config, **more)
        return copy.deepcopy(answers[question])

    return answer


@contextmanager
def loading_and_asking_once() -> Iterator[None]:
    """Within it ``dkn.load_model``, that of the command line, and the verbs are these."""
    verbs = {verb: asked_once(verb) for verb in VERBS}
    with pytest.MonkeyPatch.context() as patch:
        for module in (attribute_facts, stages):
            patch.setattr(module, "attribute_chunk", attributed_once())
        patch.setattr(dkn, "load_model", load_once)
        patch.setattr(load, "load_model", load_once)
        for name, verb in verbs.items():
            patch.setattr(dkn, name, verb)
        yield
