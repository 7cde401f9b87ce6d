"""How grounding emerges: curves over training, layers or tokens, with interval bands, floor, chance and the caption loss."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from probe.errors import InputError
from probe.plots.styles import DOUBLE_COLUMN, OKABE_ITO, literal, points, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["emergence"]

#: Curves over training that are drawn, where the table has them, with the words of the legend.
SHOWN = {
    "minus_mean": "minus mean",
    "mean_map": "mean map",
    "best_head_held_out": "best head (held out)",
}
FLOOR_COLOUR, LOSS_COLOUR = "0.35", OKABE_ITO[5]
BAND = 0.18  # opacity of an interval's band


@style()
def emergence(found: Any, *, ax: Axes | None = None) -> Axes:
    """The Axes with grounding over training, layers or tokens: values with interval bands, their floor, and chance.

        probe.plots.emergence(curve)                      # a TrainingCurve: the caption loss is on an axis of its own, right
        probe.plots.emergence(profile)                    # a Profile over layers or tokens

    A curve is grounding only where its band lies above the floor's; filled markers mark the positions whose margin over the floor,
    phrase by phrase, is above 0 with its whole interval, and whose own interval lies above chance.

    Parameters
    ----------
    found : a ``TrainingCurve``, a ``Profile``, or the ``to_frame()`` of one as it was or as it was read back; or the table that
        ``GroundingCallback`` writes.
    ax : where to draw; by default a new figure, both columns wide.

    Raises
    ------
    InputError
        If it is none of these tables, or empty.
    """
    frame = found.to_frame() if hasattr(found, "to_frame") else found
    columns = set(getattr(frame, "columns", ()))
    if "minus_mean" in columns and "step" in columns:
        frame, columns = _long(frame), {"step", "name", "value", "low", "high"}
    training = {"step", "name", "value", "low", "high"} <= columns
    if not (training or {"over", "label", "value", "floor", "chance"} <= columns) or not len(frame):
        raise InputError(
            f"found must be a TrainingCurve, a Profile or a table of one with at least one row; {type(found).__name__} has columns "
            f"{sorted(columns) or 'none'}."
        )
    if ax is None:
        ax = plt.figure(figsize=(DOUBLE_COLUMN, 2.9)).add_subplot()
    if training:
        _draw_training(ax, frame)
    elif frame["over"].iloc[0] in ("layer", "timestep"):
        _draw_layers(ax, frame)
    else:
        _draw_tokens(ax, frame)
    return ax


def _long(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with columns name, name_low, name_high as one with a row for each name."""
    import pandas as pd

    names = [one for one in frame.columns if f"{one}_low" in frame.columns]
    parts = [
        pd.DataFrame(
            {
                "step": frame["step"],
                "name": one,
                "value": frame[one],
                "low": frame[f"{one}_low"],
                "high": frame[f"{one}_high"],
            }
        )
        for one in names
    ]
    return pd.concat(parts, ignore_index=True)


def _draw_training(ax: Axes, frame: pd.DataFrame) -> None:
    rows = {str(name): part.sort_values("step") for name, part in frame.groupby("name", sort=False)}
    if "minus_mean" not in rows:
        raise InputError(f"The table has no rows of 'minus_mean', which are drawn; it has {', '.join(rows)}.")
    steps = rows["minus_mean"]["step"].to_numpy(dtype=float)
    beats = np.zeros(len(steps), dtype=bool)
    if "margin" in rows and "chance" in rows:
        above = rows["minus_mean"]["low"].to_numpy() > rows["chance"]["value"].to_numpy()
        beats = (rows["margin"]["low"].to_numpy() > 0) & above
    for number, (name, label) in enumerate(SHOWN.items()):
        if name in rows:
            # Only minus_mean is held to the floor phrase by phrase, so only it has markers that tell.
            tested: dict[str, Any] = {"marker": "o", "filled": beats} if name == "minus_mean" else {}
            if name == "best_head_held_out":
                tested = {"dashes": (7, 1.5)}  # its colour is no other grey than that of minus_mean
            _band(ax, steps, rows[name], label, colour=OKABE_ITO[number], **tested)
    if "floor" in rows:
        _band(ax, steps, rows["floor"], "floor: other phrase + paraphrase", colour=FLOOR_COLOUR, dashes=(4, 2))
    if "chance" in rows:
        _chance(ax, float(rows["chance"]["value"].iloc[0]))
    _step_axis(ax, steps)
    metric = str(frame["metric"].iloc[0]) if "metric" in frame else "score"
    images = f", {int(frame['images'].max()):,} images" if "images" in frame else ""
    _names(ax, "training step", metric, f"{metric} over training{images}; bands: 95\u00a0% intervals over images")
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    handles = _handles(ax)
    losses = [name for name in ("caption_loss",) if name in rows]
    if losses:
        handles += _draw_loss(ax, steps, rows[losses[0]])
    _legend(ax, handles, note="filled: beats floor and chance" if beats.any() else "")


