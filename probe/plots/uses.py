"""Which heads are used: what taking each away changes, that beside how well it localises, and what losing many changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from probe.errors import InputError, did_you_mean
from probe.plots.styles import OKABE_ITO, literal, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from probe.analysis.usage import HeadUse

__all__ = ["effects", "removal", "use"]

#: Column of effects -> how it is called on an axis, with its unit.
NAMES = {
    "log_probability": "log-probability of a phrase (nats)",
    "caption_log_probability": "log-probability of the caption (nats)",
    "exact_match": "exact match of attribute words",
    "pointing": "pointing accuracy of the other heads",
    "auroc": "AUROC of the other heads",
    "log-probability": "log-probability of a phrase (nats)",
}


@style()
def effects(table: pd.DataFrame, *, ax: Axes | None = None, limit: float | None = None) -> Axes:
    """The Axes with one cell for each layer (row) and head (col), coloured by what changes when that head is taken away.

        probe.plots.effects(probe.analysis.head_effects(table, how="mean"))

    White is no change. A cell whose 95 % interval holds 0 has a dot: these images do not say that anything changes.

    Parameters
    ----------
    table : what ``probe.analysis.head_effects`` gives.
    ax : where to draw; by default a new figure.
    limit : end of the colour scale on either side of 0, to share it between pictures; by default the largest change.

    Raises
    ------
    InputError
        If the table has no change of any head, or the limit is not above 0.
    """
    known = table[np.isfinite(table["change"])]
    if known.empty:
        raise InputError("The table holds no change of any head; nothing can be drawn.")
    if limit is not None and not (np.isfinite(limit) and limit > 0):
        raise InputError(f"limit is the end of the colour scale on either side of 0, so above 0; found {limit!r}.")
    layers, heads = sorted(set(known["layer"])), sorted(set(known["head"]))
    values = np.full((len(layers), len(heads)), np.nan)
    unsure = []
    for row in known.itertuples():
        place = layers.index(row.layer), heads.index(row.head)
        values[place] = row.change
        if not (row.low > 0 or row.high < 0):
            unsure.append(place)
    end = limit or float(np.nanmax(np.abs(values))) or 1.0
    ax = ax or plt.figure().subplots()
    ax.set_facecolor("0.85")
    drawn = ax.imshow(np.ma.masked_invalid(values), cmap="PuOr", norm=TwoSlopeNorm(0, -end, end), aspect="auto")
    if unsure:
        ax.plot([col for _, col in unsure], [row for row, _ in unsure], ".", color="0.3", markersize=2)
    for axis, numbers in ((ax.xaxis, heads), (ax.yaxis, layers)):
        some = range(0, len(numbers), -(-len(numbers) // 16))
        axis.set_ticks(list(some), [str(numbers[one]) for one in some])
    literal(ax.set_xlabel("head"))
    literal(ax.set_ylabel("layer"))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    effect, how = known["effect"].iloc[0], known["how"].iloc[0]
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    literal(bar.ax.yaxis.get_label()).set_text(f"change in {NAMES.get(effect, effect)}")
    literal(ax.set_title(f"each head replaced by {how}, {int(known['images'].max())} images"))
    return ax


@style()
def use(found: HeadUse, *, ax: Axes | None = None) -> Axes:
    """The Axes with a point for each head: how well it localises against how much is lost without it, both with intervals.

        probe.plots.use(probe.analysis.compare_use(records, masks, names, table))

    Colours are layers, from the first (dark) to the last (bright); the title has the rank correlation with its interval.
    """
    rows = found.heads
    ax = ax or plt.figure().subplots()
    layers = sorted(set(rows["layer"]))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(layers)))
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    for layer, colour in zip(layers, colours, strict=True):
        part = rows[rows["layer"] == layer]
        across = [part["localises"] - part["localises_low"], part["localises_high"] - part["localises"]]
        up = [part["used"] - part["used_low"], part["used_high"] - part["used"]]
        ax.errorbar(part["localises"], part["used"], xerr=across, yerr=up, fmt="none", ecolor=colour, elinewidth=0.5)
        ax.plot(
            part["localises"], part["used"], "o", color=colour, markersize=3, mec="white", mew=0.3, label=f"{layer}"
        )
    literal(ax.set_xlabel(f"localises: {found.metric} of its map"))
    literal(ax.set_ylabel(f"used: loss of {NAMES.get(found.effect, found.effect)}"))
    rank = found.agreement.set_index("measure").loc["spearman"]
    text = f"rank correlation {rank['value']:.2f} [{rank['low']:.2f}, {rank['high']:.2f}] over {len(rows)} heads"
    literal(ax.set_title(text))
    if len(layers) <= 8:
        ax.legend(title="layer", title_fontsize=7, handletextpad=0.1, borderpad=0.1)
    return ax


@style()
def removal(table: pd.DataFrame, *, effect: str = "log-probability", ax: Axes | None = None) -> Axes:
    """The Axes with a curve for each order: the effect against how many heads are taken away, from none of them on.

        probe.plots.removal(probe.effects.removal_curves(subject, examples, {"best first": best}))

    Orders named "random ..." are drawn thin and grey, each for itself; of the others the band is the 95 % interval of the change.

    Parameters
    ----------
    table : what ``removal_curves`` gives.
    effect : one of its effects.

    Raises
    ------
    InputError
        If the table has no such effect.
    """
    rows = table[table["effect"] == effect]
    if rows.empty:
        known = list(dict.fromkeys(table["effect"]))
        raise InputError(f"The table has no effect {effect!r}; it has {', '.join(known)}.{did_you_mean(effect, known)}")
    ax = ax or plt.figure().subplots()
    colours = iter(OKABE_ITO)
    styles = iter(("-", "--", "-.", ":") * 2)
    named = False
    for order, part in rows.groupby("order", sort=False):
        part = part.sort_values("heads")
        before = part["before"].iloc[0]
        at, value = [0, *part["heads"]], [before, *(part["before"] + part["change"])]
        if str(order).startswith("random"):
            label = None if named else "random orders"
            ax.plot(at, value, color="0.6", linewidth=0.7, zorder=0, label=label)
            named = True
            continue
        colour = next(colours)
        ax.plot(at, value, next(styles), color=colour, marker=".", markersize=3, label=str(order))
        low, high = ([before, *(part["before"] + part[name])] for name in ("low", "high"))
        ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    literal(ax.set_xlabel("heads taken away"))
    literal(ax.set_ylabel(NAMES.get(effect, effect)))
    ax.legend()
    return ax
