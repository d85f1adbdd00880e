"""How Sphinx builds the documentation: ``sphinx-build -W docs docs/_build``."""

from importlib.metadata import version as version_of

project = "flask_pgmonkey"
version = release = version_of("flask-pgmonkey")
copyright = f"2026 The flask_pgmonkey authors, MIT license. These pages are for version {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "recipes"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"flask_pgmonkey {version}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["tables.js"]
