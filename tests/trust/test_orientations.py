"""R13: a picture in any of the eight orientations that EXIF knows is one picture: one record, one score."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import probe
from probe.evaluation.examples import Example, ExamplePhrase
from probe.runs import score_examples
from probe.tiny import tiny_model
from tests.tiny import tiny_llava

ANSWER = "a red ball"
#: What a camera stores when its picture has to be turned by this much to be upright (EXIF 2.32, table 6).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}
FORMATS = {"png": {}, "tiff": {}, "webp": {"lossless": True}}


def _picture(seed):
    """Random blocks, so that no turn of it is another; and a mask of one corner."""
    chance = np.random.default_rng(seed)
    height, width = (int(one) for one in chance.integers(20, 90, 2))
    blocks = chance.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
    pixels = np.kron(blocks, np.ones((5, 5, 1), np.uint8))[:height, :width]
    mask = np.zeros((height, width), bool)
    mask[: height // 2, : width // 3] = True
    return pixels, mask


def _file(folder, pixels, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"{orientation}.{kind}"
    Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels))).save(path, exif=exif, **FORMATS[kind])
    return path


def _scores(subject, path, mask):
    phrase = ExamplePhrase("red ball", 2, 10, mask)
    found = score_examples(subject, [Example(path.name, path, ANSWER, (phrase,))], metric=("auroc", "pointing"))
    return found.to_frame().to_csv()


@pytest.mark.promises("R13")
@pytest.mark.parametrize("preparation", ["crop", "pad", "squash"])
def test_eight_orientations_have_one_score(preparation, line, full, tmp_path):
    alike, subject = line("R13", target="0 of 8 orientations score otherwise"), tiny_llava(preparation=preparation)
    for seed in range(8 if full else 1):
        pixels, mask = _picture(seed)
        plain = io.BytesIO()
        Image.fromarray(pixels).save(plain, "png")
        upright = probe.run(subject, Image.open(plain), "Describe the image.", answer=ANSWER).record
        kind = list(FORMATS)[seed % 3]
        scores = {}
        for orientation in STORED:
            path = _file(tmp_path, pixels, orientation, kind)
            record = probe.run(subject, path, "Describe the image.", answer=ANSWER).record
            same = record.image_size == mask.shape and bool((record.stack() == upright.stack()).all())
            alike.trial(same, silent=True, what=f"{kind} {orientation}: another record")
            scores[orientation] = _scores(subject, path, mask)
            alike.trial(scores[orientation] == scores[1], silent=True, what=f"{kind} {orientation}: another score")
        turned = probe.run(subject, pixels[:, ::-1].copy(), "Describe the image.", answer=ANSWER).record
        assert not bool((turned.stack() == upright.stack()).all()), "a turn must show, or nothing could be found"
    alike.settle()


@pytest.mark.promises("R13")
@pytest.mark.parametrize("name", ["qwen2_vl", "internvl", "pixtral", "llava_next", "mllama", "gemma3"])
def test_eight_orientations_have_one_record_in_families_of_other_shapes(name, line, full, tmp_path):
    alike, subject = line("R13", target="0 of 8 orientations score otherwise"), tiny_model(name)
    pixels, mask = _picture(len(name))
    upright = probe.run(subject, pixels, "a dog", answer=ANSWER).record
    for orientation in STORED if full else (3, 6, 7):
        record = probe.run(subject, _file(tmp_path, pixels, orientation, "png"), "a dog", answer=ANSWER).record
        same = record.image_size == mask.shape and all(
            one.grid.row_edges == other.grid.row_edges and bool((one.values == other.values).all())
            for one, other in zip(record.layers, upright.layers, strict=True)
        )
        alike.trial(same, silent=True, what=f"{name} {orientation}")
    alike.settle()
