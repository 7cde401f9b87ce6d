"""`probe compare`, and the public function behind it, on the shipped models."""

from __future__ import annotations

import json
from itertools import combinations

import pandas as pd
import pytest

import probe
from probe.comparing import compare_examples
from probe.errors import InputError
from probe.evaluation.lab import read_lab
from probe.runs import score_examples
from tests.tiny import tiny_clip, tiny_llava

MODELS = ("lab/clip", "lab/diffusion", "lab/llava")
BOUNDS = {"value", "low", "high"}


@pytest.fixture(scope="module")
def found():
    return probe.compare(MODELS, limit=4)


def test_the_shell_prints_what_the_function_finds(shell, found, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = shell("compare", *MODELS, "--limit", 4, "--out", out, "--json")
    assert code == 0
    data = json.loads(printed)
    assert list(data["systems"]) == list(MODELS)
    (measured,) = data["seeds"]
    assert (measured["seed"], measured["source"]) == (0, "measured")
    assert {one["verdict"].split(";")[0] for one in data["agreement"]} == {
        f"no claim: too few trainings (1 of {first} and 1 of {second})" for first, second in combinations(MODELS, 2)
    }
    assert data["grids"] == [[8, 8]]
    for name, system in data["systems"].items():
        assert system["reading"] == found.systems[name].reading
        for metric in ("pointing", "auroc", "lift"):
            assert set(system[metric]) >= BOUNDS
            assert system[metric]["value"] == found.systems[name].scores[metric].value
            assert set(system["best_head_held_out"][metric]) >= {*BOUNDS, "layer", "head"}
            assert system["controls"][metric]["chance"]["value"] is not None
            assert system["controls"][metric]["floor"]["value"] is not None
    assert len(data["paired"]) == 9
    for one in data["paired"]:
        pair = found.difference(one["first"], one["second"], one["metric"])
        assert (one["value"], one["p_value"], one["p_holm"]) == (
            pair.difference.value,
            pair.p_value,
            pair.p_holm,
        )
    kept = json.loads((out / "comparison.json").read_text())
    assert {key: kept[key] for key in data} == data
    assert kept["settings"]["seed"] == 0
    heads = pd.read_parquet(out / "heads.parquet")
    assert set(heads["system"]) == set(MODELS)
    assert set(pd.read_parquet(out / "comparison.parquet")["kind"]) == {
        "reading",
        "own grid",
        "best head",
        "control",
        "difference",
    }


def test_readings_are_named_and_are_those_of_score_examples(found):
    words = {"lab/clip": "over texts", "lab/diffusion": "cross-attention at t=100", "lab/llava": "over the answer"}
    for name, said in words.items():
        assert said in found.systems[name].reading
    alone = score_examples(probe.load_model("lab/diffusion"), read_lab(limit=4))
    for metric in ("pointing", "auroc"):
        assert str(found.systems["lab/diffusion"].native(metric)) == str(alone.reading("minus_mean", metric))
    # The words around a phrase are nothing to CLIP, which embeds each phrase on its own.
    assert found.systems["lab/clip"].controls["auroc"]["paraphrase"].value == pytest.approx(0, abs=1e-5)
    assert found.systems["lab/llava"].controls["auroc"]["paraphrase"].value > 0


def test_the_tables_say_what_was_read_and_compared(shell):
    code, printed, _ = shell("compare", "lab/clip", "lab/llava", "--limit", 3, "--metric", "auroc")
    assert code == 0
    for words in ("contributions of patches", "answer tokens", "lab/clip - lab/llava", "p (Holm)", "8 x 8"):
        assert words in printed
    assert "pointing" not in printed


def test_without_other_words_only_a_language_model_has_a_floor():
    examples = list(read_lab(limit=2))
    subjects = [probe.load_model(one) for one in ("lab/clip", "lab/llava")]
    systems = compare_examples(subjects, examples, metric="auroc").systems
    assert systems["lab/clip"].controls["auroc"]["paraphrase"].phrases == 0
    assert systems["lab/llava"].controls["auroc"]["paraphrase"].phrases > 0


def test_bad_input_is_one_line(refused, tmp_path):
    assert "needs two models or more, found lab/clip" in refused("compare", "lab/clip")
    assert "'lab/clip' is given twice" in refused("compare", "lab/clip", "lab/clip")
    assert "MODELS" in refused("compare")
    assert "lift" in refused("compare", "lab/clip", "lab/llava", "--metric", "lif")
    assert "none of these is one" in refused("compare", "lab/clip", "lab/llava", "--timestep", 100)
    assert "lab/llava" in refused("compare", "lab/clip", "lab/lava")
    target = tmp_path / "file"
    target.write_text("x")
    assert "is a file" in refused("compare", "lab/clip", "lab/llava", "--out", target, writes=False)


def test_a_list_of_models_with_names_of_their_own_is_needed():
    with pytest.raises(InputError, match="needs a list of models"):
        probe.compare("lab/clip")
    with pytest.raises(InputError, match="There is no data set 'lab:clutered'"):
        probe.compare(MODELS, "lab:clutered")
    with pytest.raises(InputError, match="needs two models"):
        compare_examples([tiny_clip()], [])
    with pytest.raises(InputError, match="There is no image"):
        compare_examples([tiny_clip(), tiny_llava()], [])


def test_the_same_comparison_along_an_axis(shell, refused, tmp_path):
    out = tmp_path / "along"
    command = ("compare", "lab/clip", "lab/diffusion", "--limit", 2, "--metric", "auroc")
    code, printed, noise = shell(
        *command, "--over", "timestep", "--timestep", 100, "--timestep", 900, "--out", out, "--json"
    )
    assert (code, noise) == (0, "")
    data = json.loads(printed)
    readings = {(one["system"], one["at"]): one["value"] for one in data["series"] if one["kind"] == "reading"}
    assert set(readings) == {(name, step) for name in ("lab/clip", "lab/diffusion") for step in (100, 900)}
    # The comparison itself is at the usual timestep, whatever is read beside it.
    assert data["systems"]["lab/diffusion"]["auroc"]["value"] == readings["lab/diffusion", 100]
    assert len(pd.read_parquet(out / "series.parquet")) == len(data["series"])
    code, printed, _ = shell(*command, "--over", "draw", "--draws", 2)
    assert code == 0
    assert "auroc over draws" in printed
    assert "--draws must be 2 or more" in refused(*command, "--over", "draw", "--draws", 1)
    assert "no measurements of its training" in refused(*command, "--over", "training")
    assert "draw" in refused(*command, "--over", "draws")


def test_shipped_seeds_stand_beside_what_is_measured(shell):
    code, printed, _ = shell("compare", "lab/llava-clip", "lab/difflmm", "--limit", 2, "--over", "training", "--json")
    assert code == 0
    data = json.loads(printed)
    assert (data["seeds"][0]["seed"], data["seeds"][0]["source"]) == (0, "measured")
    assert {one["source"] for one in data["seeds"][1:]} == {"shipped"}
    assert len(data["seeds"]) >= 3
    assert {one["trainings"][0] for one in data["agreement"]} == {len(data["seeds"])}
    assert {one["seed"] for one in data["series"]} == {one["seed"] for one in data["seeds"]}
    code, printed, _ = shell("compare", "lab/llava-clip", "lab/difflmm", "--limit", 2)
    assert "what the trainings support" in printed
    assert "trainings by seed" in printed
