"""Attention of anybody's modules: through each of the three kernels, with heads in one module or one module each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import probe
from probe.capture import multihead, own
from probe.capture.weights import attention_rows
from probe.errors import CaptureError, CertificateError, InputError
from probe.layout import Layout, PatchGrid, View
from probe.tiny.modules import MultiheadViT, SeparateHeads, spread_weights
from tests.capture.plain import plain_softmax
from tests.tiny import tiny_dino

ALLOWED = {torch.float32: 1e-6, torch.float64: 1e-12}
GRID = PatchGrid.from_affine((32, 32), shape=(4, 4), patch_size=8)
VIT = Layout.of_patches(GRID, before=1)
WORDS = Layout.of_patches(PatchGrid.from_affine((20, 30), shape=(2, 3), patch_size=10), before=3)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def pixels(dtype=torch.float32):
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)


def states(dtype=torch.float32):
    return torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(0), dtype=dtype)


def by_hand(model, given, mask=None):
    """(head, query, key) of each block of a MultiheadViT, from the inputs of its attention modules and their own weights."""
    found = []

    def compute(module, args, kwargs):
        states = args[0][0] if module.batch_first else args[0][:, 0]
        query, key = (
            nn.functional.linear(states, module.in_proj_weight.chunk(3)[i], module.in_proj_bias.chunk(3)[i])
            for i in (0, 1)
        )
        query, key = (one.unflatten(-1, (module.num_heads, -1)).transpose(0, 1).double() for one in (query, key))
        logits = query @ key.mT / query.shape[-1] ** 0.5
        found.append((logits if mask is None else logits.masked_fill(mask, -torch.inf)).softmax(-1))

    handles = [block.attn.register_forward_pre_hook(compute, with_kwargs=True) for block in model.blocks]
    with torch.no_grad():
        model(given, mask)
    for one in handles:
        one.remove()
    return found


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grad", [False, True])  # without gradients a fused kernel runs
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_is_what_its_own_weights_say(batch_first, grad, masked, dtype):
    model = spread_weights(MultiheadViT(batch_first=batch_first)).to(dtype)
    mask = torch.ones(17, 17, dtype=torch.bool).triu(1) if masked else None
    given = pixels(dtype)
    maps = by_hand(model, given, mask)
    with torch.set_grad_enabled(grad):
        plain = model(given, mask)
        with probe.record(model, attention="blocks.*.attn", layout=VIT, verify="all", queries=[0, 5, 16]) as recorder:
            assert torch.equal(model(given, mask), plain)
    record = recorder.result(image=torch.zeros(32, 32, 3, dtype=torch.uint8).numpy())
    assert [one.name for one in record.layers] == [f"blocks.{i}.attn" for i in range(3)]
    for layer, weights in zip(record.layers, maps, strict=True):
        assert (layer.values[0].flatten(-2) - weights[:, [0, 5, 16], 1:]).abs().max() <= ALLOWED[dtype]
        assert (layer.rest[0, ..., 0] - weights[:, [0, 5, 16], 0]).abs().max() <= ALLOWED[dtype]
        assert (layer.values.sum((-2, -1)) + layer.rest.sum(-1) - 1).abs().max() <= 1e-5
        if masked:
            assert layer.values[0, :, 0].abs().max() == 0  # the class token sees itself alone
    assert record.certificate.passed
    assert record.tokens == ("row 0", "row 5", "row 16")
    assert (record.query_kind, record.softmax_over) == ("query row", "sequence")
    assert record.source.tap == "torch.nn.MultiheadAttention, asked again"


def test_classes_can_be_named_instead_and_patches_asked_for():
    model = spread_weights(MultiheadViT())
    with (
        torch.no_grad(),
        probe.record(model, attention="MultiheadAttention", layout=VIT, queries="patches", heads=[2]) as one,
    ):
        model(pixels())
    with torch.no_grad(), probe.record(model, attention="blocks.?", layout=VIT, layers=[1]) as other:
        model(pixels())
    record = one.result()
    assert (record.query_kind, record.tokens[:2], len(record.tokens)) == ("patch", ("(0, 0)", "(0, 1)"), 16)
    assert record.layers[0].heads == (2,)
    # A block with one attention inside stands for that one; "text" are all positions without a patch.
    assert [layer.name for layer in other.result().layers] == ["blocks.1.attn"]
    assert other.result().tokens == ("row 0",)


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
def test_heads_that_are_modules_are_heads_of_one_layer(dtype):
    model, given = spread_weights(SeparateHeads()).to(dtype), states(dtype)
    maps = plain_softmax(lambda: model(given))
    assert len(maps) == 24
    with torch.no_grad():
        plain = model(given)
        with probe.record(model, attention="layers.*.heads.{head}", layout=WORDS, verify="all") as recorder:
            assert torch.equal(model(given), plain)
    record = recorder.result()
    assert [(one.name, one.heads) for one in record.layers] == [(f"layers.{i}.heads", tuple(range(12))) for i in (0, 1)]
    for number, layer in enumerate(record.layers):
        for head in range(12):  # in the order of their numbers, also from 10 on
            weights = maps[12 * number + head].reshape(9, 9)
            assert (layer.values[0, head].flatten(-2) - weights[:3, 3:]).abs().max() <= ALLOWED[dtype]
    assert record.certificate.rows == 2 * 12 * 3
    assert record.layers[0].grid.shape == (2, 3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_transformers_model_is_seen_through_its_registry(attention):
    subject = tiny_dino("dinov2", attention=attention)
    with torch.no_grad():
        with probe.record(subject, verify="all") as known:
            subject.model(pixels())
        # The class that hands itself to the registry has another name in other versions.
        own = type(subject.model.get_submodule(known.result().layers[0].name)).__name__
        with probe.record(subject.model, attention=own, layout=VIT, queries=[0], verify="all") as recorder:
            subject.model(pixels())
    record = recorder.result()
    assert (record.source.tap, record.source.kernel) == ("transformers attention functions", attention)
    for one, other in zip(record.layers, known.result().layers, strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.rest, other.rest)


class Looks(nn.Module):
    """Two words that look at six encoded patches."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(48, 4, batch_first=True)

    def forward(self, words, patches):
        return self.attn(words, patches, patches, need_weights=False)[0]


