"""SAM and SAM-HQ as refiners: the same masks as plain transformers code, in the image's own pixels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import threshold_otsu
from transformers import SamHQConfig, SamHQMaskDecoderConfig, SamHQModel, SamHQProcessor, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from probe.errors import InputError, ModelError
from probe.grounding import sam
from probe.grounding.refiners import Refiner, find_refiner
from probe.grounding.sam import SamRefiner
from probe.lab.sam import SamSettings, build_sam, make_sam_processor

SIDE, CELLS = 32, 16  # pixels that the tiny models see, and cells of the masks that they make
TINY = SamSettings(
    image=SIDE, vision_width=16, vision_inner=32, vision_layers=2, vision_heads=2, width=16, inner=32, heads=2
)
WIDE, TALL = (40, 64), (75, 48)


def _picture(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)


def _tiny_sam_hq():
    plain = build_sam(settings=TINY).config
    decoder = SamHQMaskDecoderConfig(vit_dim=TINY.vision_width, **_given(plain.mask_decoder_config))
    return SamHQModel(
        SamHQConfig(
            vision_config=_given(plain.vision_config),
            prompt_encoder_config=_given(plain.prompt_encoder_config),
            mask_decoder_config=decoder,
        )
    )


def _given(config):
    return {name: value for name, value in config.to_diff_dict().items() if name not in ("model_type", "vit_dim")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny random models as `save_pretrained` makes them; their weights are so large that masks depend on everything."""
    places = {}
    for kind, model in (("sam", build_sam(settings=TINY)), ("sam-hq", _tiny_sam_hq())):
        torch.manual_seed(1)
        for name, value in model.named_parameters():
            if value.dim() > 1 and "positional" not in name:
                torch.nn.init.normal_(value, std=0.3)
            elif "positional" in name:
                torch.nn.init.normal_(value, std=1.0)
        places[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(places[kind])
        make_sam_processor(TINY).save_pretrained(places[kind])
    return places


@pytest.fixture(scope="module")
def plain(folders):
    """``plain("sam", image, input_points=...)``: masks and predicted IoUs as the library's own examples make them."""
    loaded = {
        "sam": (SamModel.from_pretrained(folders["sam"]).eval(), SamProcessor),
        "sam-hq": (SamHQModel.from_pretrained(folders["sam-hq"]).eval(), SamHQProcessor),
    }

    def run(kind, image, input_masks=None, **prompts):
        model, processor_class = loaded[kind]
        processor = processor_class(SamImageProcessorPil.from_pretrained(folders[kind]))
        inputs = processor(image, return_tensors="pt", **prompts).to(torch.float32)
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        with torch.no_grad():
            output = model(**inputs, input_masks=input_masks)
        [masks] = processor.image_processor.post_process_masks(list(output.pred_masks), *sizes)
        return masks.numpy(), output.iou_scores[0].numpy()

    return run


def _same(found, expected):
    masks, scores = expected
    assert found[0].shape == masks.shape
    assert found[0].dtype == bool
    assert (found[0] != masks).mean() < 1e-4
    assert found[1] == pytest.approx(scores, abs=1e-5)
    # A model whose masks are all alike would agree with anything.
    assert 0.02 < masks.mean() < 0.98
    assert (masks[0] != masks[-1]).mean() > 0.01


@pytest.mark.parametrize("kind", ["sam", "sam-hq"])
@pytest.mark.parametrize("size", [WIDE, TALL, (32, 32), (20, 16)])
def test_points_and_boxes_as_plain_transformers_code_has_them(folders, plain, kind, size):
    image = _picture(size)
    height, width = size
    points = [(3, 5), (height - 2, width - 4), (height // 2, 1)]
    encoded = SamRefiner(folders[kind]).encode(image)
    _same(encoded.candidates(points=points), plain(kind, image, input_points=[[[[col, row]] for row, col in points]]))
    boxes = [(1, 2, 12, 9), (0, 0, height, width), (height - 9, width - 12, height - 2, width)]
    swapped = [[left, top, right, bottom] for top, left, bottom, right in boxes]
    _same(encoded.candidates(boxes=boxes), plain(kind, image, input_boxes=[swapped]))


@pytest.mark.parametrize("kind", ["sam", "sam-hq"])
@pytest.mark.parametrize("size", [WIDE, TALL])
def test_a_box_and_a_map_as_plain_transformers_code_has_them(folders, plain, kind, size):
    image, rng = _picture(size), np.random.default_rng(0)
    encoded = SamRefiner(folders[kind], prompt="box and mask").encode(image)
    maps = np.kron(rng.random((2, 5, 4)), np.ones((size[0] // 5, size[1] // 4)))
    boxes = [(1, 2, 12, 9), (4, 6, 30, 20)]
    found = encoded.candidates(boxes=boxes, maps=maps)
    expected = []
    for (top, left, bottom, right), one in zip(boxes, maps, strict=True):
        level = threshold_otsu(one)
        above, below = (one - level) / (one.max() - level), (one - level) / level
        logits = torch.tensor(10 * np.where(one > level, above, below)).float()[None, None]
        scale = SIDE / max(size)
        small = [int(length * scale + 0.5) for length in size]
        frame = torch.full((1, 1, SIDE, SIDE), -10.0)
        frame[..., : small[0], : small[1]] = torch.nn.functional.interpolate(
            logits, small, mode="bilinear", antialias=True
        )
        mask = frame.reshape(1, 1, CELLS, 2, CELLS, 2).mean((3, 5))
        expected.append(plain(kind, image, input_boxes=[[[left, top, right, bottom]]], input_masks=mask))
    masks, scores = (np.concatenate(parts) for parts in zip(*expected, strict=True))
    assert (found[0] != masks).mean() < 1e-4
    assert found[1] == pytest.approx(scores, abs=1e-5)
    # The map counts, and not the box alone.
    other = encoded.candidates(boxes=boxes, maps=maps[::-1])
    assert (other[0] != masks).mean() > 0.01


@pytest.fixture
def asked(folders, monkeypatch):
    """``asked(prompt="box")``: a refiner, and what its model is called with; masks are discs round each point or box's centre."""

    def make(**options):
        refiner = SamRefiner(folders["sam"], **options)
        calls = []

        def forward(**inputs):
            calls.append(inputs)
            corners = inputs.get("input_points", inputs.get("input_boxes"))
            centres = corners.reshape(corners.shape[0] * corners.shape[1], -1, 2).mean(1) * CELLS / SIDE
            row, col = torch.meshgrid(torch.arange(CELLS) + 0.5, torch.arange(CELLS) + 0.5, indexing="ij")
            away = (row - centres[:, 1, None, None]) ** 2 + (col - centres[:, 0, None, None]) ** 2
            masks = torch.stack([3.0 - away**0.5, 2.0 - away**0.5, 4.0 - away**0.5], 1)
            masks = masks.reshape(corners.shape[0], corners.shape[1], 3, CELLS, CELLS)
            return type("Output", (), {"pred_masks": masks, "iou_scores": masks.amax((-2, -1)) / 10})

        monkeypatch.setattr(refiner.model, "forward", forward)
        return refiner, calls

    return make


@pytest.mark.parametrize("size", [WIDE, TALL, (33, 90), (300, 200), (7, 5)])
def test_a_planted_disc_lies_round_its_point_in_the_images_own_pixels(asked, size):
    refiner, _ = asked()
    encoded = refiner.encode(_picture(size))
    cell = max(size) / CELLS
    points = [(int(row * size[0]), int(col * size[1])) for row, col in ((0.5, 0.5), (0.35, 0.6), (0.6, 0.35))]
    for point, mask in zip(points, encoded.prompt(points=points)[0], strict=True):
        row, col = np.mgrid[: size[0], : size[1]] + 0.5
        truth = (row - point[0]) ** 2 + (col - point[1]) ** 2 < (4 * cell) ** 2
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9 if max(size) > 10 else mask[point]


def test_an_image_is_encoded_once_and_many_prompts_are_decoded_at_once(folders, monkeypatch):
    refiner = SamRefiner(folders["sam"], mask="best")
    seen = {"vision_encoder": 0, "mask_decoder": []}
    encode, decode = refiner.model.vision_encoder.forward, refiner.model.mask_decoder.forward

    def counted(*args, **inputs):
        seen["vision_encoder"] += 1
        return encode(*args, **inputs)

    def listed(**inputs):
        seen["mask_decoder"].append(inputs["sparse_prompt_embeddings"].shape[1])
        return decode(**inputs)

    monkeypatch.setattr(refiner.model.vision_encoder, "forward", counted)
    monkeypatch.setattr(refiner.model.mask_decoder, "forward", listed)
    rng = np.random.default_rng(0)
    points = np.stack([rng.integers(0, length, 70) for length in WIDE], axis=1)
    encoded = refiner.encode(_picture(WIDE))
    masks, scores = encoded.prompt(points=points)
    assert seen == {"vision_encoder": 1, "mask_decoder": [32, 32, 6]}
    for index in (0, 31, 32, 69):
        [mask], [score] = encoded.prompt(points=points[index : index + 1])
        assert (mask != masks[index]).mean() < 1e-3
        assert score == pytest.approx(scores[index], abs=1e-5)
    assert len({mask.tobytes() for mask in masks}) > 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2),
        ({"mask": "last"}, 2),
        ({"mask": "best"}, 1),
        ({"mask": "smallest"}, 0),
        ({"mask": "last", "holding_point": True}, 1),
        ({"mask": "best", "holding_point": True}, 1),
        ({"mask": "smallest", "holding_point": True}, 1),
    ],
)
def test_which_of_the_candidates_is_taken(folders, monkeypatch, options, expected):
    refiner = SamRefiner(folders["sam"], **options)
    masks = torch.full((1, 1, 3, CELLS, CELLS), -1.0)
    masks[..., 0, :2, :2] = 1.0  # the smallest, away from the point
    masks[..., 1, 5:12, 5:12] = 1.0  # the best, round the point
    masks[..., 2, :, 12:] = 1.0  # the largest, away from the point
    output = type("Output", (), {"pred_masks": masks, "iou_scores": torch.tensor([[[0.3, 0.9, 0.5]]])})
    monkeypatch.setattr(refiner.model, "forward", lambda **inputs: output)
    encoded = refiner.encode(_picture((32, 32)))
    [mask], [score] = encoded.prompt(points=[(16, 16)])
    [every], [scores] = encoded.candidates(points=[(16, 16)])
    assert np.array_equal(mask, every[expected])
    assert score == scores[expected] == pytest.approx([0.3, 0.9, 0.5][expected])
    assert every.any((1, 2)).all()
    # Where none holds the point, all compete; what is empty is never the smallest.
    [mask], _ = encoded.prompt(points=[(31, 1)])
    assert np.array_equal(mask, every[{"smallest": 0, "best": 1}.get(refiner.mask, 2)])
    masks[..., 0, :, :] = -1.0
    [mask], _ = encoded.prompt(points=[(31, 1)])
    assert mask.any()


def test_boxes_and_mask_prompts_are_made_of_the_phrases_maps(asked):
    size = (40, 64)
    maps = np.zeros((2, *size))
    maps[0, 8:16, 32:48] = 1.0
    maps[0, 30:34, 2:6] = 1.0  # as high, but apart from the point
    maps[1, 20:40, 0:8] = 2.0
    maps[1, :, 60:] = np.nan
    points = [(10, 40), (30, 4)]
    boxes = [[32, 8, 48, 16], [0, 20, 8, 40]]  # left, top, right, bottom
    refiner, calls = asked(prompt="box")
    refiner.encode(_picture(size)).prompt(points=points, maps=maps)
    assert calls[0]["input_boxes"].tolist() == [[[edge / 2 for edge in box] for box in boxes]]
    assert "input_masks" not in calls[0]
    refiner, calls = asked(prompt="box and mask")
    masks, _ = refiner.encode(_picture(size)).prompt(points=points, maps=maps)
    [call] = calls
    assert call["input_boxes"].tolist() == [[[edge / 2 for edge in box]] for box in boxes]
    assert call["image_embeddings"].shape[0] == 2
    given = call["input_masks"][:, 0].numpy()
    # Four pixels are one cell; from row 20 on there is padding.
    first = np.zeros((CELLS, CELLS), dtype=bool)
    first[2:4, 8:12] = True
    second = np.zeros((CELLS, CELLS), dtype=bool)
    second[5:10, 0:2] = True
    assert np.array_equal(given[0] > 5, first)
    assert np.array_equal(given[1] > 5, second)
    assert (given[:, 10:] == -10).all()
    assert given[1, 3, 15] == -10  # unseen
    assert given.max() == pytest.approx(10)
    assert all(mask[box[1] + 4, box[0] + 4] for mask, box in zip(masks, boxes, strict=True))


def test_a_flat_map_says_nothing_and_an_unseen_one_is_refused(asked):
    refiner, calls = asked(prompt="box and mask")
    encoded = refiner.encode(_picture((32, 32)))
    encoded.prompt(points=[(4, 4)], maps=np.ones((1, 32, 32)))
    assert (calls[0]["input_masks"] == 0).all()
    with pytest.raises(InputError, match="Map 0 is unseen everywhere"):
        encoded.prompt(points=[(4, 4)], maps=np.full((1, 32, 32), np.nan))
    with pytest.raises(InputError, match="Map 0 is unseen everywhere"):
        encoded.prompt(boxes=[(4, 4, 9, 9)], maps=np.full((1, 32, 32), np.nan))
    for maps in (None, np.ones((2, 32, 32)), np.ones((1, 31, 32))):
        with pytest.raises(InputError, match=r"box and mask.* reads maps: 1 prompts need maps of shape \(1, 32, 32\)"):
            encoded.prompt(points=[(4, 4)], maps=maps)


def test_names_carry_the_settings(folders):
    place = str(folders["sam"])
    assert SamRefiner(folders["sam"]).name == f"sam ({place}, last)"
    assert SamRefiner(place, mask="best", prompt="box", holding_point=True).name == (
        f"sam ({place}, best, box, holding the point)"
    )
    assert find_refiner(f"sam:{place}").name == f"sam ({place}, last)"
    assert find_refiner(f"sam:{place}:smallest").name == f"sam ({place}, smallest)"
    assert find_refiner(f"sam-hq:{folders['sam-hq']}").name == f"sam-hq ({folders['sam-hq']}, best)"
    assert isinstance(find_refiner(f"sam:{place}"), Refiner)


def test_no_prompt_and_half_precision(folders):
    encoded = SamRefiner(folders["sam"], dtype="bfloat16").encode(_picture(WIDE))
    masks, scores = encoded.prompt(points=np.zeros((0, 2)))
    assert (masks.shape, masks.dtype, scores.shape) == ((0, *WIDE), bool, (0,))
    masks, scores = encoded.candidates(points=[])
    assert (masks.shape, scores.shape) == ((0, 3, *WIDE), (0, 3))
    whole, _ = SamRefiner(folders["sam"]).encode(_picture(WIDE)).candidates(points=[(20, 30)])
    half, _ = encoded.candidates(points=[(20, 30)])
    assert (whole != half).mean() < 0.1


def test_what_cannot_be_asked(folders):
    place = folders["sam"]
    with pytest.raises(InputError, match=r"mask must be one of .*Did you mean 'best'"):
        SamRefiner(place, mask="bets")
    with pytest.raises(InputError, match=r"prompt must be one of 'point', 'box', 'box and mask'"):
        SamRefiner(place, prompt="map")
    with pytest.raises(InputError, match="sorts its candidates by predicted IoU"):
        SamRefiner(folders["sam-hq"], mask="last")
    with pytest.raises(
        InputError, match=r"which mask is taken: last, best, smallest; found 'bets'.*Did you mean 'best'"
    ):
        find_refiner(f"sam:{place}:bets")
    with pytest.raises(InputError, match="found 'bets'"):
        find_refiner("lab/sam:bets")
    for name in ("sam", "sam:", "sam-hq:"):
        with pytest.raises(InputError, match="names no model"):
            find_refiner(name)
    encoded = SamRefiner(place).encode(_picture(WIDE))
    with pytest.raises(InputError, match=r"point \(40, 3\) does not lie in the image of 40 x 64"):
        encoded.prompt(points=[(40, 3)])
    with pytest.raises(InputError, match=r"points=.* or boxes="):
        encoded.prompt()
    with pytest.raises(InputError, match=r"image of 1 x 70 .* has nothing left of its shorter side"):
        SamRefiner(place).encode(_picture((1, 70)))
    assert SamRefiner(place).encode(_picture((1, 64))).prompt(points=[(0, 5)])[0].shape == (1, 1, 64)


def test_models_that_cannot_be_loaded(folders, tmp_path):
    place = folders["sam"]
    with pytest.raises(ModelError, match="is a sam-hq model; write sam-hq:"):
        find_refiner(f"sam:{folders['sam-hq']}")
    with pytest.raises(ModelError, match=r"is a sam model; write sam:"):
        find_refiner(f"sam-hq:{place}")
    with pytest.raises(ModelError, match=r"No model folder .*nowhere'.*or 'lab/sam'"):
        find_refiner(f"sam:{tmp_path / 'nowhere'}")
    with pytest.raises(ModelError, match=r"nobody/nothing.*could not be loaded.*with a network to reach it"):
        find_refiner("sam:nobody/nothing")
    with pytest.raises(ModelError, match="a model of type 'llava', not a SAM"):
        find_refiner("sam:lab/llava")
    with pytest.raises(ModelError, match="device='nonsense' cannot be used here"):
        SamRefiner(place, device="nonsense")
    with pytest.raises(ModelError, match="dtype='int8' is not a floating-point type"):
        SamRefiner(place, dtype="int8")


def test_broken_folders(folders, tmp_path):
    for name in ("processor", "weights"):
        shutil.copytree(folders["sam"], tmp_path / name)
    settings = json.loads((tmp_path / "processor" / "processor_config.json").read_text())
    settings["image_processor"]["pad_size"] = {"height": 64, "width": 64}
    (tmp_path / "processor" / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"makes pictures of \(64, 64\) .* pixels and its model sees 32 x 32"):
        SamRefiner(tmp_path / "processor")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "weights" / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, tmp_path / "weights" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 of its weights are not in its checkpoint, the first 'mask_decoder.iou_token"
    ):
        SamRefiner(tmp_path / "weights")


def test_at_once_bounds_the_copies_of_an_image(folders, monkeypatch):
    monkeypatch.setattr(sam, "AT_ONCE", 2)
    encoded = SamRefiner(folders["sam"], prompt="box and mask").encode(_picture(WIDE))
    shapes, decode = [], encoded.refiner.model.mask_decoder.forward

    def listed(**inputs):
        shapes.append(inputs["image_embeddings"].shape[0])
        return decode(**inputs)

    monkeypatch.setattr(encoded.refiner.model.mask_decoder, "forward", listed)
    encoded.prompt(points=[(9, 9)] * 5, maps=np.random.default_rng(0).random((5, *WIDE)))
    assert shapes == [2, 2, 1]
