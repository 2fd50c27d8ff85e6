"""Importing the package is cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dkn_engine import _native
from tests.support import forked

ROOT = Path(__file__).parents[2]
LAZY = ["transformers", "triton", "matplotlib", "scipy.cluster", "sklearn", "hdbscan", "numba"]
LAZY += ["pandas", "datasets", "pyarrow"]


@pytest.mark.parametrize("module", ["dkn_engine", "dkn_engine.topology", "dkn_engine.cli.main"])
def test_import_leaves_heavy_packages_alone(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {LAZY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_finding_neurons_imports_no_library_of_other_clusterers() -> None:
    """hdbscan, scikit-learn and numba serve other clusterers and the ``pre`` site.

    Whatever else the fork has imported before could only add to what is found.
    """
    code = (
        "import sys, torch, dkn_engine as dkn\n"
        "from tests.support.tiny import tiny\n"
        "from tests.support.words import words_tokenizer\n"
        "lenient = dkn.Config(\n"
        "    attribution=dkn.AttributionConfig(quadrature='gauss_legendre', n_steps=2),\n"
        "    filter=dkn.FilterConfig(require_rank_1=False, min_probability=0.0, n_random=2),\n"
        ")\n"
        "facts = [dkn.Fact('a', 'w5 w9', 'w13')]\n"
        "found = dkn.find_dkns(tiny('llama', torch.float32), words_tokenizer(), facts, lenient)\n"
        "print(len(found), *[m for m in ('hdbscan', 'sklearn', 'numba') if m in sys.modules])"
    )
    done = forked.run(forked.code, code)
    assert done.stdout.split() == ["1"], done.stderr + done.stdout


def test_constraints_pin_versions_only() -> None:
    with (ROOT / "constraints.txt").open(encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    for line in lines:
        name, _, version = line.partition("==")
        assert name
        assert version.replace(".", "").isalnum(), line


def test_hooks_before_commits_have_the_versions_of_make_lint() -> None:
    pinned = set((ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    wanted = set(re.findall(r"\[((?:ruff|clang-format)==[\w.]+)\]", hooks))
    assert len(wanted) == 2
    assert wanted <= pinned


def test_stub_names_everything_in_the_extension() -> None:
    stub = ast.parse((ROOT / "dkn_engine/_native.pyi").read_text(encoding="utf-8"))
    public = (ast.FunctionDef, ast.ClassDef)
    declared = {
        node.name
        for node in stub.body
        if isinstance(node, public) and not node.name.startswith("_")
    }
    assert declared == {name for name in dir(_native) if not name.startswith("_")}
