"""Sphinx configuration: ``pip install '.[docs]' && sphinx-build -W docs build/site``."""

from tfq._version import __version__

project = "tfq"
release = version = __version__
copyright = "the tfq authors, Apache-2.0"
html_title = f"tfq {release}"
html_theme = "furo"
html_static_path = []

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["images"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
# Attributes of a class are in its docstring; not a second time one by one.
napoleon_use_ivar = True
