"""Examples in docstrings of public names print what they say."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from tests.support.demo import loading_and_asking_once


def examples() -> list[doctest.DocTest]:
    """Of public functions, classes and their methods, here and in the topology."""
    public = {id(one): one for part in (dkn, dkn.topology) for one in documented(part)}
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for one in public.values() for t in finder.find(one, one.__name__) if t.examples]
    return sorted(found, key=lambda test: test.name)


def documented(part: Any) -> list[Any]:
    """The functions and classes of a part."""
    every = [getattr(part, name) for name in part.__all__]
    return [one for one in every if inspect.isclass(one) or inspect.isfunction(one)]


def test_they_are_found() -> None:
    names = {test.name for test in examples()}
    assert {"Fact", "load_facts", "Config.set", "distances", "components", "find"} <= names


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_it_prints_what_it_says(example: doctest.DocTest) -> None:
    with np.printoptions(legacy=False), loading_and_asking_once():
        out: list[str] = []
        doctest.DocTestRunner().run(example, out=out.append, clear_globs=True)
    assert "".join(out) == ""
