"""The paper's trainings as YAML files that ship with the package: LLaVA-1.5's two stages, for a LLaVA and for a DiffLMM."""

from __future__ import annotations

from pathlib import Path

__all__ = ["RECIPES", "recipe_file"]

#: Name -> file.
RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def recipe_file(name: str) -> str:
    """The file of a recipe that is given by its name; anything else as it is."""
    return str(RECIPES[name]) if name in RECIPES and not Path(name).exists() else name
