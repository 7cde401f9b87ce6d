"""The script that draws how grounding emerges, on the tables that lie beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).parents[2] / "figures" / "emergence.py"


def load_script():
    spec = importlib.util.spec_from_file_location("emergence_figure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_runs_draw_the_same_bytes_and_the_note_says_what_the_table_says(tmp_path):
    script = load_script()
    first = [path.read_bytes() for path in script.draw(out=tmp_path / "first")]
    assert first == [path.read_bytes() for path in script.draw(out=tmp_path / "again")]
    order = pd.read_csv(script.DATA / "emergence-order.csv")
    row = order[(order["score"] == "minus_mean") & (order["loss"] == "caption_loss") & (order["share"] == 0.5)].iloc[0]
    said = script.note({"model": "lab/llava", "scenes": 500}, order)
    assert f"50% of its way {row['lag']:.0f} [{row['lag_low']:.0f}, {row['lag_high']:.0f}] steps" in said
