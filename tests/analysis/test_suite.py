"""``dkn-engine analyze all`` on planted models: every file, what is kept, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import dkn_engine as dkn
from dkn_engine.analysis.config import ANALYSES, SharingConfig
from dkn_engine.analysis.kept_tables import read_table, to_bytes
from dkn_engine.analysis.suite.answers import answer, spelled_out
from dkn_engine.analysis.suite.cells import analyze_cell
from dkn_engine.analysis.suite.headlines import HEADLINES, Headline
from dkn_engine.analysis.suite.requests import Options, Request
from dkn_engine.analysis.suite.tasks import LONGEST, Loaded, longest_first
from dkn_engine.cli import main as cli
from dkn_engine.cli.console import Console
from dkn_engine.cli.settings import config_from_options
from dkn_engine.errors import UserError
from dkn_engine.facts import write_facts
from dkn_engine.statistics.intervals import Estimate
from dkn_engine.statistics.table import Comparison, Row
from dkn_engine.types import Fact
from tests.support import forked
from tests.support.pages import Page
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.words import words_tokenizer

# As in tests/degeneracy/test_planted.py: the leaves of the merge tree are the planted sets.
SETTINGS = [
    *("--set", "selection.threshold=0.4"),
    *("--set", "topology.end=largest_merge"),
    *("--set", "topology.end_value=none"),
    *("--set", "topology.allow_root=false"),
    *("--set", "filter.min_alone=0.5"),
    *("--set", "filter.max_none=0.5"),
]
NO_DRAWING = b'<svg width="9pt" height="9pt" viewBox="0 0 9 9"></svg>'
MADE = ("robustness", "complexity", "sharing")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders; the models differ in their noise alone."""
    folders = tuple(tmp_path_factory.mktemp("models") / name for name in ("calm", "noisy"))
    for folder, noise in zip(folders, (0.01, 0.02), strict=True):
        planted_model(noise).save_pretrained(folder)
        words_tokenizer().save_pretrained(folder)
    return folders  # type: ignore[return-value]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facts") / "planted.jsonl"
    write_facts(path, [EITHER.fact, BOTH.fact])
    return path


def command(out: Path, models: Any, facts: Path, *more: str) -> list[str]:
    names = [str(m) for m in models]
    head = ["analyze", "all", "--models", *names, "--facts", str(facts), "--out", str(out)]
    return [*head, "--quiet", "--draws", "20", *SETTINGS, *more]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, models: tuple[Path, Path], facts: Path) -> Path:
    out = tmp_path_factory.mktemp("grid") / "out"
    assert cli.main(command(out, models, facts, "--analyses", *MADE)) == 0
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures hold nothing: drawing takes most of a command's time, and ``grid`` has them drawn."""
    monkeypatch.setattr("dkn_engine.report.figures.files._saved", lambda *_: NO_DRAWING)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_run(grid: Path) -> None:
    for name in MADE:
        assert {r["run"] for r in rows(grid / f"{name}.csv")} == {"calm", "noisy"}
        assert {r["run"] for r in rows(grid / f"{name}_values.csv")} == {"calm", "noisy"}
        assert (grid / f"{name}_comparisons.csv").exists()
    sizes = rows(grid / "complexity_of_models.csv")
    assert {r["run"] for r in sizes} == {"planted"}
    assert {"calm", "noisy"} <= {r["group"] for r in sizes}


def test_the_planted_fact_is_lost_with_its_neurons_and_not_with_random_ones(grid: Path) -> None:
    wanted = {
        "run": "calm",
        "unit": EITHER.fact.id,
        "figure": "drop",
        "action": "suppress",
        "value": "zero",
        "on": "answer",
        "query": "clean",
    }
    found = {
        r["group"]: float(r["measured"])
        for r in rows(grid / "robustness_values.csv")
        if wanted.items() <= r.items()
    }
    assert found["D"] > 0.5
    assert abs(found["Rnd"]) < 0.1


def test_page_shows_every_analysis_and_leads_to_every_run(grid: Path) -> None:
    page = Page((grid / "report.html").read_text(encoding="utf-8"))
    titles = [h.text for h in page.root.all("h2")]
    for label in ("calm", "noisy"):
        for name in MADE:
            assert f"{name.capitalize()}: {label}" in titles
    assert any(t.startswith("Complexity of models") for t in titles)
    links = [a.attributes["href"] for a in page.root.all("a")]
    runs = [link for link in links if link and link.endswith("/run/report.html")]
    assert len(runs) == 2
    assert all((grid / link).is_file() for link in runs)
    pictures = [e.attributes["src"] or "" for e in page.root.all("img")]
    assert len(pictures) == len(list((grid / "figures").glob("*.svg"))) > 0
    assert all(picture.startswith("data:image/svg+xml") for picture in pictures)
    assert sorted((grid / "figures").glob("calm-robustness-*.png"))
    robustness = page.root.all("section", id="robustness-calm")[0].text
    assert "Answer: relative drop of the answer's probability" in robustness
    assert "answer: at the positions that predict the answer" in robustness
    ids = [e.attributes["id"] for e in page.root.walk() if "id" in e.attributes]
    assert len(ids) == len(set(ids))


