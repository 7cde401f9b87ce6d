"""Draws the README's picture, ``figures/readme.png`` and ``.pdf``, from a saved record and a saved table.

``python figures/readme.py`` draws and needs no model; with ``--measure`` it first records and scores again with lab/llava.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker
from PIL import Image

import probe
from probe.figure_scripts import run_script
from probe.plots.panels import heading, interval
from probe.plots.styles import DOUBLE_COLUMN
from probe.text import find_phrase

READS = ("readme-scores.csv", "readme.json", "readme.safetensors", "readme.png", "readme-masks.png")
MODEL, PROMPT = "lab/llava", "Describe the image."
#: The first test scene in which the model names at least two objects is drawn; heads are scored on so many test scenes.
SCENES = 200
READING: Literal["minus mean"] = "minus mean"  # of overlays and heads alike
MOST_PHRASES = 3


def measure(data: Path) -> None:
    """Writes everything that ``draw`` reads: image, masks, record, what was asked, and the table of scores."""
    from probe.evaluation.lab import read_lab
    from probe.lab.scenes import scene
    from probe.runs import score_examples

    subject = probe.load_model(MODEL)
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


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "readme.json").read_text(encoding="utf-8"))
    kept = probe.load(data / "readme.safetensors")
    image = probe.read_image(data / "readme.png")
    levels = np.asarray(Image.open(data / "readme-masks.png"))
    wanted = facts["phrases"][:MOST_PHRASES]
    masks = [levels == level for level in range(1, len(wanted) + 1)]
    scores = pd.read_csv(data / "readme-scores.csv")
    with probe.plots.style():
        heights = DOUBLE_COLUMN / (1 + len(wanted)) + 1.13, 2.6  # square images, and what is written around them
        figure = probe.plots.new_figure((sum(heights), DOUBLE_COLUMN))
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
        probe.plots.heads(scores, ax=left, intervals=False)
        left.set_title(left.get_title().replace(":", f" ({READING}):", 1))  # which the table alone does not say
        probe.plots.readings(scores, ax=right)
        return probe.plots.save_figure(figure, out)


def caption(data: Path) -> str:
    """What is drawn, of whom and how many, and what proves the record."""
    facts = json.loads((data / "readme.json").read_text(encoding="utf-8"))
    kept, scores = probe.load(data / "readme.safetensors"), pd.read_csv(data / "readme-scores.csv")
    named = scores.drop_duplicates("name").set_index("name")
    heads = scores[scores["kind"] == "head"]
    widest = max((heads["high"] - heads["value"]).max(), (heads["value"] - heads["low"]).max())
    proof, source = kept.certificate, kept.source
    return (
        f"Where {facts['model']} looks while it describes scene {facts['scene']} of the test split in its own words: attention "
        "to the phrases that are exactly right, minus the mean over the answer (Eq. 3); outlines are the true masks, which it "
        f"never saw. Below, how well each head points, with attention read in the same way, on {int(named['images'].max())} "
        f"unseen scenes ({int(named['phrases'].max())} phrases): all heads together {interval(named.loc['minus_mean'])}, without "
        f"Eq. 3 {interval(named.loc['mean_map'])}, the best head, held out, {interval(named.loc['best_head_held_out'])}. "
        f"Intervals of 95 % by bootstrap over scenes, those of single heads no further than {widest:.2f} either way. Recorded "
        f"from {source.kernel} attention in {source.dtype}; largest error {proof.max_error:.0e} of the output in {proof.rows} "
        "checked rows."
    )


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


if __name__ == "__main__":
    run_script(__file__)
