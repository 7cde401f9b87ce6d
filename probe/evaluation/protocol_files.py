"""Predictions and truths in the files that the protocols' own published scorers read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pycocotools import mask as coco_mask

from probe.errors import InputError
from probe.evaluation.average_precision import all_numbers
from probe.evaluation.categories import CategoryRule, named_category
from probe.evaluation.predictions import Prediction
from probe.evaluation.run_lengths import RunLengths, area
from probe.evaluation.tallies import phrase_score
from probe.evaluation.truths import Truth, pair
from probe.writing import write_beside

__all__ = ["write_coco_results", "write_coco_truths", "write_gcg_predictions", "write_gcg_truths"]


def write_gcg_predictions(folder: Path | str, predictions: Iterable[Prediction]) -> int:
    """How many files were written: NAME.json for each picture, as GLaMM's scorer reads them.

    Each has "image_id", "caption", "phrases" (words) and "pred_masks" (run lengths), in the same order.

    Raises
    ------
    InputError
        If a name cannot be a file's name, or stands twice.
    FileError
        If a file cannot be written.
    """
    names: set[str] = set()
    for one in predictions:
        if one.name in names:
            raise InputError(f"prediction {one.name!r} is there twice; give one prediction for each example")
        if any(pure.name != one.name for pure in (PurePosixPath(one.name), PureWindowsPath(one.name))):
            raise InputError(
                f"the name {one.name!r} cannot be the name of a file, which is what the published scorer reads"
            )
        names.add(one.name)
        content = {
            "image_id": one.name,
            "caption": one.text,
            "phrases": [part.text for part in one.phrases],
            "pred_masks": [part.mask for part in one.phrases],
        }
        write_beside(Path(folder) / f"{one.name}.json", _writer(json.dumps(content)))
    return len(names)


def write_gcg_truths(masks: Path | str, captions: Path | str, truths: Iterable[Truth]) -> None:
    """Nothing; the two files of truths that GLaMM's scorer reads are written, pictures under their names, as numbers if all are.

    Raises
    ------
    FileError
        If a file cannot be written.
    """
    given = list(truths)
    numbers = all_numbers([one.name for one in given])
    ids: list[int | str] = [int(one.name) if numbers else one.name for one in given]
    content = _coco(list(zip(given, ids, strict=True)), {"": 1}, lambda category: "")
    texts = [
        {"id": number, "image_id": image, "caption": one.text, "labels": [part.text for part in one.phrases]}
        for number, (one, image) in enumerate(zip(given, ids, strict=True), start=1)
    ]
    write_beside(Path(masks), _writer(json.dumps(content)))
    write_beside(Path(captions), _writer(json.dumps({"images": content["images"], "annotations": texts})))


def write_coco_truths(
    path: Path | str,
    truths: Iterable[Truth],
    *,
    categories: Mapping[str, int],
    image_ids: Mapping[str, int] | None = None,
) -> None:
    """Nothing; the file then has the truths as COCO instances, each true phrase with a category being one.

    Parameters
    ----------
    categories : name -> id.
    image_ids : name of an example -> id of its picture; by default the name itself has to be a number.

    Raises
    ------
    InputError
        If a category or picture has no id.
    FileError
        If the file cannot be written.
    """
    numbered = [(one, _image_id(one.name, image_ids)) for one in truths]
    write_beside(Path(path), _writer(json.dumps(_coco(numbered, categories, lambda category: category))))


def write_coco_results(
    path: Path | str,
    truths: Iterable[Truth],
    predictions: Iterable[Prediction],
    *,
    categories: Mapping[str, int],
    image_ids: Mapping[str, int] | None = None,
    rule: CategoryRule | None = None,
) -> int:
    """How many masks were written: a list of COCO results, each also with its "point" [column, row] where it has one.

    COCOeval reads it against the file of ``write_coco_truths`` or COCO's own instances, and so does the paper's point accuracy,
    which needs a point and a true category for each. The rule says which phrases count, as in ``PointAccuracy``.

    Raises
    ------
    InputError
        If truths and predictions do not fit, or a category or picture has no id.
    FileError
        If the file cannot be written.
    """
    chosen = rule or named_category()
    count = 0

    def write(beside: Path) -> None:
        nonlocal count
        with beside.open("w", encoding="ascii") as file:
            file.write("[")
            for truth, prediction in pair(truths, predictions, missing="miss"):
                names = list(dict.fromkeys(one.category for one in truth.phrases if one.category))
                for result in _results(prediction, names, chosen) if prediction else ():
                    result["image_id"] = _image_id(truth.name, image_ids)
                    result["category_id"] = _category_id(result["category_id"], categories)
                    file.write((",\n" if count else "\n") + json.dumps(result))
                    count += 1
            file.write("\n]\n")

    write_beside(Path(path), write)
    return count


def _results(prediction: Prediction, names: list[str], rule: CategoryRule) -> Iterator[dict[str, Any]]:
    for one in prediction.phrases:
        category = rule(one, names)
        if category is None:
            continue
        result: dict[str, Any] = {
            "image_id": 0,
            "category_id": category,
            "segmentation": one.mask,
            "score": phrase_score(one),
        }
        if one.point is not None:
            result["point"] = [one.point[1], one.point[0]]  # x and y there
        yield result


def _coco(
    truths: list[tuple[Truth, Any]], categories: Mapping[str, int], name_of: Callable[[str], str]
) -> dict[str, list[dict[str, Any]]]:
    annotations = [
        {"image_id": number, "category_id": _category_id(name_of(part.category), categories), **_region(part.mask)}
        for one, number in truths
        for part in one.phrases
        if part.category or "" in categories
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number  # from 1: COCOeval takes a match with 0 for none
    return {
        "images": [{"id": number, "height": one.size[0], "width": one.size[1]} for one, number in truths],
        "annotations": annotations,
        "categories": [{"id": number, "name": name or "object"} for name, number in categories.items()],
    }


def _region(mask: RunLengths) -> dict[str, Any]:
    box = [float(one) for one in coco_mask.toBbox(mask)]
    return {"segmentation": mask, "area": area(mask), "bbox": box, "iscrowd": 0}


def _category_id(name: str, categories: Mapping[str, int]) -> int:
    if name not in categories:
        raise InputError(f"the category {name!r} has no id; give one for each category, name -> id")
    return categories[name]


def _image_id(name: str, image_ids: Mapping[str, int] | None) -> int:
    if image_ids is not None and name in image_ids:
        return image_ids[name]
    if image_ids is None and name.isascii() and name.isdecimal():
        return int(name)
    raise InputError(
        f"the picture of example {name!r} has no id; give image_ids, name -> id, with one for each example"
    )


def _writer(text: str) -> Callable[[Path], object]:
    return lambda beside: beside.write_text(text + "\n", encoding="ascii")
