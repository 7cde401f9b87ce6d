"""Pictures of records and scores: functions that take and return Axes, in one paper style.

Everything here reads finished records and tables; no model is needed, and no number is computed that a table holds.
matplotlib is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

#: Public name -> the module that defines it.
_PUBLIC = {
    "answer": "probe.plots.answers",
    "effects": "probe.plots.uses",
    "emergence": "probe.plots.curves",
    "filmstrip": "probe.plots.filmstrips",
    "heads": "probe.plots.grids",
    "new_figure": "probe.plots.styles",
    "overlay": "probe.plots.overlays",
    "phrases": "probe.plots.overlays",
    "readings": "probe.plots.grids",
    "removal": "probe.plots.uses",
    "save_figure": "probe.plots.styles",
    "style": "probe.plots.styles",
    "use": "probe.plots.uses",
}

__all__ = list(_PUBLIC)

if TYPE_CHECKING:
    from probe.plots.answers import answer as answer
    from probe.plots.curves import emergence as emergence
    from probe.plots.filmstrips import filmstrip as filmstrip
    from probe.plots.grids import heads as heads
    from probe.plots.grids import readings as readings
    from probe.plots.overlays import overlay as overlay
    from probe.plots.overlays import phrases as phrases
    from probe.plots.styles import new_figure as new_figure
    from probe.plots.styles import save_figure as save_figure
    from probe.plots.styles import style as style
    from probe.plots.uses import effects as effects
    from probe.plots.uses import removal as removal
    from probe.plots.uses import use as use


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'probe.plots' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
