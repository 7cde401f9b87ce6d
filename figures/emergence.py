"""Draws ``figures/emergence.png`` and ``.pdf``: how grounding emerges over training, layers, words and noise, from saved tables.

``python figures/emergence.py`` draws and needs no model; with ``--measure`` it first measures lab/llava's checkpoints again. The
table over timesteps is that of lab/diffusion, which ``python figures/encoders.py --measure`` makes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.figure_scripts import run_script
from probe.plots.styles import DOUBLE_COLUMN

MODEL = "lab/llava"
SCENES = 500
#: What grounding emerges over -> its table, in the order of the panels.
TABLES = {
    "training": "emergence-training.csv",
    "layer": "emergence-layer.csv",
    "token": "emergence-token.csv",
    "timestep": "encoders-timesteps.csv",
}
READS = (*TABLES.values(), "emergence-order.csv", "emergence.json")
HEIGHT = 5.6  # inches


def measure(data: Path, *, scenes: int = SCENES) -> None:
    """Writes the tables of lab/llava, and when each curve has gone half of its way."""
    from probe.checkpoints import lab_checkpoints
    from probe.evaluation.lab import read_lab, reword_scene
    from probe.runs import profile_examples
    from probe.training_curves import emergence

    curve = emergence(lab_checkpoints(MODEL), read_lab(limit=scenes), reword=reword_scene)
    tables = {"training": curve.to_frame()}
    subject = probe.load_model(MODEL)
    for over in ("layer", "token"):
        tables[over] = profile_examples(subject, read_lab(limit=scenes), over=over).to_frame()  # type: ignore[arg-type]
    for name, table in tables.items():
        table.to_csv(data / TABLES[name], index=False, lineterminator="\n")
    pd.DataFrame(curve.order_rows()).to_csv(data / "emergence-order.csv", index=False, lineterminator="\n")
    facts = {"model": MODEL, "scenes": scenes, "beats_floor_from": curve.beats_floor_from}
    (data / "emergence.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    with probe.plots.style():
        figure = probe.plots.new_figure((HEIGHT, DOUBLE_COLUMN))
        axes = figure.subplots(2, 2)
        for ax, (over, table), letter in zip(axes.flat, TABLES.items(), "abcd", strict=True):
            draw_panel(ax, pd.read_csv(data / table), f"{letter}  over {over if over == 'training' else over + 's'}")
        return probe.plots.save_figure(figure, out)


def draw_panel(ax: Axes, table: pd.DataFrame, title: str) -> None:
    """Draws one table under a title with its letter."""
    if "label" in table:
        table = table.assign(label=table["label"].map(shortened))
    probe.plots.emergence(table, ax=ax)
    ax.set_title(title, loc="left", fontsize=8, fontweight="bold")
    ax.set_title("")


def shortened(label: str) -> str:
    """A place around a phrase as a number: "-3" of "3 before", "1" of "token 1"; any other label as it is."""
    for word, sign in (("before", "\N{MINUS SIGN}"), ("after", "+"), ("token", "")):
        if word in label.split():
            return sign + label.replace(word, "").strip()
    return label


def caption(data: Path) -> str:
    """Who, how many, and which came first."""
    facts = json.loads((data / "emergence.json").read_text(encoding="utf-8"))
    order, noise = pd.read_csv(data / "emergence-order.csv"), pd.read_csv(data / TABLES["timestep"])
    parts = [
        f"How grounding emerges: pointing of {facts['model']} on {facts['scenes']} unseen scenes (a) while it is trained, beside "
        "its caption loss, (b) over its layers and (c) over the words around a phrase; and (d) of lab/diffusion's text "
        f"cross-attention over timesteps, from hardly any noise to hardly any image ({int(noise['images'].max())} scenes, "
        f"{int(noise['phrases'].max())} phrases). Bands and bars: 95 % intervals by bootstrap over scenes; one training run of "
        "each model, so they say nothing of other trainings. Filled marks beat both chance and their floor, what the same map "
        "scores on other phrases' masks."
    ]
    for _, row in order[(order["score"] == "minus_mean") & (order["loss"] == "caption_loss")].iterrows():
        lag = f"{row['lag']:.0f} [{row['lag_low']:.0f}, {row['lag_high']:.0f}]"
        parts.append(
            f"Grounding (minus mean) has gone {row['share']:.0%} of its way {lag} steps after the caption loss."
        )
    return " ".join(parts)


if __name__ == "__main__":
    run_script(__file__)
