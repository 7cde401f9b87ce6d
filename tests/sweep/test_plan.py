"""Plans: what is refused and how, one spelling, the ablations that they name, and YAML there and back."""

from __future__ import annotations

import pytest
import yaml

from probe.capture.ablation import WAYS
from probe.errors import FileError, InputError
from probe.sweep.ablations import CUT, Ablation
from probe.sweep.engine import EFFECTS, Engine
from probe.sweep.plan import SweepPlan, parse_numbers, read_plan


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": ""}, "model must be a text that is not empty"),
        ({"limit": 0}, "limit must be a whole number of 1 or more, found 0"),
        ({"limit": True}, "limit must be a whole number"),
        ({"chunk": 1.5}, "chunk must be a whole number"),
        ({"kinds": "haeds"}, "there is no 'haeds'.*Did you mean 'heads'"),
        ({"kinds": ""}, "kinds is empty"),
        ({"how": "means"}, "there is no 'means'.*Did you mean 'mean'"),
        ({"how": ""}, "how is empty"),
        ({"effects": "aurocs"}, "there is no 'aurocs'.*Did you mean 'auroc'"),
        ({"kinds": "edges"}, "needs edges"),
        ({"kinds": "edges", "edges": "answer to imgae"}, "Did you mean 'answer to image'"),
        ({"edges": "answer to image"}, "is for kinds 'edges'"),
        ({"reference": "lab"}, "reference is for how=mean"),
        ({"layers": "3-1"}, "'3-1' is no number or range"),
        ({"layers": "1, 0-2"}, "names 1 twice"),
        ({"heads": ""}, "is no number or range"),
        ({"heads": -1}, "is no number or range"),
        ({"heads": 1.0}, "takes names or numbers"),
    ],
)
def test_impossible_plans_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        SweepPlan(**wrong)


def test_lists_have_one_spelling():
    assert SweepPlan(layers=[3, 1, 2, 0], how=["mean", "zero"]) == SweepPlan(layers="0 - 3", how="mean,zero , mean")
    assert SweepPlan(heads="7,0-1, 3").heads == "0-1, 3, 7"
    assert parse_numbers("heads", "0-1, 3") == [0, 1, 3]
    assert parse_numbers("heads", "all") is None


def test_a_plan_names_its_ablations_in_order():
    plan = SweepPlan(kinds="heads, layers, head edges", layers="1-2", heads=0, how="zero, mean", edges="text to image")
    wanted = [Ablation("head", layer, 0, how=how) for how in ("zero", "mean") for layer in (1, 2)]
    wanted += [Ablation("layer", layer, how=how) for how in ("zero", "mean") for layer in (1, 2)]
    wanted += [Ablation("edge", layer, 0, "text to image", CUT) for layer in (1, 2)]
    assert plan.ablations(layers=3, heads=4) == wanted
    assert len(SweepPlan().ablations(layers=32, heads=32)) == 1024
    assert set(SweepPlan(how=list(WAYS)).names("how")) == set(WAYS)


def test_what_the_model_has_not_is_refused():
    for wrong, message in (
        ({"layers": 4}, "layers='4' asks for 4: lab/llava has layers 0 to 3"),
        ({"heads": "0-9"}, "9"),
    ):
        with pytest.raises(InputError, match=message):
            SweepPlan(**wrong).ablations(layers=4, heads=8)


def test_yaml_gives_the_plan_back(tmp_path):
    plan = SweepPlan(model="a/b", kinds="edges", edges="answer to image", prompt='Où: "là"\n#?', limit=3, layers="0-2")
    (tmp_path / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    assert read_plan(tmp_path / "plan.yaml") == plan
    (tmp_path / "lists.yaml").write_text("layers: 2\nhow: [zero, mean]\nheads: [1, 4-5]\n")
    assert read_plan(tmp_path / "lists.yaml") == SweepPlan(layers="2", how="zero, mean", heads="1, 4-5")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("layer: 2", InputError, "'layer', which does not exist. Did you mean 'layers'"),
        ("limit: many", InputError, "limit must be a whole number"),
        ("- a", FileError, "is not a plan"),
        ("a: [", FileError, "cannot be read"),
        ("!!python/object/apply:os.getcwd []", FileError, "cannot be read"),
        (b"\xff\xfe\x00", FileError, "cannot be read"),
    ],
)
def test_malformed_files_are_refused(tmp_path, text, kind, message):
    path = tmp_path / "plan.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(kind, match=message):
        read_plan(path)
    with pytest.raises(FileError, match="cannot be read"):
        read_plan(tmp_path / "absent.yaml")


def test_the_columns_are_those_of_the_engine():
    from probe import load_model

    plan = SweepPlan(effects=list(EFFECTS))
    engine = Engine(load_model("lab/llava"), [Ablation("head", 0, 0)], plan.names("effects"))
    assert plan.columns() == ["position", *engine.columns, "error"]


def test_every_field_but_how_the_work_is_done_is_of_the_identity():
    settings = yaml.safe_load(SweepPlan().to_yaml())
    assert set(settings) - set(SweepPlan().identity()) == {"batch", "device"}
