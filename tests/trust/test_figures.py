"""What figures and pages show are the numbers that are stored, read back from what was drawn."""

from __future__ import annotations

import re
from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import probe
from tests.plots.scores import make_frame

TARGET = "0 numbers that differ from those stored"


def stored(dice, tmp_path):
    """A table of scores of a random shape with some heads missing, as it is read back from a file, and its (layer, head) values."""
    values = dice.random(tuple(dice.integers(2, 13, 2)))
    values[dice.random(values.shape) < 0.1] = np.nan
    values[0, 0] = dice.random()
    frame = make_frame(values, chance=float(dice.random()))
    changed = frame["kind"].isin(["reading", "layer", "control"]) & (frame["name"] != "chance")
    frame.loc[changed, "value"] = dice.random(changed.sum())
    frame.loc[changed, "low"] = frame.loc[changed, "value"] - dice.random(changed.sum()) / 9
    frame.loc[changed, "high"] = frame.loc[changed, "value"] + dice.random(changed.sum()) / 9
    kinds = {"layer": "Int64", "head": "Int64"}
    if dice.random() < 0.5:
        frame.to_csv(tmp_path / "scores.csv", index=False)
        return pd.read_csv(tmp_path / "scores.csv", dtype=kinds), values
    frame.to_parquet(tmp_path / "scores.parquet")
    return pd.read_parquet(tmp_path / "scores.parquet"), values


def written(row) -> str:
    """How a row's numbers are to be written."""
    interval = "" if np.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{interval}"


@pytest.mark.promises("R37")
def test_grids_of_heads(line, full, tmp_path):
    shown = line("R37", target=TARGET, least=2000 if full else 200)
    for seed in range(60 if full else 6):
        frame, values = stored(np.random.default_rng([37, seed]), tmp_path)
        ax = probe.plots.heads(frame)
        cells = ax.images[0].get_array()
        texts = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in ax.texts}
        # A layer or head without any row in the table has no place; the axes say which number stands where.
        rows, cols = (
            {int(label.get_text()): round(at) for at, label in zip(ticks, labels, strict=True)}
            for ticks, labels in ((ax.get_yticks(), ax.get_yticklabels()), (ax.get_xticks(), ax.get_xticklabels()))
        )
        for (layer, head), value in np.ndenumerate(values):
            if layer not in rows or head not in cols:
                shown.trial(bool(np.isnan(value)), silent=True, what=f"seed {seed}, head {layer} {head} is not drawn")
                continue
            row, col = rows[layer], cols[head]
            drawn = np.nan if np.ma.getmaskarray(cells)[row, col] else float(cells[row, col])
            beside = [text for (high, place), text in texts.items() if place == col and round(high) == row]
            right = not beside or beside[0] == f"{value:.2f}"
            right &= len(beside) < 2 or set(re.findall(r"-?\d+\.\d+", beside[1])) == {
                f"{value - 0.02:.2f}",
                f"{value + 0.03:.2f}",
            }
            same = (np.isnan(drawn) and np.isnan(value) and not beside) or (drawn == value and right)
            shown.trial(
                same, silent=True, what=f"seed {seed}, head {layer} {head}: {value}, drawn {drawn}, written {beside}"
            )
        plt.close("all")
    shown.settle()


@pytest.mark.promises("R37")
def test_readings(line, full, tmp_path):
    shown = line("R37", target=TARGET, least=400 if full else 60)
    for seed in range(60 if full else 10):
        frame, _ = stored(np.random.default_rng([370, seed]), tmp_path)
        ax = probe.plots.readings(frame)
        rows = frame[~frame["kind"].isin(["head"])]
        names = [label.get_text() for label in ax.get_yticklabels()]
        places = dict(zip(ax.get_yticks(), names, strict=True))
        markers = {
            float(one.get_ydata()[0]): float(one.get_xdata()[0]) for one in ax.lines if len(one.get_xdata()) == 1
        }
        level = [one for one in ax.lines if len(one.get_xdata()) == 2 and one.get_ydata()[0] == one.get_ydata()[1]]
        spans = {float(one.get_ydata()[0]): tuple(one.get_xdata()) for one in level}  # without the line of chance
        texts = {text.get_position()[1]: text.get_text() for text in ax.texts}
        for _, row in rows.iterrows():
            name = f"layer {row['layer']}" if row["kind"] == "layer" else row["name"].replace("_", " ")
            [place] = [at for at, one in places.items() if one.rstrip("*") == name]
            same = markers[place] == row["value"] and texts[place] == written(row)
            same &= np.isnan(row["low"]) or spans[place] == (row["low"], row["high"])
            shown.trial(bool(same), silent=True, what=f"seed {seed}, {name}: {written(row)}, written {texts[place]}")
        plt.close("all")
    shown.settle()


