"""The tiny DiffLMM of the package, and its parts."""

from __future__ import annotations

from probe.tiny.difflmm import RANGE, tiny_config, tiny_difflmm, tiny_parts

__all__ = ["RANGE", "tiny_config", "tiny_difflmm", "tiny_parts"]
