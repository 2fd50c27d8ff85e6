"""The documentation as a site of plain files: ``make docs`` writes build/docs."""

from __future__ import annotations

import sys
from pathlib import Path

import dkn_engine

sys.path.insert(0, str(Path(__file__).parent))

project = "dkn_engine"
author = "The dkn-engine authors"
copyright = "The dkn-engine authors"
release = dkn_engine.__version__.partition("+")[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "_site.files",  # links into the repository
    "_site.generated",  # what is written from the code: settings, the program's help
]
exclude_patterns = ["_site", "example", "gallery/*.ipynb", "gallery/*.py", "gallery/*.md5"]

# Markdown. Headings are link targets, so that pages can point into one another.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["config.cache"]  # settings of the gallery are functions, which are not pickled

# The reference, from docstrings in Google's style.
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Scripts of examples/, run on the demo model; what they print and draw stands below the code.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_", "__repr__"),
    "image_scrapers": ("_site.pictures.scrape",),
    "ignore_repr_types": r"Picture",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 0,
    "write_computation_times": False,
    "remove_config_comments": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "dkn_engine"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"*": []}  # pages that have none below them
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
}