def test_a_decoder_that_looks_at_an_encoded_picture():
    model = spread_weights(Looks())
    words, patches = states()[:, :2], states()[:, 3:]
    with torch.no_grad():
        expected = model.attn(words, patches, patches, average_attn_weights=False)[1][0]
        with probe.record(
            model, attention="attn", layout=Layout.of_patches(WORDS.views[0].grid), verify="all"
        ) as recorder:
            model(words, patches)
    record = recorder.result()
    assert (record.softmax_over, record.tokens) == ("patches", ("row 0", "row 1"))
    assert (record.layers[0].values[0].flatten(-2) - expected).abs().max() <= 1e-6


# Faults and refusals ----------------------------------------------------------------------------------------------------------


def test_misread_weights_fail_the_certificate(monkeypatch):
    model = spread_weights(SeparateHeads())
    monkeypatch.setattr(own, "attention_rows", lambda *args, **chosen: attention_rows(*args, **chosen).flip(1))
    with torch.no_grad(), probe.record(model, attention="layers.*.heads.{head}", layout=WORDS) as recorder:
        model(states())
    with pytest.raises(CertificateError, match=r"does not rebuild what the module computed: .* in layers\.0\.heads"):
        recorder.result()
    vit, real = spread_weights(MultiheadViT()), multihead.multihead_rows
    monkeypatch.setattr(own, "multihead_rows", lambda *args, **chosen: real(*args, **chosen).flip(0))
    with torch.no_grad(), probe.record(vit, attention="blocks.*.attn", layout=VIT) as recorder:
        vit(pixels())
    with pytest.raises(CertificateError, match="does not rebuild"):
        recorder.result()


