"""Numbers from records: metrics, controls, intervals, and tables of heads and layers. Needs no model."""

from __future__ import annotations

from probe.analysis.aggregates import daam
from probe.analysis.heads import HeadScores, score_heads
from probe.analysis.metrics import METRICS, degenerate_reason, score
from probe.analysis.stats import Interval, PoissonBootstrap
from probe.analysis.targets import Target

__all__ = [
    "METRICS",
    "HeadScores",
    "Interval",
    "PoissonBootstrap",
    "Target",
    "daam",
    "degenerate_reason",
    "score",
    "score_heads",
]
