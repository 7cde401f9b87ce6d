"""Names of parametrised tests that are the same in every process, so that runs of several processes agree on them."""

from __future__ import annotations

import re

__all__ = ["shown"]


def shown(value: object) -> str:
    """The value as text, without addresses in memory."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(value))
