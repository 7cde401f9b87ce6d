"""What commands give back: numbers for programs, tables and lines for people, and progress on the way."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import InputError
from probe.quoting import terminal_text
from probe.writing import write_beside

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.progress import Progress
    from rich.segment import Segment
    from rich.table import Table

    from probe.analysis.heads import HeadScores
    from probe.attention import AttentionRecord

__all__ = [
    "Report",
    "certificate_data",
    "head_tables",
    "make_table",
    "output_folder",
    "peak_table",
    "plain",
    "plain_console",
    "progress",
    "score_data",
    "score_table",
    "short_names",
    "show_interval",
    "tracked",
    "write_json",
]


@dataclass(frozen=True)
class Report:
    """What a command found: ``data`` for programs, ``parts`` (tables and lines) for people."""

    data: dict[str, Any]
    parts: list[Any] = field(default_factory=list)
    exit_code: int = 0

    def show(self) -> None:
        """Print the parts."""
        # Nothing is cut off where output is no terminal.
        console = plain_console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
        for part in self.parts:
            console.print(part)


def plain_console(**options: Any) -> Console:
    """A console for captions and paths, which are data: they are not read as markup, and no terminal obeys them."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, **options)
    hook: Any = _Harmless()  # rich asks for a class of its own, which would have to be imported with this module
    console.push_render_hook(hook)
    return console


class _Harmless:  # a subclass of rich's own would import rich with this module
    """What is printed, with every text that is no style of ours as ``terminal_text`` has it."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Shown(one) for one in renderables]


@dataclass(frozen=True)
class _Shown:
    part: Any

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.part, options):
            yield segment if segment.control else segment._replace(text=terminal_text(segment.text))


def score_data(scores: HeadScores) -> dict[str, Any]:
    """The scores in plain types: for each metric, each reading and control with value, low and high; and every layer and head.

    Beside them stands where the scored map peaks, see ``probe.analysis.concentration.PEAKS``.
    """
    frame = scores.to_frame()
    data: dict[str, Any] = {"images": scores.images, "phrases": scores.phrases, "left_out": dict(scores.left_out)}
    for metric, part in frame.groupby("metric", sort=False):
        named = part[part["kind"].isin(["reading", "held-out", "difference", "control"])]
        data[str(metric)] = {row["name"]: _bounds(row) for _, row in named.iterrows()}
        for kind, keys in (("layer", ("layer",)), ("head", ("layer", "head"))):
            data[str(metric)][f"{kind}s"] = [
                {key: int(row[key]) for key in keys} | _bounds(row) for _, row in part[part["kind"] == kind].iterrows()
            ]
        over_time = part[part["kind"].isin(["timestep", "head at timestep"])]
        if len(over_time):
            data[str(metric)]["timesteps"] = [_timed(row) for _, row in over_time.iterrows()]
    if scores.quantity != "attention":
        data["quantity"] = scores.quantity
    return data


def _timed(row: Any) -> dict[str, Any]:
    """One row of a timestep; without layer and head it is of the mean map."""
    place = {} if row["kind"] == "timestep" else {"layer": int(row["layer"]), "head": int(row["head"])}
    return {"timestep": int(row["timestep"]), **place, **_bounds(row)}


def _bounds(row: Any) -> dict[str, Any]:
    """Value, low and high of a row's score, and of where its map peaks if it has one."""
    from probe.analysis.concentration import PEAKS

    found: dict[str, Any] = {key: float(row[key]) for key in ("value", "low", "high")}
    if row["kind"] in ("control", "difference"):
        return found
    return found | {
        name: {"value": float(row[name]), "low": float(row[f"{name}_low"]), "high": float(row[f"{name}_high"])}
        for name in PEAKS
    }


def score_table(scores: HeadScores, metric: str) -> Table:
    """A table of readings, layers, held-out heads and controls for people."""
    frame = scores.to_frame()
    part = frame[(frame["metric"] == metric) & ~frame["kind"].isin(["head", "head at timestep"])]
    what = metric if scores.quantity == "attention" else f"{metric} of {scores.quantity}s"
    title = f"{what}: {scores.images} images, {scores.phrases} phrases, 95 % intervals by bootstrap over images"
    table = make_table(title, "", "map", "value", "low", "high")
    for _, row in part.iterrows():
        table.add_row(str(row["kind"]), _row_name(row), *(_number(row[key]) for key in ("value", "low", "high")))
    return table


