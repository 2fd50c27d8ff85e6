"""Self-contained HTML pages: no network, figures inlined, every text of the user's escaped.

:func:`render_page` makes a page of any report; :func:`write_page` that of a run directory.
"""

from __future__ import annotations

from dkn_engine.report.html.files import CARDS, FACT_FIGURES, NO_FIGURES, PAGE, write_page
from dkn_engine.report.html.page import render_page

__all__ = ["CARDS", "FACT_FIGURES", "NO_FIGURES", "PAGE", "render_page", "write_page"]
