"""What ``probe compare --over`` adds: the same comparison along an axis, as a table for people and rows for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probe.reports import make_table, progress, show_interval

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.examples import Example
    from probe.models import Subject

__all__ = ["TIMESTEPS", "read_series", "series_data", "series_tables"]

#: Numbers of the scheduler's 1,000, from hardly any noise to hardly any image.
TIMESTEPS = (1, 100, 200, 300, 500, 700, 900)
#: Of what a training was measured to be, what a person is shown.
SHOWN = ("caption_loss", "mean_map", "minus_mean", "best_head_held_out", "floor")


def read_series(
    models: Sequence[str],
    subjects: Sequence[Subject],
    examples: Sequence[Example],
    *,
    over: str,
    values: Sequence[int],
    options: dict[str, Any],
) -> pd.DataFrame:
    """The rows of ``probe.series`` along that axis; over training those of the models that have any."""
    from probe.series import noise_series, training_series

    if over == "training":
        speaking = [name for name, one in zip(models, subjects, strict=True) if one.family.kind == "language model"]
        return training_series(speaking or models)
    with progress(f"comparing over {over}s", len(values)) as advance:
        return noise_series(subjects, examples, over=over, values=values, on_value=advance, **options)  # type: ignore[arg-type]


def series_data(series: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows in plain types, less what is missing in each."""
    rows = series.astype("object").to_dict("records")
    return [{str(key): value for key, value in row.items() if value is not None and value == value} for row in rows]


def series_tables(series: pd.DataFrame) -> list[Any]:
    """One table a metric, a row for each value and a column for each system; of a training one with its last step by seed."""
    if "step" in series:
        table = make_table(
            "at the end of training", "system", "seed", "step", *(one.replace("_", " ") for one in SHOWN)
        )
        for _, part in series.groupby(["system", "seed"], sort=False):
            last = part.sort_values("step").iloc[-1]
            cells = (show_interval(last, name) for name in SHOWN)
            table.add_row(str(last["system"]), str(last["seed"]), str(last["step"]), *cells)
        return [table]
    tables, readings = [], series[series["kind"] == "reading"]
    for metric, part in readings.groupby("metric", sort=False):
        names = list(part["system"].unique())
        over = str(part["over"].iloc[0])
        table = make_table(f"{metric} over {over}s, on the common grid", over, *names)
        for value, rows in part.groupby("at", sort=False):
            row = rows.set_index("system")
            cells = (
                show_interval({"v": at["value"], "v_low": at["low"], "v_high": at["high"]}, "v")
                for at in map(row.loc.__getitem__, names)
            )
            table.add_row(str(value), *cells)
        tables.append(table)
    return tables


def _shown(row: Any) -> str:
    return show_interval({"value": row["value"], "value_low": row["low"], "value_high": row["high"]}, "value")
