"""The notebooks run, as scripts, and are what Jupyter and the site's gallery read."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import matplotlib as mpl
import pytest

from tests.support.demo import loading_and_asking_once

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Rows of the concepts' table of controls, and columns of the notebook.
QUOTED = {
    "the DKN itself": "own",
    "random neurons, matched by layer": "random",
    "mean activations instead of zero": "mean_ablation",
    "unrelated facts": "unrelated",
    "paraphrases not used for finding": "paraphrases",
}


def test_there_are_three() -> None:
    assert [path.name[:2] for path in EXAMPLES] == ["01", "02", "03"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_a_notebook_and_a_page(path: Path) -> None:
    """py:percent, whose first cell of text is the docstring, with a title in both markups."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith('# %% [markdown]\n"""\n')
    title, line, *_ = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert line == "=" * len(title)
    assert "`" not in text.replace("``", ""), "literals need two backticks: RST has other ones"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with mpl.rc_context({"backend": "agg"}), loading_and_asking_once():
        names = runpy.run_path(str(path))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= 6
    assert names["model"].training is False
    if path.stem == "02_controls_and_nulls":  # the concepts quote what it prints
        page = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
        header, france = (
            line.split()
            for line in printed.splitlines()
            if re.match(r"fact |capital-france +\d", line)
        )
        figures = dict(zip(header, france, strict=True))
        for shown, name in QUOTED.items():
            assert f"| {shown} | {figures[name]} |" in page
