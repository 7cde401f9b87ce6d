"""The protocols' own files, read the way the published scorers read them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from probe.errors import InputError
from probe.evaluation.point_accuracy import PointAccuracy
from probe.evaluation.protocol_files import (
    write_coco_results,
    write_coco_truths,
    write_gcg_predictions,
    write_gcg_truths,
)
from probe.evaluation.tallies import score_predictions
from tests.evaluation.scored import CATEGORIES, dense, prediction, random_pairs, truth

MASK = np.eye(12, 16, dtype=bool)
IDS = {name: number for number, name in enumerate(CATEGORIES, start=5)}


def test_the_published_point_accuracy_of_the_files_is_ours(tmp_path):
    pairs = random_pairs(4, 30)
    for _, found in pairs:  # the published scorer needs a point for each
        for one in found.phrases:
            object.__setattr__(one, "point", one.point or (0, 0))
    truths, predictions = zip(*pairs, strict=True)
    write_coco_truths(tmp_path / "truths.json", truths, categories=IDS)
    write_coco_results(tmp_path / "results.json", truths, predictions, categories=IDS)
    true, found = (json.loads((tmp_path / name).read_text()) for name in ("truths.json", "results.json"))
    inside = {}
    for one in true["annotations"]:
        key = one["image_id"], one["category_id"]
        inside[key] = inside.get(key, 0) | coco_mask.decode(one["segmentation"])
    hits = [inside[one["image_id"], one["category_id"]][one["point"][1], one["point"][0]] for one in found]
    assert len(hits) > 20
    assert np.mean(hits) == pytest.approx(score_predictions(PointAccuracy(), truths, predictions).value("PAcc"))


def test_the_files_of_grounded_conversations(tmp_path):
    truths, predictions = zip(*random_pairs(0, 6), strict=True)
    write_gcg_truths(tmp_path / "masks.json", tmp_path / "captions.json", truths)
    assert write_gcg_predictions(tmp_path, predictions) == 6
    masks, captions = (json.loads((tmp_path / name).read_text()) for name in ("masks.json", "captions.json"))
    assert [one["id"] for one in captions["images"]] == [int(one.name) for one in truths]
    for true, found, text in zip(truths, predictions, captions["annotations"], strict=True):
        # As GLaMM's scorer: first as if the file held one more level, and then as it is.
        content = json.loads((tmp_path / f"{text['image_id']}.json").read_text())
        with pytest.raises(TypeError):
            content[next(iter(content))]["caption"]
        assert content["phrases"] == [one.text for one in found.phrases]
        for one, mask in zip(content["pred_masks"], dense(found.phrases), strict=True):
            assert (coco_mask.decode(one) == mask).all()
        assert (text["caption"], text["labels"]) == (true.text, [one.text for one in true.phrases])
        own = [one for one in masks["annotations"] if one["image_id"] == int(true.name)]
        assert {one["category_id"] for one in own} <= {1}
        assert [one["area"] for one in own] == [int(mask.sum()) for mask in dense(true.phrases)]
    numbers = [one["id"] for one in masks["annotations"]]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", ["a/b", "..\\b", "c:b"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be the name of a file"):
        write_gcg_predictions(tmp_path, [prediction(name, [])])
    assert not list(tmp_path.iterdir())


def test_what_has_no_id_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "results.json"
    one, found = truth("scene", [MASK], ["dog"], categories=["dog"]), prediction("scene", [MASK], ["dog"])
    with pytest.raises(InputError, match="example 'scene' has no id; give image_ids"):
        write_coco_results(path, [one], [found], categories=IDS)
    with pytest.raises(InputError, match="the category 'dog' has no id"):
        write_coco_results(path, [one], [found], categories={}, image_ids={"scene": 3})
    assert not list(tmp_path.iterdir())
    assert write_coco_results(path, [one], [found], categories=IDS, image_ids={"scene": 3}) == 1
    [result] = json.loads(path.read_text())
    assert result == {"image_id": 3, "category_id": IDS["dog"], "segmentation": found.phrases[0].mask, "score": 1.0}
    assert write_coco_results(path, [one], [], categories=IDS, image_ids={"scene": 3}) == 0
    assert json.loads(path.read_text()) == []
