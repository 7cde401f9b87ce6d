"""Class-token rows, patch rows and the pooling query of image encoders are the encoder's own, and refused where they cannot be."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import probe
from probe.capture import encoders
from probe.capture.encoders import EncoderRecorder
from probe.capture.hooks import hook_tables
from probe.capture.multihead import multihead_rows
from probe.capture.weights import attention_rows
from probe.errors import CaptureError, CertificateError, InputError
from tests.tiny import picture, tiny_clip, tiny_llava, tiny_siglip

PATCHES = 16  # of the tiny encoders: 4 x 4


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def pixels_of(subject, image=None):
    image = picture() if image is None else image
    pixels = subject.processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    return pixels.to(subject.model.dtype)


def recorded(subject, *, image=None, pixels=None, **options):
    with torch.inference_mode(), EncoderRecorder(subject.model, subject.processor, **options) as recorder:
        subject.model.get_image_features(pixels_of(subject) if pixels is None else pixels)
    return recorder.result(image=picture() if image is None else image)


def eager(subject):
    """(head, query, key) of every layer, from an eager copy of the same weights."""
    other = copy.deepcopy(subject.model.vision_model)
    other.set_attn_implementation("eager")
    with torch.inference_mode():
        return [one[0] for one in other(pixels_of(subject), output_attentions=True).attentions]


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-6), (torch.float64, 2e-6), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_class_token_rows_are_those_of_eager_attention(dtype, allowed, attention):
    subject = tiny_clip(dtype=dtype, attention=attention)
    record = recorded(subject, verify="all")
    assert (record.quantity, record.query_kind, record.softmax_over) == ("attention", "class token", "sequence")
    assert (record.tokens, record.text) == (("[class]",), "")
    assert record.certificate.passed
    assert record.source.kernel == attention
    assert len(record.layers) == 3
    for number, (layer, maps) in enumerate(zip(record.layers, eager(subject), strict=True)):
        assert layer.name == f"vision_model.encoder.layers.{number}.self_attn"
        row = maps[:, 0].to(layer.values.dtype)
        assert (layer.values[0, :, 0].flatten(-2) - row[:, 1:]).abs().max() <= allowed
        # The class token comes first: what it looks at in itself is no patch.
        assert (layer.rest[0, :, 0] - torch.stack([row[:, 0], 0 * row[:, 0], 0 * row[:, 0]], -1)).abs().max() <= allowed


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_patches_asked_for_come_in_their_order_and_the_mean_is_over_all(make):
    subject = make(seed=1)
    record = recorded(subject, queries=[6, 1], layers=[2, 0], heads=[3, 1], verify="all")
    assert (record.query_kind, record.tokens) == ("patch", ("(1, 2)", "(0, 1)"))
    maps, first = eager(subject), int(make is tiny_clip)
    for layer, number in zip(record.layers, (2, 0), strict=True):
        patches = maps[number][[3, 1]][:, first:, first:]
        assert layer.heads == (3, 1)
        assert (layer.values[0].flatten(-2) - patches[:, [6, 1]]).abs().max() < 2e-6
        assert (layer.token_mean[0].flatten(-2) - patches.mean(1)).abs().max() < 2e-6
    assert record.certificate.rows == 2 * PATCHES
    assert recorded(subject, queries=[-1]).tokens == ("(3, 3)",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pooling_query_of_siglip_is_the_one_the_head_computes(dtype):
    subject = tiny_siglip(dtype=dtype)
    record = recorded(subject, verify="all", heads=[2, 0])
    assert (record.query_kind, record.tokens, len(record.layers)) == ("pooling query", ("[pooling]",), 1)
    head = subject.model.vision_model.head
    with torch.no_grad():
        states = subject.model.vision_model(pixels_of(subject)).last_hidden_state[0]
        weight, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
        for place, number in enumerate((2, 0)):
            part = slice(8 * number, 8 * number + 8)  # 32 channels in 4 heads
            query = (head.probe[0] @ weight[:32].T + bias[:32])[:, part]
            key = (states @ weight[32:64].T + bias[32:64])[:, part]
            plain = torch.softmax(query @ key.T / 8**0.5, dim=-1)[0]
            assert (record.layers[0].values[0, place, 0].flatten() - plain).abs().max() < 1e-6
    assert float(record.layers[0].rest.abs().max()) == 0
    assert record.certificate.passed


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
@pytest.mark.parametrize("queries", ["class token", [0, 5]])
def test_the_output_is_bit_identical_and_nothing_is_left(make, queries):
    subject = make()
    pixels = pixels_of(subject)
    with torch.inference_mode():
        plain = subject.model.get_image_features(pixels).pooler_output
        before = hook_tables(subject.model)
        with EncoderRecorder(subject.model, subject.processor, queries=queries):
            watched = subject.model.get_image_features(pixels).pooler_output
    assert torch.equal(plain, watched)
    assert hook_tables(subject.model) == before


def test_the_encoder_inside_a_language_model_is_read_while_it_generates():
    subject = tiny_llava()
    inputs = subject.processor(images=picture(), text="USER: <image>\na dog ASSISTANT:", return_tensors="pt")
    with torch.inference_mode(), probe.record(subject, place="image encoder") as recorder:
        subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    record = recorder.result(image=picture())
    assert [one.name for one in record.layers] == [
        f"model.vision_tower.encoder.layers.{number}.self_attn" for number in (0, 1)
    ]
    tower = copy.deepcopy(subject.model.model.vision_tower)
    tower.set_attn_implementation("eager")
    with torch.inference_mode():
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions
    for layer, weights in zip(record.layers, maps, strict=True):
        assert (layer.values[0, :, 0].flatten(-2) - weights[0, :, 0, 1:]).abs().max() < 2e-6


def test_swapped_heads_fail_the_certificate(monkeypatch):
    monkeypatch.setattr(encoders, "attention_rows", lambda *a, **k: attention_rows(*a, **k).flip(0))
    with pytest.raises(CertificateError, match=r"does not rebuild .* vision_model.encoder.layers.\d.self_attn"):
        recorded(tiny_clip())
    monkeypatch.setattr(encoders, "multihead_rows", lambda *a, **k: multihead_rows(*a, **k).flip(0))
    with pytest.raises(CertificateError, match=r"does not rebuild .* vision_model.head.attention"):
        recorded(tiny_siglip())
    assert recorded(tiny_siglip(), verify="off").certificate.passed is False


def test_what_another_thread_encodes_is_not_recorded():
    subject = tiny_siglip()
    alone = recorded(subject)
    with torch.no_grad(), EncoderRecorder(subject.model, subject.processor) as recorder:
        other = threading.Thread(target=lambda: subject.model.get_image_features(torch.zeros(2, 3, 32, 32)))
        other.start()
        other.join()
        subject.model.get_image_features(pixels_of(subject))
    assert torch.equal(recorder.result(image=picture()).layers[0].values, alone.layers[0].values)


def test_one_pass_over_one_image_can_be_recorded():
    subject = tiny_clip()
    with pytest.raises(CaptureError, match=r"pixel_values of shape \(2, 3, 32, 32\).*one image at a time"):
        recorded(subject, pixels=torch.zeros(2, 3, 32, 32))
    with pytest.raises(InputError, match="not the one that the model saw"):
        recorded(subject, image=picture(seed=1))
    with torch.no_grad(), EncoderRecorder(subject.model, subject.processor) as recorder:
        with pytest.raises(CaptureError, match="Nothing was recorded"):
            recorder.result()
        subject.model.get_image_features(pixels_of(subject))
        with pytest.raises(CaptureError, match="already holds one pass"):
            subject.model.get_image_features(pixels_of(subject))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": "answer"}, "queries='answer' cannot be asked of an image encoder"),
        ({"queries": [16]}, "patch 16 does not exist: there are 16"),
        ({"layers": [3]}, "layer 3 does not exist: there are 3"),
        ({"heads": [4]}, "head 4 does not exist: there are 4"),
        ({"verify": "some"}, "verify must be one of"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        recorded(tiny_clip(), **options)


def test_siglip_without_its_head_has_no_query_of_its_own():
    subject = tiny_siglip()
    del subject.model.vision_model.head
    with pytest.raises(CaptureError, match="neither a class token nor a pooling head"):
        EncoderRecorder(subject.model, subject.processor)
