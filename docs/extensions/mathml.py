"""A Sphinx extension that writes formulas as MathML, which browsers draw by themselves: no script, no network, no LaTeX."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator


def setup(app: Sphinx) -> dict[str, Any]:
    """The extension."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mathml(formula: str, *, block: bool) -> str:
    """The formula as a ``math`` element.

    Raises
    ------
    ExtensionError
        If it holds something that the converter passes on as it is, such as an unknown command.
    """
    found = convert(formula, display="block" if block else "inline")
    if left := re.search(r"\\\w+|&amp;|&#x00026;", found):
        raise ExtensionError(f"The formula {formula!r} cannot be written as MathML: {left[0]} is not known.")
    return found


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f"<div>{mathml(node.astext(), block=True)}</div>\n")
    raise nodes.SkipNode
