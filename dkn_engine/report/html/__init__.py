"""Self-contained HTML pages: no network, figures inlined, every text of the user's escaped.

:func:`render_page` makes a page of any sections; :func:`write_page` that of a run directory.
"""

from __future__ import annotations

from dkn_engine.report.content import HtmlTable, Picture, Section, Tile
from dkn_engine.report.html.files import FACT_FIGURES, NO_FIGURES, PAGE, write_page
from dkn_engine.report.html.markup import Markup, escape
from dkn_engine.report.html.page import render_page
from dkn_engine.report.html.tables import render_table
from dkn_engine.report.run import CARDS, render_run

__all__ = [
    "CARDS",
    "FACT_FIGURES",
    "NO_FIGURES",
    "PAGE",
    "HtmlTable",
    "Markup",
    "Picture",
    "Section",
    "Tile",
    "escape",
    "render_page",
    "render_run",
    "render_table",
    "write_page",
]