def test_modules_that_run_no_kernel_are_told_what_to_do():
    model = spread_weights(SeparateHeads(by_hand=True))
    with (
        torch.no_grad(),
        pytest.raises(
            CaptureError,
            match=r"layers\.0\.heads \(_Head\) ran no attention kernel .*Let it call torch\.nn\.functional",
        ),
        probe.record(model, attention="layers.*.heads.{head}", layout=WORDS) as recorder,
    ):
        model(states())
    with pytest.raises(CaptureError, match="Nothing was recorded"):
        recorder.result()
    # A layer whose heads are not told apart calls its kernel once for each of them.
    several = spread_weights(SeparateHeads())
    with (
        torch.no_grad(),
        pytest.raises(CaptureError, match=r"layers\.0 \(_Heads\) called attention 12 times"),
        probe.record(several, attention="layers.?", layout=WORDS),
    ):
        several(states())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "blocks.*.atn"}, r"attention='blocks.*.atn' fits no module of MultiheadViT.*blocks\.0\.attn"),
        ({"attention": ""}, "attention must be a pattern of names"),
        ({"layout": None}, "attention= and layout= go together"),
        ({"layout": GRID}, r"such as probe\.layout\.Layout\.of_patches.*found PatchGrid"),
        ({"queries": "answer"}, "queries must be 'text', 'patches' or numbers of query rows"),
        ({"queries": [0, 0]}, "different numbers of query rows"),
        ({"layers": [3]}, "layer 3 does not exist: there are 3"),
        ({"place": "image encoder"}, "place= is no option with attention="),
        ({"query_row": "own"}, "query_row= is no option with attention="),
        ({"verify": "some"}, "verify must be one of"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_runs(options, message):
    with pytest.raises(InputError, match=message):
        probe.record(MultiheadViT(), **{"attention": "blocks.*.attn", "layout": VIT} | options)


@pytest.mark.parametrize(
    ("options", "given", "error", "message"),
    [
        ({"layout": Layout.of_patches(GRID)}, pixels(), CaptureError, "saw 17 keys where the layout has 16 positions"),
        ({"queries": [17]}, pixels(), InputError, "asks for row 17, but blocks.0.attn has 17 query rows"),
        ({}, pixels().expand(2, -1, -1, -1), CaptureError, "one image at a time can be recorded"),
    ],
    ids=["layout", "row", "batch"],
)
def test_a_pass_that_does_not_fit_is_refused(options, given, error, message):
    model = spread_weights(MultiheadViT())
    with (
        torch.no_grad(),
        pytest.raises(error, match=message),
        probe.record(model, **{"attention": "blocks.*.attn", "layout": VIT} | options),
    ):
        model(given)


def test_heads_images_and_second_passes_that_do_not_exist_are_refused():
    model = spread_weights(MultiheadViT())
    with torch.no_grad(), probe.record(model, attention="blocks.*.attn", layout=VIT, heads=[4]) as recorder:
        model(pixels())
        with pytest.raises(CaptureError, match="already holds one pass"):
            model(pixels())
    with pytest.raises(InputError, match=r"blocks\.0\.attn: head 4 does not exist: there are 4"):
        recorder.result()
    with pytest.raises(InputError, match=r"has \(8, 9\) pixels .* grid is of an image of \(32, 32\)"):
        recorder.result(image=torch.zeros(8, 9, 3, dtype=torch.uint8).numpy())


def test_what_runs_as_one_fused_kernel_or_is_compiled_is_refused():
    layer = nn.TransformerEncoderLayer(32, 4, batch_first=True).eval()
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with pytest.raises(CaptureError, match=r"TransformerEncoderLayer.*set_fastpath_enabled\(False\)"):
        probe.record(model, attention="*.self_attn", layout=VIT)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        given = torch.randn(1, 17, 32)
        with torch.no_grad():
            plain = model(given)
            with probe.record(model, attention="*.self_attn", layout=VIT, verify="all") as recorder:
                assert torch.equal(model(given), plain)
        assert recorder.result().certificate.passed
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(CaptureError, match=r"compiled by torch\.compile"):
        probe.record(torch.compile(MultiheadViT(), backend="eager"), attention="*.attn", layout=VIT)


def test_dropout_that_is_on_is_refused():
    model = spread_weights(SeparateHeads())
    attend = torch.nn.functional.scaled_dot_product_attention
    for head in (one for layer in model.layers for one in layer.heads):
        head.forward = lambda given: torch.nn.functional.scaled_dot_product_attention(
            given, given, given, dropout_p=0.1
        )[..., :4]
    with (
        pytest.raises(CaptureError, match=r"dropout of 0\.1 is on"),
        probe.record(model, attention="layers.*.heads.{head}", layout=WORDS),
    ):
        model(states())
    assert torch.nn.functional.scaled_dot_product_attention is attend


def _run_or_raise(model, given, error):
    model(given)
    raise error("planted")  # some modules are not called by themselves


def test_several_views_are_layers_of_their_own():
    grid = PatchGrid.from_affine((20, 30), shape=(1, 3), patch_size=10)
    layout = Layout((View("left", grid, (3, 4, 5)), View("right", grid, (6, 7, 8))), 9, bos=0)
    model = spread_weights(SeparateHeads())
    maps = plain_softmax(lambda: model(states()))
    with (
        torch.no_grad(),
        probe.record(model, attention="layers.*.heads.{head}", layout=layout, verify="all") as recorder,
    ):
        model(states())
    record = recorder.result()
    assert [(one.name, one.view) for one in record.layers[:2]] == [
        ("layers.0.heads", "left"),
        ("layers.0.heads", "right"),
    ]
    right = record.select(view="right").layers[0]
    weights = maps[4].reshape(9, 9)
    assert (right.values[0, 4].flatten(-2) - weights[:3, 6:]).abs().max() <= 1e-6
    rest = torch.stack([weights[:3, 0], weights[:3, 1:3].sum(-1), weights[:3, 3:6].sum(-1)], -1)
    assert (right.rest[0, 4] - rest).abs().max() <= 1e-6
