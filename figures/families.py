"""Draws ``figures/families.png`` and ``.pdf``: every family that can be recorded, and what checking it found.

``python figures/families.py`` draws from the saved table and needs no model; with ``--measure`` a tiny random model of every family
is checked again first, as by ``probe check --all`` (minutes).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.families import FAMILIES
from probe.figure_scripts import run_script
from probe.plots.styles import DOUBLE_COLUMN, literal

READS = ("families.csv",)
LIBRARIES = ("torch", "transformers", "diffusers")
#: Heading -> where its column begins, as a share of the width.
COLUMNS = {
    "family": 0.005,
    "kind": 0.165,
    "patches reach words by": 0.32,
    "float32": 0.53,
    "float64": 0.62,
    "certificate": 0.71,
    "cells": 0.82,
    "state": 0.88,
    "passed": 0.94,
}
#: How patches reach the sequence, as a family declares it -> in words.
PATHS = {
    "placeholder": "placeholders",
    "grid_thw": "placeholders, own size",
    "anyres": "tiles, newline column",
    "tiles": "tiles",
    "cross-attention": "cross-attention",
    "none": "\N{EN DASH}",
}
ROW = 0.155  # inches
HEADER = 2.6  # rows


def measure(data: Path) -> None:
    """Writes ``families.csv`` into ``data``: what each family declares, and what its check found."""
    from probe.family_checks import check_family
    from probe.reports import tracked

    declared = {one.name: one for one in FAMILIES}
    rows = []
    for name in tracked(list(declared), what="checking", total=len(declared)):
        found, family = check_family(name).to_dict(), declared[name]
        said = {"kind": family.kind, "image_tokens": family.image_tokens, "models": " ".join(family.models)}
        rows.append({"family": found.pop("name")} | said | found | {one: version(one) for one in LIBRARIES})
    table = pd.DataFrame(rows)
    table.to_csv(data / "families.csv", index=False, lineterminator="\n", float_format="%.3g")


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table in ``data``."""
    table = pd.read_csv(data / "families.csv")
    with probe.plots.style():
        figure = probe.plots.new_figure((ROW * (len(table) + HEADER), DOUBLE_COLUMN))
        draw_table(figure.subplots(), table)
        return probe.plots.save_figure(figure, out)


def draw_table(ax: Axes, table: pd.DataFrame) -> None:
    """A row for each family, under headings; every other one shaded, a line between kinds."""
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(len(table) - 0.5, -HEADER + 0.5))
    for name, left in COLUMNS.items():
        literal(ax.text(left, -1, name, fontweight="bold", fontsize=7, va="center"))
    for first, after, text in (("float32", "cells", "largest error"), ("cells", "passed", "differences")):
        literal(ax.text(COLUMNS[first], -1.85, text, fontsize=7, va="center", color="0.3"))
        ax.plot([COLUMNS[first], COLUMNS[after] - 0.02], [-1.45] * 2, color="0.6", linewidth=0.5)
    ax.axhline(-0.5, color="black", linewidth=0.8)
    ax.axhline(len(table) - 0.5, color="black", linewidth=0.8)
    for place, (_, row) in enumerate(table.iterrows()):
        if place % 2:
            ax.axhspan(place - 0.5, place + 0.5, color="0.95", linewidth=0, zorder=-2)
        for name, text in zip(COLUMNS, cells(row), strict=True):
            literal(ax.text(COLUMNS[name], place, text, fontsize=7, va="center"))
    for place in range(1, len(table)):
        if table["kind"].iloc[place] != table["kind"].iloc[place - 1]:
            ax.axhline(place - 0.5, color="0.5", linewidth=0.5)


def cells(row: pd.Series) -> list[str]:
    """What stands in a family's row, in the order of ``COLUMNS``."""
    errors = [number(row[key]) for key in ("parity", "parity_float64", "certificate")]
    counts = [
        "\N{EN DASH}" if pd.isna(row[key]) else f"{row[key]:.0f}"
        for key in ("geometry_wrong_cells", "state_differences")
    ]
    return [row["family"], row["kind"], PATHS[row["image_tokens"]], *errors, *counts, "yes" if row["passed"] else "NO"]


def number(value: float) -> str:
    """ "2e−07"; 0 as it is, since nothing is as exact."""
    return "\N{EN DASH}" if pd.isna(value) else "0" if value == 0 else f"{value:.0e}".replace("-", "\N{MINUS SIGN}")


def caption(data: Path) -> str:
    """How many, what each column is, and what it does not say."""
    table = pd.read_csv(data / "families.csv")
    with_reference = int(table["parity"].notna().sum())
    libraries = ", ".join(f"{name} {table[name].iloc[0]}" for name in LIBRARIES)
    return (
        f"The {len(table)} families that can be recorded, of which {int(table['passed'].sum())} pass every check of probe check "
        f"--all, each on one tiny random model of the library's own classes ({libraries}). Largest errors: of one attention "
        f"weight from an eager or plain reference in float32 and float64, where there is one ({with_reference} families; at most "
        f"{number(table['parity'].max())} and {number(table['parity_float64'].max())}), and of the attention output rebuilt from "
        f"recorded weights, relative to it (certificate, at most {number(table['certificate'].max())}). Differences: cells whose "
        "painted pixels move another token most, and what recording leaves changed on the model. The numbers are maxima of one "
        "run and have no interval. Released weights were not tried here."
    )


if __name__ == "__main__":
    run_script(__file__)
