"""Numbers from records: metrics, controls, intervals, and tables of heads and layers. Needs no model."""

from __future__ import annotations

from probe.analysis.aggregates import daam
from probe.analysis.heads import HeadScores, score_heads
from probe.analysis.metrics import METRICS, degenerate_reason, score
from probe.analysis.stats import Interval, PoissonBootstrap
from probe.analysis.targets import Target
from probe.analysis.usage import HeadUse, compare_use, head_effects

__all__ = [
    "METRICS",
    "HeadScores",
    "HeadUse",
    "Interval",
    "PoissonBootstrap",
    "Target",
    "compare_use",
    "daam",
    "degenerate_reason",
    "head_effects",
    "score",
    "score_heads",
]
