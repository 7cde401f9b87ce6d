"""A table of scores as ``HeadScores.to_frame()`` gives it, made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

NAN = float("nan")


def path(layer: int) -> str:
    return f"model.language_model.layers.{layer}.self_attn"


def make_frame(values: np.ndarray, *, chance: float = 0.1, metrics: tuple[str, ...] = ("pointing",)) -> pd.DataFrame:
    """One metric or more over (layer, head) values, NaN where a layer has no such head."""
    rows: list[tuple] = []
    for metric in metrics:
        rows += [(metric, "reading", "mean_map", None, None, 0.61, 0.55, 0.66, 500)]
        rows += [(metric, "held-out", "best_head_held_out", 1, 1, 0.83, 0.80, 0.87, 250)]
        rows += [(metric, "control", "chance", None, None, chance, NAN, NAN, 500)]
        rows += [(metric, "control", "oracle_patch", None, None, 0.99, 0.98, 1.0, 500)]
        rows += [(metric, "layer", path(i), i, None, 0.3 + i / 100, 0.2, 0.4, 500) for i in range(len(values))]
        for (layer, head), value in np.ndenumerate(values):
            if np.isfinite(value):
                rows.append((metric, "head", path(layer), layer, head, value, value - 0.02, value + 0.03, 500))
    frame = pd.DataFrame(rows, columns=["metric", "kind", "name", "layer", "head", "value", "low", "high", "images"])
    return frame.assign(phrases=1432).astype({"layer": "Int64", "head": "Int64"})


class Scores:
    """Stands in for a ``HeadScores``: the pictures read its table alone."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def to_frame(self) -> pd.DataFrame:
        return self.frame
