"""Draws how good the masks of attend-and-segment are, ``figures/segmentation.png`` and ``.pdf``, from a saved table.

``python figures/segmentation.py`` draws and needs no model; with ``--measure`` it first segments the lab's test scenes again:
their captions are read by lab/llava, and each phrase's mask is held against the true one and against controls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import probe
from probe.figure_scripts import run_script
from probe.plots.panels import interval
from probe.plots.styles import DOUBLE_COLUMN

READS = ("segmentation.csv",)
MODEL, PROMPT = "lab/llava", "Describe the image."
SCENES = 500
#: What is compared, as options of ``attend_and_segment``.
SETTINGS: dict[str, dict[str, Any]] = {
    "threshold": {"refiner": "threshold"},
    "threshold, heads as first released": {"refiner": "threshold", "reduction": "as-first-released"},
    "superpixels": {"refiner": "superpixels"},
    "lab/sam": {"refiner": "lab/sam"},
}
LABELS = {
    "iou": "IoU",
    "iou at 0.5": "IoU ≥ 0.5",
    "point": "point in mask",
    "other phrase": "IoU, other phrase's mask",
    "shuffled": "IoU, another image's truth",
    "centre box": "IoU, box in the centre",
    "oracle patches": "IoU, whole patches (oracle)",
}
RESULTS = 3  # of the labels; the rest are controls
HEIGHT = 2.7  # inches


def measure(data: Path, *, scenes: int = SCENES) -> None:
    """Writes ``segmentation.csv`` into ``data``: every setting and control over so many scenes."""
    from probe.evaluation.lab import read_lab
    from probe.grounding.refiners import find_refiner
    from probe.grounding.scores import score_masks
    from probe.reports import tracked

    subject = probe.load_model(MODEL)
    examples = list(read_lab(limit=scenes))
    records = [
        probe.run(subject, one.image, PROMPT, answer=one.text).record
        for one in tracked(examples, what="reading captions", total=scenes)
    ]
    parts = []
    for name, given in SETTINGS.items():
        options = given | {"refiner": find_refiner(given["refiner"])}  # a SAM is loaded once
        found = (
            probe.attend_and_segment(
                record, one.image, phrases=[(part.start, part.end) for part in one.phrases], **options
            )
            for record, one in tracked(zip(records, examples, strict=True), what=name, total=scenes)
        )
        scores = score_masks(found, ([part.mask for part in one.phrases] for one in examples))
        parts.append(scores.drop(columns="what").assign(setting=name, model=MODEL))
    frame = pd.concat(parts, ignore_index=True)
    frame.to_csv(data / "segmentation.csv", index=False, lineterminator="\n")


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table in ``data``."""
    frame = pd.read_csv(data / "segmentation.csv")
    names = [one for one in LABELS if one in set(frame["name"])]
    settings = list(dict.fromkeys(frame["setting"]))
    with probe.plots.style():
        figure = probe.plots.new_figure((HEIGHT, DOUBLE_COLUMN))
        ax = figure.subplots()
        for index, setting in enumerate(settings):
            part = frame[frame["setting"] == setting].set_index("name").loc[names]
            rows = np.arange(len(names)) + (index - (len(settings) - 1) / 2) * 0.18
            reach = np.stack([part["value"] - part["low"], part["high"] - part["value"]])
            ax.errorbar(
                part["value"], rows, xerr=reach, fmt="os^D"[index % 4], markersize=2.5, capsize=1.5, label=setting
            )
        for row in range(1, len(names)):
            ax.axhline(row - 0.5, color="0.4" if row == RESULTS else "0.9", linewidth=0.5, zorder=0)
        ax.set(yticks=range(len(names)), yticklabels=[LABELS[one] for one in names], xlim=(0, 1))
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel("mean over phrases; below the line: controls")
        figure.legend(loc="outside upper center", ncols=len(settings))
        return probe.plots.save_figure(figure, out)


def caption(data: Path) -> str:
    """Who, how many, how, and what each control is."""
    frame = pd.read_csv(data / "segmentation.csv")
    images, phrases = int(frame["images"].max()), int(frame["phrases"].max())
    best = frame[(frame["name"] == "iou") & (frame["setting"] == "lab/sam")].iloc[0]
    return (
        f"How good the masks of attend-and-segment are: {frame['model'].iloc[0]}, which reads the true captions, {phrases:,} "
        f"phrases of {images} unseen scenes; bars: 95 % intervals by bootstrap over scenes. The same maps give each refiner its "
        "points: a threshold on the map, also of the one head that the first released code read; superpixels; and lab/sam, the "
        f"only one that learned from masks (IoU {interval(best)}). Controls, below the line: the mask against another phrase's "
        "truth and against another image's; a box of the mask's area in the centre; and the best mask of whole patches."
    )


if __name__ == "__main__":
    run_script(__file__)
