"""How the documentation is built: ``sphinx-build -W --keep-going docs build/docs``, offline."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

import probe  # noqa: E402

project = "groundprobe"
author = "The groundprobe authors"
copyright = "The groundprobe authors, Apache-2.0"
version = release = probe.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "generated", "mathml"]
exclude_patterns = ["extensions"]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

# Signatures name what a caller would type: long unions by their alias, types without their modules.
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Indices", "Masks", "PhraseKey", "Wanted", "Edge")}
# A type that is written short may be of two modules; it is then no link, which is no fault of the page.
suppress_warnings = ["ref.python"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "groundprobe"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