def _draw_loss(ax: Axes, steps: Any, rows: pd.DataFrame) -> list[Any]:
    """The handles of the caption loss, drawn on an axis of its own on the right."""
    right = ax.twinx()
    right.set_zorder(ax.get_zorder() - 1)  # below the scores
    ax.patch.set_visible(False)
    _band(right, steps, rows, "caption loss (right)", colour=LOSS_COLOUR, dashes=(1, 1))
    right.spines["right"].set(visible=True, color=LOSS_COLOUR)
    right.tick_params(axis="y", colors=LOSS_COLOUR, labelsize=7)
    literal(right.set_ylabel("caption loss,\nnats a token", fontsize=8, color=LOSS_COLOUR))
    right.set_ylim(bottom=0)
    return _handles(right)


#: Kind of position along a line -> the words of the legend for its curve and for its floor.
LINES = {
    "layer": ("one layer, mean over heads", "one layer"),
    "up to layer": ("mean up to this layer", "the mean"),
    "timestep": ("mean over layers and heads", "the same map"),
}


def _draw_layers(ax: Axes, frame: pd.DataFrame) -> None:
    """Layers, or timesteps of a diffusion model."""
    for number, kind in enumerate(one for one in LINES if one in set(frame["kind"])):
        rows = frame[frame["kind"] == kind].sort_values("number")
        places = rows["number"].to_numpy(dtype=float)
        label, of = LINES[kind]
        filled = rows["beats_floor"].to_numpy(dtype=bool)
        _band(ax, places, rows, label, colour=OKABE_ITO[number], marker="os"[number], filled=filled)
        floor = _renamed(rows, "floor")
        name = f"floor of {of}: other phrases' masks"
        _band(ax, places, floor, name, colour=OKABE_ITO[number], dashes=(4, 2), band=False)
    _chance(ax, float(frame["chance"].iloc[0]))
    every = -(-len(places) // 16)
    ax.set_xticks(places[::every], [f"{int(place)}" for place in places[::every]])
    _finish_profile(ax, frame, str(frame["over"].iloc[0]))


def _draw_tokens(ax: Axes, frame: pd.DataFrame) -> None:
    places = np.arange(len(frame), dtype=float)
    filled = frame["beats_floor"].to_numpy(dtype=bool)
    _band(ax, places, frame, "token's map on its phrase", colour=OKABE_ITO[0], marker="o", filled=filled, joined=False)
    _band(
        ax,
        places,
        _renamed(frame, "floor"),
        "floor: on the other phrases",
        colour=FLOOR_COLOUR,
        marker="_",
        joined=False,
    )
    _chance(ax, float(frame["chance"].iloc[0]))
    inside = [place for place, kind in zip(places, frame["kind"], strict=True) if kind in ("phrase", "last")]
    if inside:
        ax.axvspan(min(inside) - 0.5, max(inside) + 0.5, color="0.95", linewidth=0, zorder=0)
    room = max(int(points(ax, "width") / len(places) / 4), 6)
    ax.set_xticks(places, [textwrap.fill(str(one), room) for one in frame["label"]], parse_math=False)
    _finish_profile(ax, frame, "token, by its place around the phrase (shaded: the phrase)")


def _finish_profile(ax: Axes, frame: pd.DataFrame, across: str) -> None:
    metric, images = str(frame["metric"].iloc[0]), int(frame["images"].max())
    over = str(frame["over"].iloc[0])
    shown = "bars" if over == "token" else "bands"
    _names(ax, across, metric, f"{metric} over {over}s, {images:,} images; {shown}: 95\u00a0% intervals over images")
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    _legend(ax, _handles(ax), note="filled: beats floor and chance" if frame["beats_floor"].any() else "")


def _renamed(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows.assign(value=rows[name], low=rows[f"{name}_low"], high=rows[f"{name}_high"])


def _band(
    ax: Axes,
    places: Any,
    rows: pd.DataFrame,
    label: str,
    *,
    colour: str,
    marker: str = "",
    dashes: tuple[int, int] | None = None,
    filled: Any = None,
    joined: bool = True,
    band: bool = True,
) -> None:
    """Draws values and their intervals: a line and a band, or markers with bars where places are no scale."""
    value, low, high = (rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    look: dict[str, Any] = {"color": colour, "label": label, "marker": marker, "markersize": 3.8}
    if filled is not None:
        look |= {"markerfacecolor": "white", "markeredgewidth": 0.9}
    if joined:
        ax.plot(places, value, linestyle="-" if dashes is None else (0, dashes), linewidth=1.2, **look)
        if band:
            ax.fill_between(places, low, high, color=colour, alpha=BAND, linewidth=0)
    else:
        ax.vlines(places, low, high, color=colour, linewidth=1.2)
        ax.plot(places, value, linestyle="none", **look)
    if filled is not None and np.any(filled):
        ax.plot(places[filled], value[filled], linestyle="none", marker=marker, markersize=3.8, color=colour)


def _chance(ax: Axes, value: float) -> None:
    if np.isfinite(value):
        ax.axhline(value, color="0.6", linewidth=0.8, linestyle=(0, (1, 1.5)), label="chance", zorder=0)


def _step_axis(ax: Axes, steps: Any) -> None:
    """A logarithmic axis that begins at 0, with a tick at every checkpoint that has room."""
    positive = steps[steps > 0]
    if len(positive) < 2 or positive[-1] < 8 * positive[0]:
        ax.set_xticks(steps)
    else:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)  # less room for what has no scale
        ax.set_xlim(steps[0], steps[-1] * 1.03)
        gap, kept = 22 / points(ax, "width"), list[float]()
        for step in steps:  # as far apart as a number is wide
            if not kept or _along(ax, step) - _along(ax, kept[-1]) > gap:
                kept.append(step)
        ax.set_xticks(kept)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _along(ax: Axes, step: float) -> float:
    """Where a step lies along the axis, from 0 to 1."""
    return float(ax.transAxes.inverted().transform(ax.transData.transform((step, 0)))[0])


def _slot(ax: Axes) -> float:
    """Points that Axes have with all that belongs to them, of which they take about three quarters before they are laid out."""
    return points(ax, "width") / 0.775


def _names(ax: Axes, across: str, up: str, title: str) -> None:
    letters = max(
        int((_slot(ax) - 40) / 4.4), 12
    )  # what is centred on the Axes has less room than they and their names
    literal(ax.set_xlabel(textwrap.fill(across, letters), fontsize=8))
    literal(ax.set_ylabel(up, fontsize=8))
    literal(ax.set_title(textwrap.fill(title, letters), fontsize=8))
    ax.tick_params(labelsize=7)


def _handles(ax: Axes) -> list[Any]:
    return list(ax.get_legend_handles_labels()[0])


def _legend(ax: Axes, handles: list[Any], *, note: str) -> None:
    """A legend below, where no curve can run through it."""
    ticks = max((one.get_text().count("\n") for one in ax.get_xticklabels()), default=0)
    below = 30 + 9 * (ax.get_xlabel().count("\n") + ticks)
    longest = max(len(str(one.get_label())) for one in handles)
    cols = 3 if _slot(ax) > 400 else max(int(_slot(ax) / (3.7 * longest + 30)), 1)
    found = ax.legend(
        handles=handles,
        loc="upper center",
        # Below the ticks and the axis's name, so many points from the axis whatever its height.
        bbox_to_anchor=(0.5, 0),
        bbox_transform=ax.transAxes + ScaledTranslation(0, -below / 72, ax.figure.dpi_scale_trans),
        ncols=cols,
        fontsize=7,
        title=note or None,
        title_fontsize=7,
        handlelength=2.4,
    )
    for text in found.get_texts():
        literal(text)
