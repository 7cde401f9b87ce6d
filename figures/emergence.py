"""Draws ``figures/emergence.png`` and ``.pdf``: how grounding emerges over training, layers and words, from saved tables.

``python figures/emergence.py`` draws and needs no model; with ``--record`` it first measures lab/llava's checkpoints again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import pandas as pd

import probe

HERE = Path(__file__).parent
DATA = HERE / "data"
MODEL = "lab/llava"
SCENES = 500
WIDTH = 6.9  # inches: both columns of a paper
PARTS = ("training", "layer", "token")


def record(data: Path = DATA, *, scenes: int = SCENES) -> None:
    """Writes everything that ``draw`` reads: a table for each part, and when each curve has gone half of its way."""
    from probe.checkpoints import lab_checkpoints
    from probe.evaluation.lab import read_lab, reword_scene
    from probe.runs import profile_examples
    from probe.training_curves import emergence

    data.mkdir(parents=True, exist_ok=True)
    curve = emergence(lab_checkpoints(MODEL), read_lab(limit=scenes), reword=reword_scene)
    tables = {"training": curve.to_frame()}
    subject = probe.load_model(MODEL)
    for over in ("layer", "token"):
        tables[over] = profile_examples(subject, read_lab(limit=scenes), over=over).to_frame()  # type: ignore[arg-type]
    for name, table in tables.items():
        table.to_csv(data / f"emergence-{name}.csv", index=False, lineterminator="\n")
    pd.DataFrame(curve.order_rows()).to_csv(data / "emergence-order.csv", index=False, lineterminator="\n")
    facts = {"model": MODEL, "scenes": scenes, "beats_floor_from": curve.beats_floor_from}
    (data / "emergence.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def draw(data: Path = DATA, out: Path = HERE / "emergence") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "emergence.json").read_text(encoding="utf-8"))
    order = pd.read_csv(data / "emergence-order.csv")
    heights = (2.7, 2.3, 2.3)
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(heights), WIDTH))
        axes = figure.subplots(len(PARTS), 1, height_ratios=heights)
        for ax, name, letter in zip(axes, PARTS, "abc", strict=True):
            probe.plots.emergence(pd.read_csv(data / f"emergence-{name}.csv"), ax=ax)
            ax.set_title(f"{letter}  {ax.get_title()}", loc="left", fontsize=8)
            ax.set_title("")
        figure.supxlabel(note(facts, order), fontsize=6, color="0.4", parse_math=False)
        return probe.plots.save_figure(figure, out)


def note(facts: dict, order: pd.DataFrame) -> str:
    """What stands below the picture: who, how many, and which came first."""
    lines = [
        f"{facts['model']}, {facts['scenes']} scenes of the test split; one training run, so intervals are over images alone"
    ]
    for _, row in order[(order["score"] == "minus_mean") & (order["loss"] == "caption_loss")].iterrows():
        lag = f"{row['lag']:.0f} [{row['lag_low']:.0f}, {row['lag_high']:.0f}]"
        lines.append(
            f"grounding (minus mean) has gone {row['share']:.0%} of its way {lag} steps after the caption loss: {row['order']}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"measure {MODEL}'s checkpoints again first")
    if parser.parse_args().record:
        record()
    elif not (DATA / "emergence.json").exists():
        sys.exit(f"{DATA} holds no tables yet; run: python figures/emergence.py --record")
    matplotlib.use("Agg")
    for path in draw():
        print(path)


if __name__ == "__main__":
    main()
