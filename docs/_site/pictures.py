"""Pictures of ``dkn.plot`` in the gallery: what a notebook shows of a cell's value is saved."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def scrape(block: tuple[Any, ...], block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """RST of the figure that is the value of a cell; empty if that is something else."""
    names = block_vars["example_globals"]
    value = names.get("___")  # stays there if the next cell has no value
    if block[0] != "code" or not isinstance(value, Figure) or value is names.get("__shown__"):
        return ""
    names["__shown__"] = value
    path = next(block_vars["image_path_iterator"])
    value.savefig(path, dpi=200)
    text: str = figure_rst([path], gallery_conf["src_dir"])
    return text
