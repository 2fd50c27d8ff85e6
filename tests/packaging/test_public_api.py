"""What ``import dkn_engine`` offers: names, signatures, fields, information about the machine."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.models.packaged.smollm2 import FOLDER, INSTALL
from dkn_engine.ops.dispatch import choose
from dkn_engine.run import build_info as info


@pytest.mark.parametrize("name", dkn.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(dkn, name)
    assert getattr(dkn, name) is found
    assert name in dir(dkn)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert found.__name__ == name
        assert found.__doc__


def test_public_names_are_listed_once_and_all() -> None:
    assert len(set(dkn.__all__)) == len(dkn.__all__)
    assert set(dkn._HOME) <= set(dkn.__all__)
    promised = (
        "find find_dkns iter_dkns iter_dkns_in_workers ModelSpec Shard merge attribute "
        "iter_attribute answer_probability intervene load_model "
        "load_facts iter_facts build_info topology Config AttributionConfig Fact FactResult "
        "Component Attribution Results RunComparison compare examine faithfulness plot"
    )
    assert set(promised.split()) <= set(dkn.__all__)


def test_an_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing_of_the_kind'"):
        _ = dkn.nothing_of_the_kind
    with pytest.raises(ImportError):
        importlib.import_module("dkn_engine.nothing_of_the_kind")


def parameters(function: object) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["iter_dkns_in_workers", "iter_dkns_on_ray"])
def test_workers_take_what_the_pipeline_takes(name: str) -> None:
    found, here = parameters(getattr(dkn, name)), parameters(dkn.iter_dkns)
    assert set(here) - set(found) == {"tokenizer"}
    assert list(found)[:4] == ["model", "facts", "config", "out"]
    assert all(found[p].default is here[p].default for p in ("config", "out", "shard", "progress"))


def test_pictures_take_what_they_draw_then_axes() -> None:
    for name in ("graph", "barcode", "subsets", "neurons", "overlap"):
        found = parameters(getattr(dkn.plot, name))
        assert list(found) in (["result", "ax"], ["results", "ax"])
        assert found["ax"].default is None


def test_given_neurons_and_baselines_come_where_the_contract_says() -> None:
    assert list(parameters(dkn.examine)) == ["model", "tokenizer", "facts", "neurons", "config"]
    assert list(parameters(dkn.compare)) == ["a", "b"]
    for function in (dkn.find_dkns, dkn.attribute):
        assert parameters(function)["baselines"].default is None


@pytest.mark.parametrize("name", ["find_dkns", "iter_dkns"])
def test_the_pipeline_takes_what_the_contract_says(name: str) -> None:
    found = parameters(getattr(dkn, name))
    assert list(found)[:5] == ["model", "tokenizer", "facts", "config", "out"]
    assert found["config"].default is None
    assert found["out"].default is None


def test_interventions_take_what_the_contract_says() -> None:
    found = parameters(dkn.answer_probability)
    assert list(found)[:3] == ["model", "tokenizer", "facts"]
    assert {"suppress", "enhance", "positions", "factor"} <= set(found)
    assert found["positions"].default == "answer"
    assert list(parameters(dkn.intervene))[:2] == ["model", "neurons"]


def test_records_are_frozen() -> None:
    fact = dkn.Fact("f", "p", "a")
    assert (fact.aliases, fact.paraphrases, fact.wrong_answers) == ((), (), ())
    assert fact.subject is fact.relation is fact.date is None
    for record in (fact, dkn.Drops(0.1, 0.2), dkn.FactResult("f", "ok"), dkn.Config()):
        name = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)


def test_a_result_has_the_fields_of_the_contract() -> None:
    fields = {f.name for f in dataclasses.fields(dkn.FactResult)}
    promised = (
        "fact_id status reason probability rank neurons scores components subset_probabilities dkn "
        "partial_drop full_drop redundancy controls convergence_delta"
    )
    assert set(promised.split()) <= fields
    empty = dkn.FactResult("f", "skipped", "why")
    assert not empty.is_degenerate
    assert empty.neurons.shape == (0, 2)
    assert empty.neurons.dtype == np.dtype(np.int32)
    assert empty.scores.dtype == np.dtype(np.float32)
    assert empty.subset_probabilities.dtype == np.dtype(np.float64)
    assert math.isnan(empty.probability)
    assert (empty.components, empty.dkn, empty.controls) == ((), (), {})
    # Not one array or dictionary that results share.
    other = dkn.FactResult("g", "skipped")
    assert empty.neurons is not other.neurons
    assert empty.controls is not other.controls


@pytest.mark.parametrize(("dkn_", "expected"), [((), False), ((1,), False), ((0, 2), True)])
def test_two_components_make_a_fact_degenerate(dkn_: tuple[int, ...], expected: bool) -> None:
    assert dkn.FactResult("f", "ok", dkn=dkn_).is_degenerate is expected


def test_errors_are_what_callers_catch() -> None:
    assert issubclass(dkn.UserError, dkn.DknError)
    assert issubclass(dkn.UserError, ValueError)
    assert issubclass(dkn.BackendError, RuntimeError)
    for error in (dkn.FactError, dkn.UnsupportedModelError, dkn.RunDirectoryError):
        assert issubclass(error, dkn.UserError)


def test_build_info_is_plain_data() -> None:
    found = dkn.build_info()
    assert set(found) >= {
        "dkn_engine",
        "python",
        "packages",
        "devices",
        "cpu_threads",
        "native_extension",
        "backends",
        "demo_model",
    }
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["torch"] == torch.__version__
    assert found["devices"][0] == "cpu"
    assert found["cpu_threads"] == torch.get_num_threads()
    assert set(found["backends"]) == {"reference", "native", "numba", "triton"}
    assert found["backends"]["reference"].startswith("runs")


@pytest.mark.parametrize("backend", ["reference", "triton", "numba"])
def test_a_backend_is_said_to_run_where_it_runs(backend: str) -> None:
    said = dkn.build_info()["backends"][backend]
    on = torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    if said.startswith("runs"):
        assert choose("ig_accumulate", backend, on) == backend
    else:
        with pytest.raises(dkn.BackendError, match=backend):
            choose("any", backend, on)


def test_where_the_demo_model_is_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DKN_ENGINE_CACHE", str(tmp_path))
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    assert info.build_info()["demo_model"] == f"not installed; to get it: {INSTALL}"
    (tmp_path / FOLDER).mkdir()
    assert info.build_info()["demo_model"] == "in the cache"
    monkeypatch.setattr(info, "find_spec", lambda name: name)
    assert info.build_info()["demo_model"] == "installed"


def test_versions_name_what_numbers_depend_on() -> None:
    found = info.versions()
    assert set(found) == {"dkn_engine", "code", "python", "torch", "transformers", "numpy"}
    assert found["numpy"] == np.__version__
    assert found["dkn_engine"] == info.version() == dkn.__version__


def test_a_package_that_is_not_installed_is_named_as_such() -> None:
    assert info.version_of("no-such-package-at-all") == "not installed"
