"""Looking at records: a view for JupyterLab, and the same view as one file that opens anywhere.

``write_html`` works from saved records alone: it needs no model, no kernel and none of the packages of the extra ``widgets``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

#: Public name -> the module that defines it.
_PUBLIC = {"explore": "probe.widgets.explorer", "write_html": "probe.widgets.html"}

__all__ = list(_PUBLIC)

if TYPE_CHECKING:
    from probe.widgets.explorer import explore as explore
    from probe.widgets.html import write_html as write_html


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'probe.widgets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
