"""What processes of ``tests.support.forked`` have imported: the engine and its libraries.

What a process does not find here it imports itself, so that nothing but time depends on this list.
"""

from __future__ import annotations

import importlib

import pyarrow as pa

for _name in (
    *("dkn_engine.cli.main", "dkn_engine.analysis.suite.cells"),
    *("dkn_engine.run.stages", "dkn_engine.run.workers.processes"),
    *("dkn_engine.report.figures.files", "dkn_engine.report.html.page"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto"),
    *("transformers.tokenization_utils_tokenizers", "transformers.modeling_utils"),
    *("tests.support.planted", "tests.support.saved", "tests.support.lives"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg"),
    *("pytest", "rich.console", "rich.table", "rich.progress", "setuptools_scm"),
):
    importlib.import_module(_name)
pa.array(["by its first array pyarrow imports pandas"])
