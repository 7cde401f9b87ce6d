"""A Sphinx extension that reads the house's docstrings, where what follows "name :" is a description and no type."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

DESCRIBED = ("Parameters", "Attributes")


def setup(app: Sphinx) -> dict[str, Any]:
    """The extension, whose hook runs before napoleon's."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}


def _process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [_with_bars(line) for line in described(lines)]


def described(lines: list[str]) -> list[str]:
    """The same lines, each "name : what it is" of a section of parameters or attributes as a name above its description."""
    found: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if re.fullmatch(r"-{3,}", below):
            inside = line in DESCRIBED
        entry = re.match(r"(\w[\w, ]*?) : (.+)", line)
        found += [entry[1], f"    {entry[2]}"] if inside and entry else [line]
    return found


def _with_bars(line: str) -> str:
    """The line, with every | of a formula meaning itself: in reStructuredText a pair of them would name a substitution."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(``.*?``)", line)
    return "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)
