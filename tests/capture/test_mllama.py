"""Mllama looks at tiles in cross-attention layers: rows, columns and what is refused, each by a plain line of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import MllamaForConditionalGeneration

import probe
from probe.capture import pictures
from probe.capture.passes import inputs_for, inputs_with_answer, read_and_record
from probe.capture.questions import smooth_picture
from probe.capture.view_painting import paint_views
from probe.errors import CaptureError, InputError
from probe.tiny import tiny_model
from tests.capture.families import batch_of
from tests.capture.reference import eager_maps
from tests.capture.test_generation import _same
from tests.tiny import picture

ANSWER = [20, 30, 40, 50, 20]
CROSS = (1, 3)  # the layers of the decoder that look at pictures
KEYS, SIDE, TILES = 17, 4, 4  # of a tile: a class token and 4 x 4 patches; of a picture


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def subject():
    return tiny_model("mllama")


def _generate(subject, inputs, **options):
    with torch.inference_mode(), probe.record(subject, verify="all") as recorder:
        subject.model.generate(**inputs, max_new_tokens=5, do_sample=False, suppress_tokens=[3], **options)
    return recorder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("size", "arrangement"), [((60, 90), (2, 2)), ((20, 60), (1, 3)), ((70, 15), (4, 1)), ((9, 9), (1, 1))]
)
def test_each_cell_is_its_tiles_own_key(subject, dtype, size, arrangement):
    subject = replace(subject, model=subject.model.to(dtype))
    shown = picture(*size)
    inputs, start = inputs_with_answer(subject, shown, "a dog", ANSWER)
    maps = eager_maps(subject, inputs)
    record = read_and_record(subject, shown, "a dog", answer=ANSWER, verify="all")
    rows, cols = arrangement
    assert (record.softmax_over, record.query_kind, record.query_row) == ("patches", "generated token", "predicting")
    assert [one.name for one in record.layers] == [f"model.language_model.layers.{i}.cross_attn" for i in CROSS]
    for number, layer in zip(CROSS, record.layers, strict=True):
        assert (layer.view, layer.grid.shape) == ("image 0", (rows * SIDE, cols * SIDE))
        assert maps[number].shape[-1] == KEYS * TILES
        assert float((maps[number][0] - maps[number][1]).abs().max()) > 0.01, "heads must differ"
        wanted = maps[number][:, start - 1 : -1].to(layer.values)
        tiles = wanted.unflatten(-1, (TILES, KEYS))
        assert not tiles[..., rows * cols :, :].any(), "tiles that are padding"
        allowed = 1e-12 if dtype == torch.float64 else 1e-6
        for tile in range(rows * cols):
            top, left = tile // cols * SIDE, tile % cols * SIDE
            found = layer.values[0, :, :, top : top + SIDE, left : left + SIDE]
            assert float((found - tiles[..., tile, 1:].unflatten(-1, (SIDE, SIDE))).abs().max()) <= allowed
        assert float((layer.rest[0, ..., 2] - tiles[..., 0].sum(-1)).abs().max()) <= allowed
        assert not layer.rest[..., :2].any(), "there is no text among the keys"


# Older releases of the library give these layers a static cache that is too short for their keys.
_STATIC = pytest.param(
    "static",
    marks=pytest.mark.skipif(
        "_prepare_static_cache" not in vars(MllamaForConditionalGeneration),
        reason="this transformers has no static cache for Mllama",
    ),
)


@pytest.mark.parametrize("cache", [None, _STATIC])
def test_generating_equals_reading(subject, cache):
    shown = picture(60, 90)
    inputs, _ = inputs_for(subject, shown, "a dog")
    found = _generate(subject, inputs, **({"cache_implementation": cache} if cache else {})).result(image=shown)
    assert len(found.tokens) == 5
    _same(found, read_and_record(subject, shown, "a dog", answer=found.token_ids, verify="all"), 2e-5)


def test_sequences_with_different_numbers_of_pictures(subject):
    shown = [picture(60, 90, seed=1), picture(20, 60, seed=2), picture(70, 15, seed=3)]
    inputs = batch_of(subject, [([shown[0]], "a dog"), (shown[1:], "a man with a red ball")])
    assert inputs["pixel_values"].shape[1] == 2, "the first sequence has room for a second picture"
    # Not held against the first alone: there the model itself computes other numbers, for text before a picture it looks evenly at
    # all keys, and those of the second sequence's pictures are among them.
    with torch.inference_mode(), probe.record(subject, queries="prompt", query_row="own", verify="all") as recorder:
        subject.model(**inputs)
    one, maps = recorder.result(0, image=shown[0]), eager_maps(subject, inputs)
    place = inputs["input_ids"][0].tolist().index(3)
    for number, layer in zip(CROSS, one.layers, strict=True):
        assert maps[number].shape[-1] == 2 * KEYS * TILES
        rows = maps[number][:, place + 1 :].unflatten(-1, (2 * TILES, KEYS))
        assert not rows[..., TILES:, :].any()
        torch.testing.assert_close(
            layer.values[0, ..., -SIDE:, -SIDE:].flatten(-2), rows[..., 3, 1:], atol=1e-6, rtol=0
        )
    recorder = _generate(subject, inputs)
    assert recorder.result(0, image=shown[0]).certificate.passed
    two = recorder.result(1, image=shown[1:])
    # Pictures that do not stand side by side are for the text behind each alone: the answer is told to look at the last.
    first, last = two.select(view="image 0"), two.select(view="image 1")
    for seen, other in zip(first.layers, last.layers, strict=True):
        assert not seen.values.any()
        total = other.values.sum((-1, -2)) + other.rest.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("query_row", "lag"), [("own", 0), ("predicting", 1)])
def test_the_prompts_rows_begin_with_the_picture(subject, query_row, lag):
    shown = picture(60, 90)
    inputs, _ = inputs_for(subject, shown, "a dog")
    with torch.inference_mode(), probe.record(subject, queries="prompt", query_row=query_row, verify="all") as recorder:
        subject.model(**inputs)
    record = recorder.result(image=shown)
    ids = inputs["input_ids"][0].tolist()
    place = ids.index(3)
    assert place > 1, "there must be text before the picture"
    assert list(record.token_ids) == ids[place + 1 :]
    maps = eager_maps(subject, inputs)
    for number, layer in zip(CROSS, record.layers, strict=True):
        rows = maps[number][:, place + 1 - lag : len(ids) - lag].unflatten(-1, (TILES, KEYS))
        torch.testing.assert_close(layer.values[0, ..., :SIDE, :SIDE].flatten(-2), rows[..., 0, 1:], atol=1e-6, rtol=0)


def test_without_its_picture_a_record_lies_on_the_canvas(subject):
    shown = picture(60, 90)
    inputs, _ = inputs_for(subject, shown, "a dog")
    recorder = _generate(subject, inputs)
    known, unknown = recorder.result(image=shown), recorder.result()
    assert (known.image_size, unknown.image_size) == ((60, 90), (32, 32))
    # 60 x 90 is made 21 x 32, in the upper part of 32 x 32 pixels: patch r begins at 4 r.
    grid = known.layers[0].grid
    assert grid.row_edges == pytest.approx([4 * r * 60 / 21 for r in range(9)])
    assert grid.col_edges == pytest.approx([4 * c * 90 / 32 for c in range(9)])
    assert "pad to 32 x 32 at the bottom and right" in known.source.preparation
    for one, other in zip(known.layers, unknown.layers, strict=True):
        assert torch.equal(one.values, other.values)


def test_tiles_put_together_the_other_way_round_fail_geometry(subject, monkeypatch):
    real = pictures.stitched
    wide = smooth_picture().resize((400, 200))
    assert paint_views(subject, wide)[0]

    def turned(rows, cols, tile, *, step, first=0):
        places = torch.tensor(real(cols, rows, tile, step=step, first=first)).reshape(cols * tile[0], rows * tile[1])
        return tuple(places.T.flatten().tolist())

    monkeypatch.setattr(pictures, "stitched", turned)
    assert not paint_views(subject, wide)[0]


def test_what_cannot_be_read_is_refused(subject):
    inputs, _ = inputs_for(subject, picture(60, 90), "a dog")
    with (
        pytest.raises(CaptureError, match=r"cross_attention_mask is missing: .*pass everything"),
        probe.record(subject),
    ):
        subject.model.generate(**{k: v for k, v in inputs.items() if k != "cross_attention_mask"}, max_new_tokens=2)
    with pytest.raises(InputError, match="cross-attention layer 2 does not exist: there are 2, numbered 0 to 1"):
        probe.record(subject, layers=2)
    with pytest.raises(InputError, match="'self-attention' is not in a model of family 'mllama'"):
        probe.record(subject, place="self-attention")
    text = subject.processor.tokenizer("a dog", return_tensors="pt")
    with pytest.raises(InputError, match="No image was given"), probe.record(subject):
        subject.model.generate(input_ids=text["input_ids"], max_new_tokens=2)
    subject.model.config.vision_config.patch_size = 5
    with pytest.raises(CaptureError, match="Tiles of 16 pixels are not whole in patches of 5"), probe.record(subject):
        subject.model.generate(**inputs, max_new_tokens=2)


def test_keys_that_were_cached_before_are_refused(subject):
    inputs, _ = inputs_for(subject, picture(60, 90), "a dog")
    layer = subject.model.get_decoder().layers[1].cross_attn
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: (
            args,
            dict(kwargs, attention_mask=None, cross_attention_states=kwargs["cross_attention_states"][:, :9]),
        ),
        with_kwargs=True,
    )
    with (
        pytest.raises(CaptureError, match=r"saw \d+ queries and 36 keys .* the pictures have 68 keys"),
        probe.record(subject),
    ):
        subject.model(**inputs)
    handle.remove()


def test_heads_are_counted_among_the_layers_that_look(subject):
    shown = picture(60, 90)
    with probe.ablate(subject, heads=[(1, 2)]):
        record = read_and_record(subject, shown, "a dog", answer=ANSWER)
    plain = read_and_record(subject, shown, "a dog", answer=ANSWER)
    assert "2" in record.source.ablation
    # The last layer's own rows do not know that one of its heads is silenced behind them.
    for one, other in zip(record.layers, plain.layers, strict=True):
        assert torch.equal(one.values, other.values)
    with pytest.raises(InputError, match="layers 0 to 1"), probe.ablate(subject, heads=[(3, 2)]):
        pass
