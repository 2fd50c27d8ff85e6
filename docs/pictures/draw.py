"""The picture of a fact that README and docs show: ``python docs/pictures/draw.py``.

``report.png`` is the first view of ``make demo``'s page in a browser: ``chromium --headless=new
--window-size=1000,1150 --screenshot=docs/pictures/report.png runs/demo/report.html``.
``notebook.png`` is one of two cells, as ``jupyter nbconvert --execute --to html`` shows it.
"""

from __future__ import annotations

from pathlib import Path

import torch

import dkn_engine as dkn

HERE = Path(__file__).parent


def main() -> None:
    """Find the DKN of one demo fact, and draw its neurons beside the lattice of its subsets."""
    torch.set_num_threads(1)
    model, tokenizer = dkn.load_model("demo", device="cpu")
    facts = [f for f in dkn.load_facts("demo") if f.id == "capital-germany"]
    (result,) = dkn.find_dkns(model, tokenizer, facts)
    dkn.plot.graph(result).savefig(HERE / "capital-germany.png", dpi=150)


if __name__ == "__main__":
    main()
