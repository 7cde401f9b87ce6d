"""Pixels: both sizes against plain PIL, and both normalisations as they reach CLIP and the VAE."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from probe.difflmm import DiffLMMImageProcessorPil, make_processor
from probe.errors import InputError
from tests.difflmm.reference import intended_pixels, released_pixels
from tests.difflmm.tiny_difflmm import tiny_config, tiny_difflmm
from tests.tiny import picture, tiny_processor

SIZES = [(40, 56), (56, 40), (64, 64), (7, 90), (300, 200)]


@pytest.mark.parametrize("size", SIZES)
def test_the_processor_makes_what_pil_makes(size):
    _, processor = tiny_difflmm()
    image = picture(*size)
    found = processor.image_processor(images=image, return_tensors="pt")
    small, large = intended_pixels(image, large=64, small=56)
    torch.testing.assert_close(found["pixel_values"][0], small, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["diffusion_pixel_values"][0], large, rtol=0, atol=1e-5)
    assert -1 <= found["diffusion_pixel_values"].min() < found["diffusion_pixel_values"].max() <= 1


@pytest.mark.parametrize(
    ("normalisation", "expected"), [("intended", intended_pixels), ("as-released", released_pixels)]
)
def test_clip_and_vae_see_the_pixels_of_the_normalisation(monkeypatch, normalisation, expected):
    model, processor = tiny_difflmm(normalisation=normalisation)
    seen = {}
    clip, vae = model.model.vision_tower, model.model.diffusion_tower.vae
    for name, part, method in (("clip", clip, "forward"), ("vae", vae, "encode")):
        inner = getattr(part, method)
        monkeypatch.setattr(
            part, method, lambda x, *a, _n=name, _i=inner, **k: (seen.setdefault(_n, x), _i(x, *a, **k))[1]
        )
    image = picture(40, 56)
    with torch.no_grad():
        model.get_image_features(**processor.image_processor(images=image, return_tensors="pt"))
    small, large = expected(image, large=64, small=56)
    torch.testing.assert_close(seen["clip"][0], small, rtol=0, atol=2e-5)
    torch.testing.assert_close(seen["vae"][0], large, rtol=0, atol=2e-5)
    if normalisation == "as-released":
        # The range that white and black reach, by hand: (0 - 0.481) / 0.269 and (1 - 0.408) / 0.276.
        assert seen["vae"].min() > -1.8
        assert 1 < seen["vae"].max() < 2.15


def test_the_normalisations_differ():
    image = picture(40, 56)
    found = []
    for normalisation in ("intended", "as-released"):
        model, processor = tiny_difflmm(normalisation=normalisation)
        with torch.no_grad():
            found.append(
                model.get_image_features(**processor.image_processor(images=image, return_tensors="pt")).pooler_output[
                    0
                ]
            )
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_one_placeholder_a_patch_and_both_pictures_of_each_image():
    _, processor = tiny_difflmm()
    text = ["USER: <image>\nDescribe ASSISTANT:", "USER: <image>\nDescribe the park ASSISTANT:"]
    found = processor(images=[picture(), picture(seed=1)], text=text, padding=True, return_tensors="pt")
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (found["input_ids"] == token).sum(dim=1).tolist() == [64, 64]
    assert found["pixel_values"].shape == (2, 3, 56, 56)
    assert found["diffusion_pixel_values"].shape == (2, 3, 64, 64)
    assert "diffusion_pixel_values" in processor.model_input_names


def test_a_saved_processor_makes_the_same_pixels(tmp_path):
    _, processor = tiny_difflmm()
    tiny_config().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = picture(30, 70)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again.image_processor) is DiffLMMImageProcessorPil
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is DiffLMMImageProcessorPil
    first, second = (one(images=image, text="<image>", return_tensors="pt") for one in (processor, again))
    assert set(first) == set(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_what_would_make_two_geometries_is_refused():
    for settings in ({"do_center_crop": True}, {"size": {"shortest_edge": 56}}):
        with pytest.raises(InputError, match="padded to a square and resized to a height and width, never cropped"):
            DiffLMMImageProcessorPil(**settings)(images=picture(), return_tensors="pt")


def test_a_tokenizer_without_the_placeholder_is_refused():
    config = tiny_config()
    config.image_token_index = 7
    with pytest.raises(InputError, match="<image> has id 3, but the configuration says 7"):
        make_processor(tiny_processor().tokenizer, config)
