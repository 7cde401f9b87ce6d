"""Attend-and-segment: Eq. 3 in both reductions, points and masks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import probe
from probe.errors import InputError
from probe.grounding.phrases import noun_phrases
from probe.grounding.refiners import ThresholdRefiner
from probe.grounding.segment import attend_and_segment, bicubic_point, patch_point, token_maps
from probe.layout import PatchGrid
from tests.records import make_grid, make_record

IMAGE = Image.new("RGB", (32, 32), "grey")
PHRASE = "red circle"  # tokens 1 and 2
#: Padded above and below: parts of the second and fourth patch row, and all of what lies beyond, are no image.
PADDED = PatchGrid((16, 32), (-16.0, -8.0, 4.0, 12.0, 24.0, 32.0), (0.0, 8.0, 16.0, 24.0, 32.0), 8)


def _pictured(record):
    height, width = record.image_size
    return Image.new("RGB", (width, height), "grey")


def _only(record, **options):
    [one] = attend_and_segment(record, _pictured(record), phrases=[PHRASE], **options).phrases
    return one


@pytest.mark.parametrize(("combine", "line"), [("mean", np.mean), ("max", np.max), ("first", lambda m, axis: m[0])])
def test_how_the_maps_of_several_tokens_become_one(combine, line):
    record = make_record()
    maps = token_maps(record)[0].numpy()
    assert np.array_equal(_only(record, combine=combine).map.numpy(), line(maps[1:3], axis=0))


def test_a_phrase_of_one_token_keeps_its_map():
    record = make_record()
    whole = attend_and_segment(record, IMAGE, phrases=["circle"]).phrases[0].map
    # Selected alone, it would be zero everywhere if the mean were over the selection.
    alone = attend_and_segment(record.select(tokens=2), IMAGE, phrases=["circle"]).phrases[0].map
    values = torch.stack([one.values[0] for one in record.layers]).double()
    expected = values[:, :, 2].mean((0, 1)) - values.mean((0, 1, 2))
    assert expected.abs().max() > 1e-3
    assert (whole - expected).abs().max() < 1e-7
    assert torch.equal(whole, alone)


def test_an_answer_of_one_token_is_said_and_not_computed():
    record = make_record(text="circle").select(tokens=0)
    layers = tuple(replace(one, token_mean=one.values[:, :, 0]) for one in record.layers)
    with pytest.raises(InputError, match="is the whole answer, and a map minus its own mean is zero"):
        attend_and_segment(replace(record, layers=layers), IMAGE, phrases=["circle"])


def test_points_in_original_pixels():
    grid = make_grid(4, 4, image_size=(32, 64))
    values = torch.zeros(4, 4)
    values[1, 2] = 1.0
    assert patch_point(values, grid) == (12, 40)
    record = make_record(grid=replace(grid, patch_size=8), seed=3)
    one = _only(record)
    big = torch.nn.functional.interpolate(one.map[None, None], size=(32, 32), mode="bicubic", align_corners=False)[0, 0]
    row, col = divmod(int(big.argmax()), 32)
    # The processed picture is half as wide as the original: column c has its centre in pixel 2 c + 1.
    assert one.bicubic_point == (row, 2 * col + 1)
    best = divmod(int(one.map.argmax()), 4)
    assert one.patch_point == (8 * best[0] + 4, 16 * best[1] + 8)
    assert _only(record, point="bicubic").point == one.bicubic_point
    assert _only(record, point="patch centre").point == one.patch_point


@pytest.mark.parametrize(
    "grid",
    [
        PADDED,
        # Cropped on the left and on the right.
        PatchGrid((16, 64), (0.0, 4.0, 8.0, 12.0, 16.0), (24.0, 28.0, 32.0, 36.0, 40.0), 8),
    ],
)
@pytest.mark.parametrize("seed", range(20))
def test_padding_and_unseen_pixels_never_win(grid, seed):
    record = make_record(grid=grid, seed=seed)
    padding = torch.as_tensor(grid.weight == 0)
    for layer in record.layers:
        layer.values[:, :, 1:3, padding] += 9.0
    for point in ("bicubic", "patch centre"):
        one = _only(record, point=point)
        assert grid.seen[one.point]
        assert one.mask.any()
        assert not (one.mask & ~grid.seen).any()
    best = one.map.masked_fill(padding, -9.0).argmax()
    assert one.patch_point == tuple(grid.centres.reshape(-1, 2)[best])
    # One colour everywhere: the superpixels would take in what no patch saw.
    assert np.array_equal(_only(record, refiner="superpixels").mask, grid.seen)


def test_the_mask_is_the_refiners():
    record = make_record()
    one = _only(record, refiner=ThresholdRefiner("mean"))
    pixels = record.layers[0].grid.upsample(one.map)
    [mask], [score] = ThresholdRefiner("mean").encode(IMAGE).prompt(points=[one.point], maps=[pixels])
    assert np.array_equal(one.mask, mask)
    assert one.score == score
    assert one.mask[one.point]
    assert 0 < one.mask.mean() < 1


def test_the_refiner_is_asked_with_the_point_that_was_chosen():
    asked = []

    class Spy:
        name = "spy"

        def encode(self, image):
            return self

        def prompt(self, *, points=None, boxes=None, maps=None):
            asked.extend(points)
            return np.ones((1, 32, 32), dtype=bool), np.ones(1)

    record = make_record(grid=replace(make_grid(4, 4, image_size=(32, 32)), patch_size=8))
    for point in ("bicubic", "patch centre"):
        one = _only(record, point=point, refiner=Spy())
    assert asked == [one.bicubic_point, one.patch_point]
    assert one.bicubic_point != one.patch_point


def test_the_refiner_is_asked_once_about_all_phrases_of_an_image():
    asked = []

    class Spy(ThresholdRefiner):
        def encode(self, image):
            encoded = super().encode(image)
            prompt = encoded.prompt
            asked.append("image")
            encoded.prompt = lambda **inputs: asked.append(np.shape(inputs["maps"])) or prompt(**inputs)
            return encoded

    record = make_record(grid=PADDED)
    wanted = ["red", "red circle", "blue square", "circle"]
    found = attend_and_segment(record, _pictured(record), phrases=wanted, refiner=Spy("mean")).phrases
    assert asked == ["image", (4, 16, 32)]
    for text, one in zip(wanted, found, strict=True):
        [alone] = attend_and_segment(
            record, _pictured(record), phrases=[text], refiner=ThresholdRefiner("mean")
        ).phrases
        assert one.text == text
        assert np.array_equal(one.mask, alone.mask)
        assert (one.score, one.point, one.note) == (alone.score, alone.point, alone.note)
    assert len({one.mask.tobytes() for one in found}) == 4


def test_phrases_without_a_point_keep_their_place_and_are_not_asked_about():
    record = make_record()
    for layer in record.layers:
        layer.values[:, :, 1] = layer.token_mean  # "red": nothing is left of its map
    found = attend_and_segment(
        record, IMAGE, phrases=["circle", "red", "square"], refiner=ThresholdRefiner("mean")
    ).phrases
    assert [one.point is None for one in found] == [False, True, False]
    assert [one.mask.any() for one in found] == [True, False, True]
    for one in (found[0], found[2]):
        [alone] = attend_and_segment(record, IMAGE, phrases=[one.text], refiner=ThresholdRefiner("mean")).phrases
        assert np.array_equal(one.mask, alone.mask)


def test_a_refiner_may_take_the_maps_as_an_array():
    shapes = []

    class Spy:
        name = "spy"

        def encode(self, image):
            return self

        def prompt(self, *, points=None, boxes=None, maps=None):
            array = np.asarray(maps)
            assert all(np.array_equal(one, two, equal_nan=True) for one, two in zip(array, maps, strict=True))
            shapes.append((array.shape, len(maps[:1]), maps[-1].shape))
            return array > 0, np.zeros(len(points))

    record = make_record(grid=PADDED)
    attend_and_segment(record, _pictured(record), phrases=["red", "circle"], refiner=Spy())
    assert shapes == [((2, 16, 32), 1, (16, 32))]


def test_a_map_that_points_nowhere_is_explained():
    record = make_record()
    for layer in record.layers:
        layer.values[:, :, 1:3] = 0.25
        layer.token_mean[:] = 0.125
    one = _only(record)
    assert (one.point, one.bicubic_point, one.patch_point, one.mask.any()) == (None, None, None, False)
    assert np.isnan(one.score)
    assert "points nowhere" in one.note


def test_rounding_and_padding_point_nowhere():
    record = make_record(grid=PADDED)
    for layer in record.layers:
        layer.values[:, :, 1:3] = layer.token_mean[:] = 0.25
        layer.values[:, :, 1:3, 2, 2] += 3e-8  # the next number that float32 has
        layer.values[:, :, 1:3, torch.as_tensor(PADDED.weight == 0)] += 9.0
        assert layer.values[0, 0, 1, 2, 2] != 0.25
    one = _only(record)
    assert (one.point, "points nowhere" in one.note) == (None, True)
    for layer in record.layers:
        layer.values[:, :, 1:3, torch.as_tensor(PADDED.weight > 0)] *= torch.linspace(0.1, 0.9, 12)
    assert "no patch more than the average token" in _only(record).note  # whatever the padding holds


def test_timesteps_are_averaged():
    record = make_record()
    other = make_record(seed=5)
    layers = tuple(
        replace(
            one,
            values=torch.cat([one.values, two.values]),
            token_mean=torch.cat([one.token_mean, two.token_mean]),
            rest=torch.cat([one.rest, two.rest]),
            timesteps=(1, 2),
        )
        for one, two in zip(record.layers, other.layers, strict=True)
    )
    expected = (token_maps(record)[0] + token_maps(other)[0]) / 2
    assert (token_maps(replace(record, layers=layers))[0] - expected).abs().max() < 1e-7


def test_a_map_below_the_mean_everywhere_is_explained():
    record = make_record()
    assert _only(record).note == ""
    for layer in record.layers:
        layer.values[:, :, 1:3] *= 0.1
    one = _only(record)
    assert one.map.max() < 0
    assert (one.point is None, "no patch more than the average token" in one.note) == (False, True)
    assert one.mask[one.point]


def test_the_noun_phrases_of_the_answer_by_default():
    record = make_record()
    found = attend_and_segment(record, IMAGE)
    assert [(one.text, one.span) for one in found.phrases] == [("a red circle", (0, 12)), ("a blue square", (17, 30))]
    maps = token_maps(record)[0]
    assert torch.equal(found.phrases[0].map, maps[2])  # the root's tokens alone
    assert found.masks.shape == (2, 32, 32)
    part = attend_and_segment(record.select(tokens=[0, 1, 2]), IMAGE)
    assert [one.text for one in part.phrases] == ["a red circle"]
    assert "1 noun phrases are not among the recorded tokens" in part.note
    rootless = attend_and_segment(record.select(tokens=[0, 1, 3]), IMAGE)
    assert (rootless.phrases, "2 noun phrases are not among" in rootless.note) == ((), True)
    chosen = noun_phrases(record.text, chunker="textblob")
    assert [one.phrase for one in attend_and_segment(record, IMAGE, phrases=chosen).phrases] == list(chosen)


def test_a_phrase_said_twice_has_two_regions():
    record = make_record(text="a dog and a dog")
    found = attend_and_segment(record, IMAGE, phrases=["dog"])
    assert [one.span for one in found.phrases] == [(2, 5), (12, 15)]
    assert not torch.equal(found.phrases[0].map, found.phrases[1].map)


@pytest.mark.parametrize("phrases", [None, []])
def test_no_phrase_is_an_empty_explained_result(phrases):
    found = attend_and_segment(make_record(text="it is here"), IMAGE, phrases=phrases)
    assert (found.phrases, found.masks.shape) == ((), (0, 32, 32))
    assert found.note
    assert found.to_json()["phrases"] == []


def test_json_keeps_masks_as_coco_run_lengths():
    record = make_record(grid=make_grid(4, 4, image_size=(24, 40)))
    found = attend_and_segment(record, _pictured(record))
    data = json.loads(json.dumps(found.to_json()))
    for one, kept in zip(found.phrases, data["phrases"], strict=True):
        assert np.array_equal(coco_mask.decode(kept["mask"]).astype(bool), one.mask)
        assert kept["point"] == list(one.point)
        assert kept["chunker"] == one.phrase.chunker
        assert kept["area"] == one.mask.sum()
    assert (data["refiner"], data["reduction"]) == ("threshold (otsu)", "all-heads")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "median"}, "combine must be one of 'mean', 'first', 'max'"),
        ({"reduction": "all-head"}, "Did you mean 'all-heads'"),
        ({"point": "patch center"}, "Did you mean 'patch centre'"),
        ({"refiner": "superpixel"}, "Did you mean 'superpixels'"),
        ({"phrases": ["red circel"]}, "Did you mean 'red circle'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(InputError, match=message):
        attend_and_segment(make_record(), IMAGE, **options)


def test_another_image_and_heads_that_are_not_there():
    with pytest.raises(InputError, match="The image is 32 x 40 but the record was made of one of 32 x 32"):
        attend_and_segment(make_record(), Image.new("RGB", (40, 32)))
    for heads in ([0, 2], [0]):
        with pytest.raises(InputError, match="needs all heads"):
            attend_and_segment(make_record().select(heads=heads), IMAGE, reduction="as-first-released")
    with pytest.raises(InputError, match="needs all heads"):
        attend_and_segment(make_record().mean("head"), IMAGE, reduction="as-first-released")


def test_it_is_a_public_name():
    assert probe.attend_and_segment is attend_and_segment
    assert probe.noun_phrases is noun_phrases


def test_the_bicubic_point_overshoots_less_than_a_patch():
    # Two equal neighbours: the bicubic hill stands between them, the best patch is the first of the two.
    values = torch.zeros(4, 4)
    values[1, 1] = values[1, 2] = 1.0
    grid = PatchGrid((32, 32), (0, 8, 16, 24, 32), (0, 8, 16, 24, 32), 8)
    assert patch_point(values, grid) == (12, 12)
    row, col = bicubic_point(values, grid)
    assert 11 <= row <= 12
    assert 12 <= col <= 19