@pytest.mark.promises("R37")
def test_curves(line, full, tmp_path):
    shown = line("R37", target=TARGET, least=500 if full else 60)
    names = {"minus_mean": "minus mean", "mean_map": "mean map", "floor": "floor: other phrase + paraphrase"}
    for seed in range(40 if full else 4):
        dice = np.random.default_rng([371, seed])
        steps = np.cumsum(dice.integers(1, 500, dice.integers(3, 9)))
        rows = [
            {"step": step, "metric": "pointing", "name": name, "value": value, "low": value - dice.random() / 9}
            | {"high": value + dice.random() / 9, "images": 60}
            for name in names
            for step, value in zip(steps, dice.random(len(steps)), strict=True)
        ]  # fmt: skip
        pd.DataFrame(rows).sample(frac=1, random_state=seed).to_csv(tmp_path / "curve.csv", index=False)
        frame = pd.read_csv(tmp_path / "curve.csv")
        ax = probe.plots.emergence(frame)
        lines = {one.get_label(): one for one in ax.get_lines()}
        bands = [one.get_paths()[0].vertices for one in ax.collections]
        for name, label in names.items():
            part = frame[frame["name"] == name].sort_values("step")
            drawn = dict(zip(*lines[label].get_data(), strict=True))
            for _, row in part.iterrows():
                same = drawn.get(row["step"]) == row["value"]
                edges = [set(band[band[:, 0] == row["step"], 1]) for band in bands]
                same &= any({row["low"], row["high"]} <= edge for edge in edges)
                shown.trial(bool(same), silent=True, what=f"seed {seed}, {name} at {row['step']}")
        plt.close("all")
    shown.settle()


@pytest.mark.promises("R37")
def test_overlays(line, full):
    """The map that lies over a picture, cell by cell, and its colour scale."""
    from tests.records import make_record

    shown = line("R37", target=TARGET, least=60 if full else 8)
    for seed in range(60 if full else 8):
        record = make_record(seed=seed)["red circle"]
        patches = np.mean(
            [(one.values - one.token_mean[:, :, None]).mean((0, 1, 2)).numpy() for one in record.layers], 0
        )
        ax = probe.plots.overlay(record, Image.new("RGB", (32, 32), "grey"), smooth=False)
        [drawn] = [one for one in ax.images if np.ndim(one.get_array()) == 2]
        cells = np.ma.getdata(drawn.get_array())
        same = np.allclose(cells, np.kron(patches, np.ones((8, 8))), rtol=0, atol=1e-7)
        same &= drawn.get_clim() == pytest.approx((0, patches.max()), abs=1e-7)
        shown.trial(bool(same), silent=True, what=f"seed {seed}: {cells[::8, ::8]} {patches}")
        plt.close("all")
    shown.settle()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.promises("R37")
def test_pages(line, evaluated):
    """The table of an evaluation's page against the table that lies beside it, and what is printed against both."""
    shown = line("R37", target=TARGET, least=10)
    out, printed = evaluated
    page = (out / "index.html").read_text(encoding="utf-8")
    head = re.findall(r"<th>([^<]*)</th>", re.search(r"<thead>.*?</thead>", page, re.DOTALL)[0])
    cells = {}
    for measure, rest in re.findall(
        r"<tr><th>([^<]*)</th>(.*?)</tr>", re.search(r"<tbody>.*?</tbody>", page, re.DOTALL)[0]
    ):
        for control, cell in zip(head[1:], re.findall(r"<td>(.*?)</td>", rest), strict=True):
            cells[unescape(measure), "" if control == "value" else unescape(control)] = re.findall(r"-?\d+\.\d+", cell)
    for _, row in pd.read_parquet(out / "scores.parquet").iterrows():
        numbers = [row[one] for one in ("value", "low", "high")]
        expected = [f"{one:.3f}" for one in numbers if not np.isnan(one)] if not np.isnan(numbers[0]) else []
        found = cells[row["measure"], row["control"]]
        said = not expected or expected[0] in printed
        shown.trial(
            found == expected and said, silent=True, what=f"{row['measure']} {row['control']}: {expected} {found}"
        )
    shown.settle()
