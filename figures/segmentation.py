"""Draws how good the masks of attend-and-segment are, ``figures/segmentation.png`` and ``.pdf``, from a saved table.

``python figures/segmentation.py`` draws and needs no model; with ``--measure`` it first segments the lab's test scenes again:
their captions are read by lab/llava, and each phrase's mask is held against the true one and against controls.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

import probe

HERE = Path(__file__).parent
TABLE = HERE / "data" / "segmentation.csv"
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
SIZE = (2.9, 6.0)  # (height, width) in inches


def measure(count: int, table: Path = TABLE) -> pd.DataFrame:
    """The table of every setting over so many scenes; it is written too."""
    from probe.evaluation.lab import read_lab
    from probe.grounding.refiners import find_refiner
    from probe.grounding.scores import score_masks
    from probe.reports import tracked

    subject = probe.load_model(MODEL)
    examples = list(read_lab(limit=count))
    records = [
        probe.run(subject, one.image, PROMPT, answer=one.text).record
        for one in tracked(examples, what="reading captions", total=count)
    ]
    parts = []
    for name, given in SETTINGS.items():
        options = given | {"refiner": find_refiner(given["refiner"])}  # a SAM is loaded once
        found = (
            probe.attend_and_segment(
                record, one.image, phrases=[(part.start, part.end) for part in one.phrases], **options
            )
            for record, one in tracked(zip(records, examples, strict=True), what=name, total=count)
        )
        scores = score_masks(found, ([part.mask for part in one.phrases] for one in examples))
        parts.append(scores.drop(columns="what").assign(setting=name, model=MODEL))
    frame = pd.concat(parts, ignore_index=True)
    table.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(table, index=False, lineterminator="\n")
    return frame


def draw(table: Path = TABLE, out: Path = HERE / "segmentation") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table."""
    frame = pd.read_csv(table)
    names = [one for one in LABELS if one in set(frame["name"])]
    settings = list(dict.fromkeys(frame["setting"]))
    with probe.plots.style():
        figure = probe.plots.new_figure(SIZE)
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
        images, phrases = int(frame["images"].max()), int(frame["phrases"].max())
        ax.set_xlabel(
            f"mean over {phrases} phrases in {images} test scenes, {frame['model'].iloc[0]};\n"
            "bars: 95 % intervals by bootstrap over scenes; below the line: controls"
        )
        figure.legend(loc="outside upper center", ncols=len(settings))
        return probe.plots.save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help=f"segment the scenes again with {MODEL} first")
    parser.add_argument("--scenes", type=int, default=SCENES, help="how many to measure on (default: %(default)s)")
    options = parser.parse_args()
    matplotlib.use("Agg")
    if options.measure:
        print(measure(options.scenes).to_string(index=False, float_format="%.3f"))
    elif not TABLE.exists():
        sys.exit(f"{TABLE} is not there yet; run: python figures/segmentation.py --measure")
    for path in draw():
        print(path)


if __name__ == "__main__":
    main()
