"""A Sphinx extension for what is written from the code itself, so that no page repeats by hand what the code says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import contents
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

#: Name of a directive -> what makes its Markdown from its arguments.
DIRECTIVES: dict[str, Callable[..., str]] = {
    "family-table": contents.family_table,
    "metric-table": contents.metric_table,
    "command": contents.command_help,
    "gallery": contents.gallery,
    "public-names": contents.public_names,
    "public-entries": contents.public_entries,
    "modules": contents.module_entries,
}


def setup(app: Sphinx) -> dict[str, Any]:
    """The extension."""
    for name in DIRECTIVES:
        app.add_directive(name, Generated)
    return {"parallel_read_safe": True}


class Generated(SphinxDirective):
    """Markdown that a function of ``contents`` makes, read as if it stood here."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        text = DIRECTIVES[self.name](*self.arguments)
        return self.parse_text_to_nodes(text, allow_section_headings=True)
