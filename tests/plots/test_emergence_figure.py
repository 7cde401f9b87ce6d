"""The script that draws how grounding emerges, on the tables that lie beside it."""

from __future__ import annotations

import pandas as pd

from tests.plots.scripts import DATA, load_script


def test_the_caption_says_what_the_tables_say() -> None:
    order, noise = (pd.read_csv(DATA / name) for name in ("emergence-order.csv", "encoders-timesteps.csv"))
    row = order[(order["score"] == "minus_mean") & (order["loss"] == "caption_loss") & (order["share"] == 0.5)].iloc[0]
    said = load_script("emergence").caption(DATA)
    assert f"50% of its way {row['lag']:.0f} [{row['lag_low']:.0f}, {row['lag_high']:.0f}] steps" in said
    assert f"({noise['images'][0]} scenes, {noise['phrases'][0]} phrases)" in said


def test_places_around_a_phrase_are_numbers() -> None:
    script = load_script("emergence")
    names = ["3 before", "1 before", "token 1", "last token", "2 after", "layer 0"]
    assert [script.shortened(one) for one in names] == [
        "\N{MINUS SIGN}3",
        "\N{MINUS SIGN}1",
        "1",
        "last",
        "+2",
        "layer 0",
    ]
