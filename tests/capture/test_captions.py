"""A DiffLMM's U-Net, read where it looks at its implicit caption and at itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.capture.unets import find_unet
from probe.errors import CaptureError, InputError
from tests.difflmm.tiny_difflmm import tiny_difflmm
from tests.tiny import picture, tiny_llava
from tests.tiny_diffusion import eager_maps, heard


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class _Holder:
    def __init__(self, unet):
        self.unet = unet


def _inputs(processor, image):
    text = "USER: <image>\nDescribe the image. ASSISTANT:"
    return dict(processor(images=image, text=text, return_tensors="pt"))


@pytest.mark.parametrize("draws", [1, 3])
def test_patches_look_at_the_implicit_caption_as_a_plain_writing_says(draws):
    model, processor = tiny_difflmm()
    model.config.diffusion_config.draws = draws
    image, unet = picture(40, 56, seed=1), find_unet(model)
    inputs = _inputs(processor, image)
    with torch.no_grad():
        plain = model(**inputs).logits
        with (
            heard(unet) as calls,
            probe.record(model, processor, place="cross-attention", timesteps="all", verify="all") as recorder,
        ):
            assert torch.equal(model(**inputs).logits, plain)
    record = recorder.result(image=image)
    assert len(calls) == draws
    for step, maps in enumerate(eager_maps(_Holder(unet), calls, crossed=True)):
        assert set(maps) == {layer.name for layer in record.layers}
        for layer in record.layers:
            expected = maps[layer.name][0].transpose(1, 2)
            assert (layer.values[step].flatten(2) - expected).abs().max() <= 1e-6
            assert (layer.values.sum(2) - 1).abs().max() <= 1e-5
    assert (record.query_kind, record.softmax_over) == ("caption token", "tokens")
    assert record.tokens[:2] == ("caption 0", "caption 1")
    assert len(record.tokens) == model.config.image_seq_length
    assert record.source.family == "difflmm"
    # Padded to a square of the longer side: the rows reach beyond the picture, the columns fill it.
    grid = record.layers[0].grid
    assert grid.row_edges[0] == pytest.approx(-8)
    assert grid.row_edges[-1] == pytest.approx(48)
    assert (grid.col_edges[0], grid.col_edges[-1]) == pytest.approx((0, 56))
    with pytest.raises(InputError, match="not the one that the U-Net saw"):
        recorder.result(image=picture(40, 56, seed=2))


def test_generation_is_recorded_once_in_all_places_together():
    model, processor = tiny_difflmm()
    image = picture(seed=1)
    inputs = _inputs(processor, image)
    with (
        probe.record(model, processor) as language,
        probe.record(model, processor, place="self-attention", patches=[(1, 2)]) as own,
        probe.record(model, processor, place="cross-attention") as crossed,
    ):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert language.result(image=image).softmax_over == "sequence"
    assert own.result(image=image).tokens == ("(1, 2)",)
    assert crossed.result().history == ("mean over 1 timestep",)
    assert np.allclose([float(one.values.sum((-2, -1)).mean()) for one in own.result().layers], 1, atol=1e-5)


def test_a_model_without_such_a_unet_has_no_such_place():
    subject = tiny_llava()
    with pytest.raises(InputError, match="place='cross-attention' is not in a model of family 'llava'"):
        probe.record(subject, place="cross-attention")
    with pytest.raises(CaptureError, match="holds 0 diffusion U-Nets"):
        find_unet(subject.model)


def test_several_pictures_at_once_are_refused():
    model, processor = tiny_difflmm()
    inputs = inputs_of_two(processor)
    with (
        pytest.raises(CaptureError, match="one, as \\(1, 3, row, col\\), can be recorded"),
        torch.no_grad(),
        probe.record(model, processor, place="cross-attention"),
    ):
        model(**inputs)


def inputs_of_two(processor):
    text = ["USER: <image>\nDescribe. ASSISTANT:"] * 2
    return dict(processor(images=[picture(seed=0), picture(seed=1)], text=text, return_tensors="pt"))


@pytest.mark.parametrize("place", ["language model", "cross-attention", "image encoder"])
@pytest.mark.parametrize("normalisation", ["intended", "as-released"])
def test_a_record_says_its_seed_and_a_normalisation_that_was_not_meant(place, normalisation):
    model, processor = tiny_difflmm(normalisation=normalisation)
    model.config.diffusion_config.seed = 5
    image, options = picture(40, 56, seed=1), {"queries": "prompt"} if place == "language model" else {}
    with torch.no_grad(), probe.record(model, processor, place=place, **options) as recorder:
        model(**_inputs(processor, image))
    source = recorder.result(image=image).source
    assert source.seed == 5
    assert source.preparation.endswith(", normalised as released") == (normalisation == "as-released")
