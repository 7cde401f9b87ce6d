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
    "emergence": "probe.plots.curves",
    "filmstrip": "probe.plots.filmstrips",
    "heads": "probe.plots.grids",
    "new_figure": "probe.plots.styles",
    "overlay": "probe.plots.overlays",
    "phrases": "probe.plots.overlays",
    "readings": "probe.plots.grids",
    "save_figure": "probe.plots.styles",
    "style": "probe.plots.styles",
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


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'probe.plots' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
