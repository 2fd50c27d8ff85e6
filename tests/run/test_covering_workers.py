"""A search for covering groups in two processes: the bits of one, each of them a fresh one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dkn_engine.run.workers.job import ModelSpec
from dkn_engine.run.workers.processes import iter_dkns_in_workers
from tests.degeneracy.test_covering_groups import CONFIG
from tests.run.test_pipeline import assert_equal, parquet
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.words import words_tokenizer


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_find_the_covering_groups_of_one_process(tmp_path: Path) -> None:
    """With the paraphrases that a search may ask, and the null that repeats it."""
    planted_model().save_pretrained(tmp_path / "model")
    words_tokenizer().save_pretrained(tmp_path / "model")
    facts = [
        dataclasses.replace(one, id=f"{one.id}{i}", paraphrases=(one.prompt,) * i)
        for i in range(2)
        for one in (EITHER.fact, BOTH.fact)
    ]
    config = CONFIG.set({"facts_per_chunk": 1, "selection.n_paraphrases": 1})
    spec = ModelSpec(tmp_path / "model", device="cpu")
    alone, found = (
        list(iter_dkns_in_workers(spec, facts, config, tmp_path / str(n), workers=n))
        for n in (1, 2)
    )
    assert_equal(found, alone)
    assert parquet(tmp_path / "2") == parquet(tmp_path / "1")
    assert [r.is_degenerate for r in found] == [True, False] * 2
    assert all(r.null_draws == 1 and len(r.pair_interactions) for r in found)
