"""`probe demo` on a few scenes: everything it promises is printed, and every file it names is there."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

import probe
from probe.commands import demonstration
from tests.tiny import tiny_llava

READINGS = ("mean_map", "minus_mean", "best_head_held_out", "best_layer_held_out")
CONTROLS = ("chance", "centre_prior", "object_size_prior", "shuffled", "other_phrase", "oracle_patch")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Exit code, both outputs and the folder of one run."""
    import contextlib
    import io

    from probe.cli import main

    out = tmp_path_factory.mktemp("demo") / "new"
    printed, noise = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(noise):
        code = main(["demo", "--scenes", "6", "--out", str(out), "--json"])
    return code, printed.getvalue(), noise.getvalue(), out


def test_one_line_of_json_says_what_is_promised(shown):
    code, printed, noise, _ = shown
    assert (code, noise) == (0, "")
    assert printed.count("\n") == 1
    assert "NaN" not in printed
    found = json.loads(printed)
    for metric in ("pointing", "auroc", "lift"):
        for name in (*READINGS, *CONTROLS):
            assert {"value", "low", "high"} <= set(found[metric][name]), (metric, name)
    for name in ("mean_map", "minus_mean", "chance", "oracle_patch"):
        one = found["pointing"][name]
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    assert found["images"] == 6
    assert found["phrases"] >= 12
    assert found["certificate"]["passed"] is True
    assert 0 <= found["certificate"]["max_error"] <= found["certificate"]["tolerance"]
    assert 0 < found["seconds"] < 600
    assert len(found["answers"]) == 3


def test_every_file_it_names_is_there_and_holds_the_same(shown):
    _, printed, _, out = shown
    found = json.loads(printed)
    assert len(found["figures"]) >= 4
    assert len(set(found["figures"])) == len(found["figures"])
    for one in found["figures"]:
        with Image.open(one) as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors(1 << 20) or ()) > 10  # it is not blank
    record = probe.load(found["record"])
    assert record.text == found["answers"][0]
    table = pd.read_csv(found["table"])
    for name in (*READINGS, *CONTROLS):
        row = table[(table["metric"] == "pointing") & (table["name"] == name)]
        assert len(row) == 1
        assert row["value"].iloc[0] == pytest.approx(found["pointing"][name]["value"])
    assert json.loads((out / "demo.json").read_text(encoding="utf-8")) == found
    assert not [one for one in out.iterdir() if one.name.startswith(".")]


@pytest.mark.filterwarnings("ignore:Glyph")  # a random model says letters that no font has
def test_a_model_that_names_nothing_right_is_drawn_all_the_same(monkeypatch, tmp_path):
    # As one that was trained for a few steps does; its first word may well come several times.
    monkeypatch.setattr(demonstration, "_LOOKED_AT", 1)
    monkeypatch.setattr(demonstration, "_DRAWN", 1)
    pictures, record, answers, looked_at = demonstration._draw_scenes(tiny_llava(seed=3), tmp_path, seed=0)
    assert [one.is_file() for one in pictures] == [True]
    assert answers == [record.text]
    assert looked_at == 1


def test_too_few_scenes_are_refused_before_anything_is_written(shell, tmp_path):
    code, printed, noise = shell("demo", "--scenes", 1, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert noise == "probe: --scenes must be 2 or more, found 1.\n"
    assert not (tmp_path / "out").exists()
