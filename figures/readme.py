"""Draws the README's picture, ``figures/readme.png`` and ``.pdf``, from a saved record and a saved table.

``python figures/readme.py`` draws and needs no model; with ``--record`` it first records and scores again with lab/llava.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker
from PIL import Image

import probe
from probe.text import find_phrase

HERE = Path(__file__).parent
DATA = HERE / "data"
MODEL, PROMPT = "lab/llava", "Describe the image."
#: The first test scene in which the model names at least two objects is drawn; heads are scored on so many test scenes.
SCENES = 200
READING: Literal["minus mean"] = "minus mean"  # of overlays and heads alike
MOST_PHRASES = 3
WIDTH = 6.9  # inches: both columns of a paper, and about the width of a README


def record(data: Path = DATA) -> None:
    """Writes everything that ``draw`` reads: image, masks, record, what was asked, and the table of scores."""
    from probe.evaluation.lab import read_lab
    from probe.lab.scenes import scene
    from probe.runs import score_examples

    subject = probe.load_model(MODEL)
    data.mkdir(parents=True, exist_ok=True)
    for index in range(SCENES):
        example = scene(index)
        run = probe.run(subject, example.image, PROMPT)
        said = [one for one in example.phrases if len(find_phrase(run.text, one.text)) == 1]
        if len(said) >= 2:
            break
    else:
        sys.exit(f"{MODEL} names two objects in none of {SCENES} scenes; train it again before drawing the picture.")
    probe.save(run.record, data / "readme.safetensors")
    example.image.save(data / "readme.png")
    # One grey level a phrase, 0 for none: the masks of a scene never overlap.
    levels = sum(np.uint8(i) * one.mask.astype(np.uint8) for i, one in enumerate(said, start=1))
    Image.fromarray(np.asarray(levels, dtype=np.uint8)).save(data / "readme-masks.png")
    facts = {"model": MODEL, "prompt": PROMPT, "scene": index, "phrases": [one.text for one in said]}
    (data / "readme.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    scores = score_examples(subject, read_lab(limit=SCENES), prompt=PROMPT, metric="pointing", reading=READING)
    scores.to_frame().to_csv(data / "readme-scores.csv", index=False, lineterminator="\n")


def draw(data: Path = DATA, out: Path = HERE / "readme") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "readme.json").read_text(encoding="utf-8"))
    kept = probe.load(data / "readme.safetensors")
    image = probe.read_image(data / "readme.png")
    levels = np.asarray(Image.open(data / "readme-masks.png"))
    wanted = facts["phrases"][:MOST_PHRASES]
    masks = [levels == level for level in range(1, len(wanted) + 1)]
    scores = pd.read_csv(data / "readme-scores.csv")
    with probe.plots.style():
        heights = WIDTH / (1 + len(wanted)) + 1.13, 2.6  # square images, and what is written around them
        figure = probe.plots.new_figure((sum(heights), WIDTH))
        top, bottom = figure.subfigures(2, 1, height_ratios=heights)
        first, *others = top.subplots(1, 1 + len(wanted))
        heading(top, "Where does the model look when it says a word?")
        probe.plots.phrases(kept, wanted, image, masks=masks, reading=READING, axes=others)
        show_image(first, image)
        write_answer(first, kept.text, wanted, prompt=facts["prompt"])
        for ax in (first, *others):
            ax.set_anchor("N")  # in one line, though the bar takes of the room of the others alone
        heading(bottom, "How well does each head point at what it names?")
        left, right = bottom.subplots(1, 2, width_ratios=[2.3, 1])
        probe.plots.heads(scores, ax=left)
        left.set_title(left.get_title().replace(":", f" ({READING}):", 1))  # which the table alone does not say
        probe.plots.readings(scores, ax=right)
        proof, source = kept.certificate, kept.source
        bottom.supxlabel(
            f"{facts['model']}, scene {facts['scene']} of the test split; {source.kernel} attention in {source.dtype}; "
            f"largest error of the record {proof.max_error:.0e} in {proof.rows} checked rows",
            fontsize=6,
            color="0.4",
        )
        return probe.plots.save_figure(figure, out)


def heading(part: Any, text: str) -> None:
    part.suptitle(text, x=0.005, ha="left", fontsize=9, fontweight="bold")


def show_image(ax: Axes, image: Image.Image) -> None:
    ax.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
    ax.set(xticks=[], yticks=[])
    ax.set_title("the image", fontsize=8)
    ax.spines[:].set(visible=True, color="0.6")


def write_answer(ax: Axes, text: str, phrases: list[str], *, prompt: str) -> None:
    """Writes the prompt and the answer below the image, the phrases in bold."""
    bold = [span for phrase in phrases for span in find_phrase(text, phrase)]
    lines: list[list[tuple[str, str]]] = [[(f"asked: {prompt}", "normal")], [("said:", "normal")]]
    place = 0
    for word in text.split(" "):
        strong = any(low <= place < high for low, high in bold)
        # About 26 letters of 6.5 points fit below an image of a quarter of the page.
        if sum(len(one) + 1 for one, _ in lines[-1]) + len(word) > 26:
            lines.append([])
        lines[-1].append((word, "bold" if strong else "normal"))
        place += len(word) + 1
    rows: list[Any] = [HPacker(children=[letters(*one) for one in line], pad=0, sep=2) for line in lines]
    box = VPacker(children=rows, pad=0, sep=2.5, align="left")
    below = AnnotationBbox(
        box,
        (0, 0),
        xybox=(0, -5),
        xycoords="axes fraction",
        boxcoords="offset points",
        box_alignment=(0, 1),
        frameon=False,
        pad=0,
        annotation_clip=False,
    )
    below.set_in_layout(False)  # it stands beside the colour bar, where there is room; the image keeps its size
    ax.add_artist(below)


def letters(word: str, weight: str) -> TextArea:
    look = {
        "fontsize": 6.5,
        "fontweight": weight,
        "parse_math": False,
        "color": "0.35" if weight == "normal" else "black",
    }
    return TextArea(word, textprops=look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"record and score again with {MODEL} first")
    if parser.parse_args().record:
        record()
    elif not (DATA / "readme.json").exists():
        sys.exit(f"{DATA} holds no record yet; run: python figures/readme.py --record")
    matplotlib.use("Agg")
    for path in draw():
        print(path)


if __name__ == "__main__":
    main()
