"""Sphinx: the pages of docs/ as they lie there, and those of docs/reference/, which `build.py` writes."""

import importlib.metadata

project, author, release = "dual_distill", "The dual_distill authors", importlib.metadata.version("dual-distill")
copyright = "The dual_distill authors, Apache-2.0"  # noqa: A001

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["site"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = f"dual_distill {release}"
html_copy_source = False
html_show_sourcelink = False
# A page is read with nothing fetched from other machines; so is its search.
html_theme_options = {"footer_icons": []}
linkcheck_timeout = 20
linkcheck_retries = 2
html_show_search_summary = False  # it fetches pages, which a browser refuses of a folder on disk
