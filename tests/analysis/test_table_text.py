"""Tables as text, CSV and JSON: all of the table is there, and JSON can be read back."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.cells import cell_len as width

from dkn_engine.analysis.kept_tables import read_table, to_bytes, to_json
from dkn_engine.errors import UserError
from dkn_engine.report import analysis_text as text
from dkn_engine.statistics import table_files as files
from dkn_engine.statistics import words
from dkn_engine.statistics.intervals import Estimate
from dkn_engine.statistics.table import TREND, Row, Sample, Table, tabulate


def table(n: int = 8, extra_rows: tuple[Row, ...] = ()) -> Table:
    """D loses much, N more, Rnd nothing; log_drop is the same for D and Rnd."""
    samples = []
    for query in ("clean", "perturbed"):
        under = (("query", query), ("edit", "suppress"))
        for i in range(n):
            values = {"D": 0.5 + i / 100, "N": 0.8 - i / 50, "Rnd": 0.01 * (-1) ** i, "none": 0.0}
            samples += [Sample(f"f{i}", g, "prob_drop", v, under) for g, v in values.items()]
    samples += [Sample(f"f{i}", g, "log_drop", float(i)) for i in range(n) for g in ("D", "Rnd")]
    samples.append(Sample("f0", "N", "log_drop", math.nan))
    return tabulate(
        "robustness", samples, seed=3, others=extra_rows, notes=["Two facts were left out."]
    )


def test_figures_stand_group_beside_group_in_80_columns() -> None:
    found = text.render(table()).splitlines()
    assert max(map(width, found)) <= 80
    at = found.index("prob drop (suppress), by query")
    assert found[at + 2].split() == ["query", "D", "N", "Rnd"]
    assert found[at + 4].startswith("clean      0.54 [0.51, 0.56] ")
    assert found[at + 7].split() == ["query", "none", "n"]
    assert found[at + 9].split()[-1] == "8"
    at = found.index("log drop")
    assert found[at + 4].startswith("all  ")
    assert found[at + 4].split()[-4:] == ["–", "8,", "8,", "0"]
    assert found[-1] == "- Means [95% intervals]; seed 3."


def test_long_conditions_are_broken_into_lines() -> None:
    under = (("perturbation", "replace"), ("on", "answer_positions"), ("query", "perturbed"))
    other = tuple((name, f"other {value}") for name, value in under)
    samples = [Sample("f", "D", "x", 120.0, conditions) for conditions in (under, other)]
    found = text.render(tabulate("a", samples, seed=0), width=30).splitlines()
    at = found.index("x, by perturbation, on, query")
    assert max(map(width, found)) <= 30
    assert "120" in " ".join(found[at:])


def test_a_figure_that_is_not_defined_is_a_dash() -> None:
    row = Row.of("x", "D", (), Estimate(math.nan, math.nan, math.nan, 3))
    assert words.cell(row) == "–"
    assert words.cell(Row.of("x", "D", (), Estimate(0.5, math.nan, math.nan, 3))) == "0.50"


def test_a_redundancy_is_shown_by_its_median_and_its_rank_correlation_as_it_is() -> None:
    """A few ratios of small numbers dominate a mean; the report of a run shows medians, too."""
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 90.0]
    samples = [Sample(f"f{i}", "short", "redundancy", v) for i, v in enumerate(values)]
    rho = Row.of("redundancy", TREND, (), Estimate(0.2, 0.1, 0.3, 7, 0.9))
    found = text.render(
        tabulate("complexity_of_models", samples, seed=0, others=[rho])
    ).splitlines()
    at = found.index("redundancy (median)")
    assert found[at + 5].split()[:5] == ["all", "1.30", "0.20", "[0.10,", "0.30]"]


def test_what_was_found_and_what_was_not() -> None:
    found = text.render(table()).splitlines()
    at = found.index("Differences found, p corrected")
    assert found[at + 2].split() == ["prob", "drop", "difference", "n", "p"]
    rows = [re.split(r"\s{2,}", line) for line in found[at + 4 : at + 8]]
    assert rows[0] == ["clean, suppress: D − Rnd", "+0.54 [0.51, 0.56]", "8", "0.039"]
    assert rows[1][:2] == ["clean, suppress: D − N", "-0.20 [-0.26, -0.13]"]
    assert found[at + 8] == ""
    sentences = words.findings(table())  # which JSON holds
    assert sentences[0] == (
        "prob drop (clean, suppress): D minus Rnd is +0.54 [0.51, 0.56], p 0.039, n 8: higher."
    )
    assert "D minus N is -0.20" in sentences[1]
    assert sentences[-2:] == [
        "5 paired comparisons, p-values corrected for their number (Holm, 0.05): no difference "
        "found in 1 of 5.",
        "1 comparison has too few pairs to say anything (fewer than 6).",
    ]
    assert "Differences found, p corrected" not in text.render(table(n=3))
    few = words.findings(table(n=3))
    assert few == ["6 comparisons have too few pairs to say anything (fewer than 6)."]


def test_differences_of_several_figures_name_them() -> None:
    values = {"a": (1.0, 0.0), "b": (0.0, 2.0)}
    samples = [
        Sample(f"f{i}", group, figure, value + i / 100)
        for i in range(8)
        for figure, of_groups in values.items()
        for group, value in zip(("D", "Rnd"), of_groups, strict=True)
    ]
    lines = text.render(tabulate("x", samples, seed=0)).splitlines()
    assert [line.split()[:4] for line in lines if "−" in line] == [
        ["a:", "D", "−", "Rnd"],
        ["b:", "D", "−", "Rnd"],
    ]


def test_a_notebook_shows_the_same_and_pandas_has_every_row() -> None:
    pandas = pytest.importorskip("pandas")
    one = table()
    piece = one._repr_html_()
    assert "Differences found, p corrected" in piece
    assert "+0.54 [0.51, 0.56]" in piece
    assert "Two facts were left out." in piece
    frame = one.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        *("figure", "query", "edit", "group", "mean", "ci_low", "ci_high", "n", "median")
    ]
    assert frame["mean"].tolist() == pytest.approx([r.mean for r in one.rows], nan_ok=True)
    first = frame.query("figure == 'prob_drop' and query == 'clean' and group == 'N'")
    assert first["n"].tolist() == [one.row("prob_drop", "N", query="clean", edit="suppress").n]


def test_limit_says_how_much_is_left_out() -> None:
    short = text.render(table(), limit=1, width=120).splitlines()
    assert "… and 2 more rows of figures" in short
    assert not [line for line in short if line.startswith("perturbed  ")]
    assert "- Two facts were left out." in short


def read(content: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content)))


def test_csv_holds_every_row_comparison_and_value() -> None:
    tables = {"demo": table(), "other": table(n=3)}
    rows = read(files.rows_csv(tables))
    assert len(rows) == sum(len(t.rows) for t in tables.values())
    assert rows[0] == {
        "run": "demo",
        "figure": "prob_drop",
        "query": "clean",
        "edit": "suppress",
        "group": "D",
        "mean": "0.535",
        "ci_low": f"{tables['demo'].rows[0].ci_low:.6g}",
        "ci_high": f"{tables['demo'].rows[0].ci_high:.6g}",
        "n": "8",
        "median": "0.535",
        "control": "False",
        "seed": "3",
    }
    comparisons = read(files.comparisons_csv(tables))
    assert [c["verdict"] for c in comparisons[:2]] == ["higher", "lower"]
    assert comparisons[0]["against"] == "Rnd"
    assert comparisons[-1]["verdict"] == "too few to say"
    assert len(read(files.samples_csv(tables))) == sum(len(t.samples) for t in tables.values())
    assert files.samples_csv({}).splitlines() == ["run,unit,figure,group,measured,seed"]


def test_a_condition_has_a_column_of_its_own() -> None:
    clash = tabulate("a", [Sample("f", "D", "x", 1.0, (("group", "y"),))], seed=0)
    with pytest.raises(ValueError, match="must not be named as other columns are"):
        files.rows_csv({"run": clash})


def test_a_kept_table_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    row = Row.of("auroc", "D", (("query", "long"),), Estimate(0.7, math.nan, -0.0, 4))
    before = dataclasses.replace(
        table(extra_rows=(row,)),
        settings={"lr": {"D": 0.02}, "loss": None},
        notes=("One.", "\u00e9"),
    )
    (tmp_path / "x.parquet").write_bytes(to_bytes(before, {"seed": 3}))
    after, made_from = read_table(tmp_path / "x.parquet")
    assert repr(after) == repr(before)
    assert made_from == {"seed": 3}


def test_a_table_as_json_has_its_findings_and_no_nan() -> None:
    row = Row.of("auroc", "D", (), Estimate(0.7, math.nan, 0.9, 4))
    shown = table(extra_rows=(row,))
    document = json.loads(to_json(shown))
    assert document["findings"] == words.findings(shown)
    assert document["rows"][-1]["ci_low"] is None
    assert len(document["samples"]) == len(shown.samples)


def test_a_damaged_table_is_refused_or_is_the_table(tmp_path: Path) -> None:
    before = table()
    path, whole, shown = tmp_path / "x.parquet", to_bytes(before, {"seed": 3}), repr(before)
    places, refused = range(0, len(whole), 7), 0
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            found, made_from = read_table(path)
        except UserError:
            refused += 1
        else:
            assert made_from != {"seed": 3} or repr(found) == shown
    assert refused > len(places) / 2