def test_what_is_there_is_not_made_again(
    grid: Path,
    models: tuple[Path, Path],
    facts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {p.name: p.read_bytes() for p in grid.glob("*.csv")}
    page = (grid / "report.html").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    for name in MADE:
        monkeypatch.setattr(f"dkn_engine.analysis.{name}", fail)
    # The page holds figures as SVG; that they are drawn as PNG too is seen in the folder of grid.
    monkeypatch.setattr("dkn_engine.report.figures.files.to_png", lambda _: b"")
    assert cli.main(command(grid, models, facts, "--analyses", *MADE, "--json")) == 0
    assert {p.name: p.read_bytes() for p in grid.glob("*.csv")} == before
    assert (grid / "report.html").read_bytes() == page
    document = json.loads(capsys.readouterr().out)
    assert set(document["analyses"]["sharing"]) == {"calm", "noisy"}
    assert document["not_made"] == {"calm": {}, "noisy": {}}


@pytest.mark.usefixtures("forked_workers", "undrawn")
def test_two_processes_make_the_bits_of_one(
    tmp_path: Path, models: tuple[Path, Path], facts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fresh process of one thread, as each of the two is."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    asked = command(alone, [models[0]], facts, "--analyses", *MADE, "--threads", "1")
    done = forked.run(forked.program, *asked)
    assert done.returncode == 0, done.stderr
    asked = command(shared, [models[0]], facts, "--analyses", *MADE, "--workers", "2")
    assert cli.main([a for a in asked if a != "--quiet"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "  robustness, complexity, sharing ..." in said
    assert {f"  {name}: done" for name in MADE} <= set(said)
    assert sum(line.startswith("  6/6 facts") for line in said) == 1
    for path in (*alone.glob("*.csv"), *alone.glob("*/*.parquet")):
        assert (shared / path.relative_to(alone)).read_bytes() == path.read_bytes(), path
    assert len(list(alone.glob("*/*.parquet"))) == len(MADE)


@pytest.mark.usefixtures("forked_workers", "undrawn")
def test_what_a_worker_refuses_is_noted_or_raised(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, out = tmp_path / "unknown.jsonl", tmp_path / "out"
    write_facts(unknown, [Fact("u", EITHER.fact.prompt, "w30")])
    names = ("robustness", "complexity")
    asked = command(out, [models[0]], unknown, "--workers", "2", "--analyses", *names)
    assert cli.main(asked) == 0
    assert "robustness of calm was not made: the model knows none" in capsys.readouterr().out
    assert (out / "calm" / "complexity.parquet").exists()
    assert cli.main([*asked, "--strict"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dkn-engine: error: the model knows none of the 1 facts")


def cell_of_sharing(folder: Path, n_random: int = 20) -> Any:
    config = config_from_options(changes=[s for s in SETTINGS if s != "--set"])
    return analyze_cell(
        folder,
        [EITHER.fact, BOTH.fact],
        config,
        Options({"sharing": SharingConfig(n_random=n_random)}),
        Loaded(planted_model(), words_tokenizer()),
        Console(quiet=True),
    )


def test_other_settings_make_other_tables(tmp_path: Path) -> None:
    path = tmp_path / "sharing.parquet"
    times = []
    for draws in (20, 21, 21):
        cell_of_sharing(tmp_path, draws)
        table, made_from = read_table(path)
        assert table.settings["n_random"] == draws
        assert made_from["settings"] == {"n_random": draws}
        times.append(path.stat().st_mtime_ns)
    assert times[0] < times[1] == times[2]


def test_a_table_that_cannot_be_read_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cell_of_sharing(tmp_path)
    path = tmp_path / "sharing.parquet"
    whole = path.read_bytes()
    table, made_from = read_table(path)
    other = to_bytes(dataclasses.replace(table, analysis="robustness"), made_from)
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    for damaged in (b"", b"\xff", b"PAR1" * 100, whole[: len(whole) // 2], flipped, other):
        path.write_bytes(damaged)
        caplog.clear()
        assert set(cell_of_sharing(tmp_path).tables) == {"sharing"}
        assert path.read_bytes() == whole
        (warning,) = caplog.messages
        assert warning.startswith(str(path))
        assert warning.endswith("; it is made again")


def test_a_folder_in_the_place_of_a_table_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "sharing.parquet").mkdir()
    with pytest.raises(UserError, match=r"sharing\.parquet is a folder, where a table shall be"):
        cell_of_sharing(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_table_of_other_code_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the code that makes tables, and of the code that found what they are made from."""
    cell_of_sharing(tmp_path)
    path = tmp_path / "sharing.parquet"
    made = [path.stat().st_mtime_ns]
    cell_of_sharing(tmp_path)
    assert path.stat().st_mtime_ns == made[0]
    # Another commit with the same code makes the same table, of which the first one is named.
    assert read_table(path)[1]["version"] == dkn.__version__
    monkeypatch.setattr("dkn_engine.run.build_info.version", lambda: "9.9.dev1+gcafe")
    cell_of_sharing(tmp_path)
    assert path.stat().st_mtime_ns == made[0]
    assert not caplog.messages
    monkeypatch.setattr("dkn_engine.run.build_info.code_digest", lambda: "0" * 16)
    for _ in range(2):
        cell_of_sharing(tmp_path)
        made.append(path.stat().st_mtime_ns)
    assert made[0] < made[1] == made[2]
    assert f"{tmp_path / 'run'} was made with other versions (" in caplog.messages[0]
    assert ", is now 9.9.dev1+gcafe, code was" in caplog.messages[0]
    shutil.rmtree(tmp_path / "run")
    cell_of_sharing(tmp_path)
    assert path.stat().st_mtime_ns > made[2]


@pytest.mark.usefixtures("undrawn")
def test_an_analysis_that_refuses_is_noted_and_the_others_go_on(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, out = tmp_path / "unknown.jsonl", tmp_path / "out"
    write_facts(unknown, [Fact("u", EITHER.fact.prompt, "w30")])
    asked = command(out, [models[0]], unknown, "--analyses", "robustness", "complexity")
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "robustness of calm was not made: " in said
    assert "COMPLEXITY: calm" in said
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "Robustness of calm was not made" in page.root.text
    assert not (out / "calm" / "robustness.parquet").exists()
    alone = ["analyze", "robustness", "--model", str(models[0]), "--facts", str(unknown)]
    assert cli.main([*alone, "--out", str(tmp_path / "alone"), "--quiet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("dkn-engine: error: the model knows none of the 1 facts")


@pytest.mark.usefixtures("undrawn")
def test_cells_have_the_whole_names_of_their_models_and_lie_in_out(
    tmp_path: Path,
    models: tuple[Path, Path],
    facts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "hub"
    for folder, name in zip(models, ("Llama-3.2-1B", "Llama-3.1-8B"), strict=True):
        shutil.copytree(folder, home / name)
    inner = home / "Llama-3.1-8B" / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    before = sorted(home.rglob("*"))
    out = tmp_path / "out"
    asked = command(out, [home / "Llama-3.2-1B", ".."], facts, "--analyses", "sharing")
    assert cli.main(asked) == 0
    assert sorted(home.rglob("*")) == before
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [
        *("Llama-3.1-8B", "Llama-3.2-1B", "figures"),
    ]
    assert {r["run"] for r in rows(out / "sharing.csv")} == {"Llama-3.2-1B", "Llama-3.1-8B"}
    said = capsys.readouterr().out
    assert "SHARING: Llama-3.2-1B" in said
    assert "Rnd: random neurons, as many" in " ".join(said.split())


def test_presets_that_read_facts_differently_are_not_mixed(
    tmp_path: Path, models: Any, facts: Path, capsys: Any
) -> None:
    asked = command(tmp_path / "out", models, facts)
    asked = [a for a in asked if a != "--set" and "=" not in a]
    assert cli.main([*asked, "--presets", "default", "released"]) == 2
    assert "run them one by one" in capsys.readouterr().err


def test_headlines_name_analyses_and_take_their_rows() -> None:
    assert set(HEADLINES) - {"complexity_of_models"} == set(ANALYSES)
    e = Estimate(1, 0, 2, 3)
    every = [
        Row.of("drop", "D", (("on", "all"), ("query", "clean")), e),
        Row.of("drop", "D", (("on", "all"), ("query", "word")), e),
        Row.of("drop", "N", (("query", "clean"),), e),
        Row.of("other", "D", (("on", "all"), ("query", "clean")), e),
    ]
    table: Any = type("T", (), {"rows": every})
    assert Headline("drop", "", {"query": "clean|word"}).rows(table) == every[:3]
    assert Headline("drop", "", {"on": ""}).rows(table) == [every[2]]
    assert Headline("drop", "", {}, ("N",)).rows(table) == [every[2]]
    assert Headline("drop", "").labels(every[:2]) == ["clean, D", "word, D"]
    assert Headline("drop", "").labels(every[:3]) == ["all, clean, D", "all, word, D", "clean, N"]


def test_workers_begin_with_what_takes_longest(tmp_path: Path) -> None:
    options = Options({name: analysis.section() for name, analysis in ANALYSES.items()})
    asked = [Request(name, tmp_path, (), dkn.Config(), options) for name in ANALYSES]
    names = [request.name for request in longest_first(asked)]
    assert set(names) == set(ANALYSES)
    assert names[: len(LONGEST)] == list(LONGEST)
    assert [r.name for r in longest_first(asked[-1:])] == [list(ANALYSES)[-1]]


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What evolvability was given to teach; nothing is trained."""
    found: list[Any] = []

    def evolvability(*_: object, new_facts: Any, **__: object) -> None:
        found.append(new_facts)
        raise UserError("enough")

    monkeypatch.setattr("dkn_engine.analysis.evolvability", evolvability)
    return found


def teach(out: Path, model: Path, facts: Path, new: Path, *more: str) -> list[str]:
    names = ["--model", str(model), "--facts", str(facts), "--out", str(out)]
    return ["analyze", "evolvability", *names, "--new-facts", str(new), *SETTINGS, *more]


def test_new_facts_are_read_whole_and_in_their_own_format(
    tmp_path: Path, models: tuple[Path, Path], taught: list[Any]
) -> None:
    old, new = tmp_path / "templama.json", tmp_path / "new.jsonl"
    entries = [
        {
            "id": f"Q1_P54_201{i}",
            "date": f"201{i}",
            "relation": "P54",
            "query": f"{fact.prompt} _X_.",
            "answer": [{"wikidata_id": "Q2", "name": fact.answer}],
        }
        for i, fact in enumerate((EITHER.fact, BOTH.fact))
    ]
    old.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    fresh = [Fact(f"new-{i}", f"w{i} w9", "w30") for i in range(5)]
    write_facts(new, fresh)
    asked = teach(tmp_path / "out", models[0], old, new, "--format", "templama", "--limit", "1")
    assert cli.main([*asked, "--quiet"]) == 2
    assert taught == [tuple(fresh)]
    taught.clear()
    odd = tmp_path / "new.json"
    odd.write_text(old.read_text(encoding="utf-8"), encoding="utf-8")
    asked = teach(tmp_path / "two", models[0], new, odd, "--new-format", "templama")
    assert cli.main([*asked, "--quiet"]) == 2
    assert [[f.id for f in facts] for facts in taught] == [[e["id"] for e in entries]]


def test_new_facts_that_are_left_out_are_told(
    tmp_path: Path, models: tuple[Path, Path], taught: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    write_facts(old, [EITHER.fact])
    write_facts(new, [Fact("new-0", "w3 w9", "w30")])
    with new.open("a", encoding="utf-8") as file:
        file.write('{"id": "new-1", "prompt": "w4 w9"}\n')
    asked = teach(tmp_path / "out", models[0], old, new)
    assert cli.main(asked) == 2
    assert [len(facts) for facts in taught] == [1]
    assert f"left out: {new}:2:new-1: missing key 'answer'" in capsys.readouterr().err
    assert cli.main([*asked, "--quiet"]) == 2
    assert f"1 fact is left out, first {new}:2:new-1: missing key" in capsys.readouterr().err
    assert cli.main([*asked, "--strict"]) == 2
    assert f"{new}:2:new-1: missing key 'answer'" in capsys.readouterr().err.splitlines()[-1]
    assert len(taught) == 2


def test_an_answer_names_groups_and_verdicts_and_codes_are_spelled_out() -> None:
    under = (("query", "clean"),)
    e = Estimate(0.5, 0.4, 0.6, 8)
    rows = [Row.of("drop", group, under, e) for group in ("D", "Rnd")]
    other = Row.of("drop", "none", (("query", "Q_new"),), e)
    compared = Comparison.of("drop", ("D", "Rnd"), under, e, 0.001)
    found = dataclasses.replace(compared, p_corrected=0.01)
    table: Any = type("T", (), {"rows": [*rows, other], "comparisons": [found]})
    assert answer(table, Headline("drop", "relative drop")) == (
        "Answer: relative drop (clean): D 0.50 [0.40, 0.60], Rnd 0.50 [0.40, 0.60]. "
        "D minus Rnd: higher."
    )
    by_log = dataclasses.replace(found, figure="log_drop")
    table.comparisons = [by_log]
    assert answer(table, Headline("drop", "relative drop")).endswith(" Not tested.")
    headline = Headline("drop", "relative drop", tested="log_drop")
    assert answer(table, headline).endswith("By log drop: D minus Rnd: higher.")
    untested: Any = type("T", (), {"rows": rows, "comparisons": []})
    assert answer(untested, Headline("drop", "relative drop")).endswith(" Not tested.")
    assert answer(table, Headline("other", "x")) == ""
    assert spelled_out([*rows, other]) == (
        "clean: the prompt as it is; Q_new: the facts that were trained; none: the model as it is"
    )
