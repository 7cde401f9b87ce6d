"""Encoders that never saw a text: class token, register tokens and patches, for pictures of any size."""

from __future__ import annotations

import pytest
import torch

import probe
from probe.errors import CaptureError, InputError, ModelError
from probe.families import family_of
from tests.capture.plain import plain_softmax
from tests.tiny import picture, tiny_dino

KINDS = ["dinov2", "dinov2_with_registers", "dinov3_vit", "vit"]
ALLOWED = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def pixels_of(subject, image=None):
    return subject.processor(images=picture() if image is None else image, return_tensors="pt")["pixel_values"].to(
        subject.model.dtype
    )


def before_patches(kind):
    return 1 if kind in ("dinov2", "vit") else 4  # the class token, and three registers


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_a_plain_softmax(kind, dtype):
    subject = tiny_dino(kind, dtype=dtype, seed=1)
    pixels = pixels_of(subject)
    maps, first = plain_softmax(lambda: subject.model(pixels)), before_patches(kind)
    assert len(maps) == 3
    with torch.no_grad():
        plain = subject.model(pixels).last_hidden_state
        with (
            probe.record(subject, verify="all") as rows,
            probe.record(subject, queries=[6, 1], verify="all") as patches,
        ):
            assert torch.equal(subject.model(pixels).last_hidden_state, plain)
    record, of_patches = rows.result(image=picture()), patches.result(image=picture())
    assert (record.query_kind, record.tokens, record.softmax_over) == ("class token", ("[class]",), "sequence")
    assert (of_patches.query_kind, of_patches.tokens) == ("patch", ("(1, 2)", "(0, 1)"))
    for weights, layer, other in zip(maps, record.layers, of_patches.layers, strict=True):
        one = weights[0]
        assert (layer.values[0, :, 0].flatten(-2) - one[:, 0, first:]).abs().max() <= ALLOWED[dtype]
        assert (other.values[0].flatten(-2) - one[:, [first + 6, first + 1], first:]).abs().max() <= ALLOWED[dtype]
        # In itself, in no text, and in registers.
        rest = torch.stack([one[:, 0, 0], 0 * one[:, 0, 0], one[:, 0, 1:first].sum(-1)], -1)
        assert (layer.rest[0, :, 0] - rest).abs().max() <= ALLOWED[dtype]
        assert (layer.values.sum((-2, -1)) + layer.rest.sum(-1) - 1).abs().max() <= 1e-5
    assert record.certificate.passed
    assert record.source.family == {"dinov2_with_registers": "dinov2", "dinov3_vit": "dinov3"}.get(kind, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_another_size_has_a_grid_of_its_own(kind):
    subject = tiny_dino(kind)
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    pixels = torch.randn(1, 3, 24, 51, generator=torch.Generator().manual_seed(0))  # 3 pixels are left over
    maps, first = plain_softmax(lambda: subject.model(pixels, **options)), before_patches(kind)
    with torch.no_grad(), probe.record(subject, verify="all") as recorder:
        subject.model(pixels, **options)
    record = recorder.result()
    assert (record.image_size, record.layers[0].grid.shape) == ((24, 51), (3, 6))
    for weights, layer in zip(maps, record.layers, strict=True):
        assert (layer.values[0, :, 0].flatten(-2) - weights[0, :, 0, first:]).abs().max() <= 1e-6


@pytest.mark.parametrize("options", [{}, {"size": 48}, {"attention": "eager"}, {"dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_check_passes(kind, options):
    if kind == "vit" and "size" in options:
        pytest.skip("ViT takes other sizes only where it is told to interpolate its positions")
    report = probe.check(tiny_dino(kind, **options))
    assert report.passed, report
    assert set(report.numbers) == {"parity", "certificate", "state_differences", "geometry_wrong_cells"}


def test_a_classifier_is_recorded_like_what_is_inside():
    from transformers import Dinov2Config, Dinov2ForImageClassification

    inner = tiny_dino("dinov2")
    config = Dinov2Config(**{key: value for key, value in inner.model.config.to_dict().items() if key != "model_type"})
    model = Dinov2ForImageClassification(config).eval()
    assert family_of(model).name == "dinov2"
    with torch.no_grad(), probe.record(model, inner.processor, verify="all") as recorder:
        model(pixels_of(inner))
    assert recorder.result().layers[0].name.startswith("dinov2.encoder.layer")


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "vit"])
def test_an_encoder_without_text_comes_back_from_a_folder(kind, tmp_path):
    subject = tiny_dino(kind)
    for part in (subject.model, subject.processor):
        part.save_pretrained(tmp_path)
    loaded = probe.load_model(tmp_path)
    assert (loaded.family, loaded.family.kind) == (subject.family, "image encoder")
    pixels = pixels_of(subject)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels).last_hidden_state, subject.model(pixels).last_hidden_state)


def test_what_reads_no_text_is_refused_where_a_text_is_needed(tmp_path):
    subject = tiny_dino()
    with pytest.raises(CaptureError, match="Dinov2Model is not a whole CLIP"):
        probe.run(subject, picture(), "a red circle")
    with pytest.raises(InputError, match="reads no text"):
        probe.record(subject, queries="answer")
    with (
        pytest.raises(CaptureError, match="one image at a time"),
        torch.no_grad(),
        probe.record(subject),
    ):
        subject.model(torch.zeros(2, 3, 32, 32))
    subject.model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="could not be loaded"):
        probe.load_model(tmp_path)
