"""The scripts of ``figures/``, by name."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from probe.figure_scripts import load_figure

__all__ = ["DATA", "FIGURES", "load_script"]

FIGURES = Path(__file__).parents[2] / "figures"
DATA = FIGURES / "data"


def load_script(name: str) -> ModuleType:
    """A script's functions, loaded anew."""
    return load_figure(FIGURES / f"{name}.py").module