def head_tables(scores: HeadScores, metric: str) -> list[Table]:
    """Tables of single heads for people, a row for each layer: of their mean over timesteps, or one for each timestep."""
    frame = scores.to_frame()
    frame = frame[frame["metric"] == metric]
    several = frame[frame["kind"] == "head at timestep"]
    parts = [("", frame[frame["kind"] == "head"])] if several.empty else [
        (f" at timestep {step}", several[several["timestep"] == step]) for step in scores.timesteps
    ]  # fmt: skip
    most = sorted({head for one in scores.heads for head in one})
    tables = []
    for when, part in parts:
        table = make_table(
            f"{metric} of single heads{when}, read as {scores.reading_name}",
            "layer",
            *(f"head {head}" for head in most),
        )
        for number, name in enumerate(short_names(scores.layers)):
            cells = {int(row["head"]): _interval(row) for _, row in part[part["layer"] == number].iterrows()}
            table.add_row(f"{number}: {name}", *(cells.get(head, "") for head in most))
        tables.append(table)
    return tables


def short_names(names: Sequence[str]) -> list[str]:
    """Module paths without the end that all of them share, and without words that stand further in in every one of them."""
    paths = [name.split(".") for name in names]
    if len(set(names)) < 2:
        return list(names)
    begin, end = (_count_alike(some) for some in (paths, [path[::-1] for path in paths]))
    # The last word of a shared beginning says what is counted: "layers.3".
    paths = [path[max(0, begin - 1) : len(path) - end] for path in paths]
    common = {one for one in set.intersection(*map(set, paths)) if not one.isdecimal()}
    short = [".".join(one for i, one in enumerate(path) if i == 0 or one not in common) for path in paths]
    # Where one path is the end of another nothing of it would be left.
    return short if all(short) and len(set(short)) == len(set(names)) else list(names)


def _count_alike(paths: list[list[str]]) -> int:
    """How many parts all of these begin with."""
    return len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))))


def _interval(row: Any) -> str:
    return show_interval({"value": row["value"], "value_low": row["low"], "value_high": row["high"]}, "value")


def peak_table(scores: HeadScores) -> Table:
    """A table of where the scored maps peak, whatever the metric: readings, layers, timesteps, and each metric's
    held-out head."""
    from probe.analysis.concentration import PEAKS

    frame = scores.to_frame()
    maps = frame[(frame["metric"] == scores.metrics[0]) & frame["kind"].isin(["reading", "layer", "timestep"])]
    rows = [(_row_name(row), row) for _, row in maps.iterrows()]
    for _, row in frame[(frame["name"] == "best_head_held_out") & frame["head"].notna()].iterrows():
        rows.append((f"layer {row['layer']}, head {row['head']} ({row['metric']})", row))
    title = "where the scored maps peak: share of variance in one patch, and of best patches on the border and in sinks"
    table = make_table(title, "map", *(name.replace("_", " ") for name in PEAKS))
    for shown, row in rows:
        table.add_row(shown, *(show_interval(row, name) for name in PEAKS))
    return table


def _row_name(row: Any) -> str:
    """A row's name for people: layers by number, and which layer or head a held-out choice fell on."""
    import pandas as pd

    if row["kind"] == "layer":
        return f"layer {row['layer']}"
    if row["kind"] == "held-out" and not pd.isna(row["layer"]):
        chosen = f"layer {row['layer']}" + ("" if pd.isna(row["head"]) else f", head {row['head']}")
        return f"{row['name']} ({chosen})"
    return str(row["name"])


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def show_interval(row: Any, name: str) -> str:
    """The number of that name in a row with its interval, "0.612 [0.560, 0.660]", or "-" where there is none."""
    if row[name] != row[name]:
        return "-"
    return f"{_number(row[name])} [{_number(row[f'{name}_low'])}, {_number(row[f'{name}_high'])}]"


def make_table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in ("value", "low", "high", "step", "loss") else "left")
    return table


def certificate_data(record: AttentionRecord) -> dict[str, Any]:
    """The record's certificate in plain types, and whether it passed."""
    return asdict(record.certificate) | {"passed": record.certificate.passed}


def plain(value: Any) -> Any:
    """The value in plain JSON types; what is not a number becomes null, since JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def output_folder(out: str) -> Path:
    """The folder to write into; it is made when the first file is written."""
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise InputError(f"--out {out} is a file; give a folder to write into.")
    return target


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Nothing; the file then holds the data as JSON, all of it or what it held before."""
    text = json.dumps(plain(data), indent=2) + "\n"
    write_beside(path, lambda beside: beside.write_text(text, encoding="utf-8"))


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A function that is told how far the work is, and maybe ``what`` is done and the ``total``; shown where standard error is a
    terminal."""
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, what=None, total=None: bar.update(task, completed=done, description=what, total=total)


def tracked(items: Iterable[Any], *, what: str, total: int | None) -> Iterator[Any]:
    """The same items, their progress shown on standard error where that is a terminal."""
    with _bar() as bar:
        yield from bar.track(items, total=total, description=what)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
