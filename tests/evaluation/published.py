"""The smallest folder of each published format: one picture of 4 x 6 pixels (height x width), a dog and the sky."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Files = dict[str, Any]

DOG = np.zeros((4, 6), bool)
DOG[1:4, 0:2] = True
SKY = np.zeros((4, 6), bool)
SKY[0, 1:5] = True
CAPTION = "A dog under the sky."


def runs(mask: np.ndarray) -> dict[str, Any]:
    """The mask as COCO's uncompressed run lengths: down the columns, the first run outside."""
    counts = [len(list(run)) for _, run in groupby(mask.T.ravel().tolist())]
    return {"size": list(mask.shape), "counts": ([0] if mask[0, 0] else []) + counts}


def colours(**ids: np.ndarray) -> np.ndarray:
    """A panoptic map (height, width, 3): ``colours(s70000=SKY)`` has segment 70000 where the sky is."""
    levels = np.zeros((4, 6, 3), np.uint8)
    for name, mask in ids.items():
        number = int(name[1:])
        levels[mask] = (number % 256, number // 256 % 256, number // 65536)
    return levels


def image(**fields: Any) -> dict[str, Any]:
    return {"id": 5, "file_name": "five.png", "height": 4, "width": 6, **fields}


def panoptic() -> dict[str, Any]:
    return {
        "images": [image()],
        "categories": [{"id": 1, "name": "dog", "isthing": 1}, {"id": 2, "name": "sky-other", "isthing": 0}],
        "annotations": [
            {
                "image_id": 5,
                "file_name": "five.png",
                "segments_info": [{"id": 300, "category_id": 1}, {"id": 70000, "category_id": 2}],
            }
        ],
    }


def panoptic_files() -> Files:
    return {
        "panoptic.json": panoptic(),
        "panoptic/five.png": colours(s300=DOG, s70000=SKY),
        "images/five.png": PHOTO,
    }


def captions_files() -> Files:
    texts = [CAPTION, "The dog is outside."]
    rows = [{"id": number, "image_id": 5, "caption": text} for number, text in enumerate(texts)]
    return {"captions.json": {"images": [image()], "annotations": rows}, "images/five.png": PHOTO}


def refcoco_files() -> Files:
    annotations = [{"id": 10, "image_id": 5, "category_id": 1, "segmentation": runs(DOG)}]
    instances = {"images": [image()], "categories": [{"id": 1, "name": "dog"}], "annotations": annotations}
    refs = [
        {
            "ref_id": 1,
            "ann_id": 10,
            "image_id": 5,
            "category_id": 1,
            "split": "testA",
            "sentences": [{"sent_id": 7, "sent": "the left dog"}, {"sent_id": 8, "sent": "brown one"}],
        }
    ]
    return {"instances.json": instances, "refs(unc).json": refs, "images/train2014/five.png": PHOTO}


def png_files() -> Files:
    pieces = [
        ("a", [], False),
        ("dog", ["300"], False),
        ("under the", [], False),
        ("sky", ["70000"], False),
        (".", [], False),
    ]
    segments = [
        {"utterance": text, "segment_ids": ids, "noun": bool(ids), "plural": plural} for text, ids, plural in pieces
    ]
    return {
        "annotations/png_coco_val2017.json": [{"image_id": "5", "caption": CAPTION, "segments": segments}],
        "annotations/panoptic_val2017.json": panoptic(),
        "annotations/panoptic_segmentation/val2017/five.png": colours(s300=DOG, s70000=SKY),
        "images/val2017/five.png": PHOTO,
    }


def grandf_files() -> Files:
    """The pair that GLaMM is evaluated with."""
    caption = {"id": 1, "image_id": "five", "caption": CAPTION, "labels": ["a dog", "the sky"]}
    masks = [
        {"id": number, "image_id": "five", "category_id": 1, "segmentation": runs(mask)}
        for number, mask in enumerate((DOG, SKY))
    ]
    images = [{"id": "five"}]
    return {
        "annotations/val_test/val_gcg_coco_caption_gt.json": {"images": images, "annotations": [caption]},
        "annotations/val_test/val_gcg_coco_mask_gt.json": {"images": images, "annotations": masks},
        "GranDf_HA_images/val_test/five.png": PHOTO,
    }


def groundings_files() -> Files:
    groundings = {
        "the sky": {"token_positives": [12, 19], "rle_masks": [runs(SKY)]},
        "A dog": {"token_positives": [0, 5], "rle_masks": [runs(DOG), runs(SKY)]},
    }
    row = {"file_name": "five.png", "caption": f'"{CAPTION}"', "groundings": groundings}
    return {"annotations/train/OpenPsgGCG_val.json": [row], "coco_2017/train2017/five.png": PHOTO}


def refs_files() -> Files:
    refs = [
        {"sentence": "the sky", "segmentation": [[1, 0, 5, 0, 5, 1, 1, 1]]},
        {"sentence": "a dog", "segmentation": [[0, 1, 2, 1, 2, 4, 0, 4]]},
        {"sentence": "a cat", "segmentation": [[0, 1, 2, 1, 2, 4, 0, 4]]},
    ]
    row = {"img_file_name": "five.png", "caption": CAPTION, "refs": refs}
    return {"RefCOCOg_GCG_val.json": [{"five": row}], "images/five.png": PHOTO}


def flickr_files() -> Files:
    rows = [
        {"id": 1, "image_id": 5, "tokens_positive": [[12, 19]], "sam_mask": runs(SKY)},
        {"id": 2, "image_id": 5, "tokens_positive": [[0, 5], [12, 19]], "sam_mask": runs(DOG)},
        {"id": 3, "image_id": 5, "tokens_positive": [[0, 5]], "sam_mask": runs(DOG), "ignore": 1},
    ]
    table = {"images": [image(caption=CAPTION)], "annotations": rows}
    return {"flickr_mergedGT_GCG_val.json": table, "images/five.png": PHOTO}


PHOTO = np.zeros((4, 6, 3), np.uint8)

#: For each format a way to make its files.
PUBLISHED = {
    "panoptic": panoptic_files,
    "captions": captions_files,
    "refcoco": refcoco_files,
    "png": png_files,
    "grandf": grandf_files,
    "grandf groundings": groundings_files,
    "grandf refs": refs_files,
    "grandf flickr": flickr_files,
}


def write(folder: Path, files: Files) -> Path:
    """The folder with these files in it: arrays as PNG, texts as they are, everything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder
