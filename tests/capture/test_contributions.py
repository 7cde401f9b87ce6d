"""The parts of CLIP's similarity are what they say, add up to CLIP's own, and are refused where there is no such sum."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionModel

import probe
from probe.capture import decomposition, residuals
from probe.capture.decomposition import TERMS, decompose
from probe.capture.hooks import hook_tables
from probe.capture.weights import attention_rows
from probe.errors import CaptureError, CertificateError, InputError
from tests.tiny import picture, tiny_clip, tiny_llava, tiny_siglip

TEXTS = ["a red ball", "two dogs near a café", "the park"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def similarity_of(subject, texts):
    """CLIP's own, by its own processor and forward."""
    inputs = subject.processor(images=picture(), text=texts, return_tensors="pt", padding=True)
    inputs["pixel_values"] = inputs["pixel_values"].to(subject.model.dtype)
    with torch.no_grad():
        return subject.model(**inputs).logits_per_image[0].double() / subject.model.logit_scale.exp().double()


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("seed", range(5))
def test_the_terms_add_up_to_clips_own_similarity(dtype, allowed, seed):
    subject = tiny_clip(dtype=dtype, seed=seed)
    found = decompose(subject, picture(), TEXTS)
    own = similarity_of(subject, TEXTS)
    assert tuple(found.terms) == TERMS
    total = sum(found.terms.values())
    assert (total - own).abs().max() < allowed
    # None of them is nothing: what is left out would show.
    assert all(float(one.abs().min()) > 1e-6 for one in found.terms.values())
    frame = found.to_frame()
    sums = frame[frame.term != "similarity"].groupby("text").value.sum()
    for text, value in zip(TEXTS, own, strict=True):
        assert sums[text] == pytest.approx(float(value), abs=allowed)
    record = found.record()
    assert record.certificate.passed
    patches = sum(layer.values.double().sum((-1, -2)) for layer in record.layers).sum((0, 1))
    bos = sum(layer.rest[..., 0].double() for layer in record.layers).sum((0, 1))
    assert (patches - found.terms["patches"]).abs().max() < allowed
    assert (bos - found.terms["class token"]).abs().max() < allowed


def test_each_part_is_attention_times_value_through_its_heads_own_projection():
    subject = tiny_clip(dtype=torch.float64, attention="sdpa", seed=3)
    record = probe.contributions(subject, picture(), TEXTS)
    assert (record.quantity, record.query_kind, record.softmax_over) == ("contribution", "class token", None)
    vision, model = subject.model.vision_model, subject.model
    inputs = subject.processor(images=picture(), text=TEXTS, return_tensors="pt", padding=True)
    pixels = inputs.pop("pixel_values").double()
    with torch.no_grad():
        states = vision(pixels, output_hidden_states=True).hidden_states
        text = model.get_text_features(**inputs).pooler_output
        text = text / text.norm(dim=-1, keepdim=True)
        last = states[-1][0, 0]
        size = model.get_image_features(pixels).pooler_output[0].norm()

        def along(part):
            norm = vision.post_layernorm
            scaled = (part - part.mean()) / (last.var(unbiased=False) + norm.eps).sqrt() * norm.weight
            return text @ (model.visual_projection.weight @ scaled) / size

        for layer, head, patch in ((0, 0, 0), (1, 3, 7), (2, 1, 15)):
            block = vision.encoder.layers[layer]
            inward = block.layer_norm1(states[layer][0])
            part = slice(8 * head, 8 * head + 8)  # 32 channels in 4 heads
            query, key, value = (getattr(block.self_attn, f"{name}_proj")(inward)[:, part] for name in ("q", "k", "v"))
            weights = torch.softmax(query[0] @ key.T / 8**0.5, dim=-1)
            out = block.self_attn.out_proj.weight[:, part] @ value[1 + patch] * weights[1 + patch]
            row, col = divmod(patch, 4)
            assert (record.layers[layer].values[0, head, :, row, col] - along(out)).abs().max() < 1e-12


def test_a_text_is_the_same_alone_and_beside_others_and_what_is_kept_can_be_chosen():
    subject = tiny_clip(seed=2)
    whole = probe.contributions(subject, picture(), TEXTS)
    for number, text in enumerate(TEXTS):
        alone = probe.contributions(subject, picture(), [text], layers=[2, 0], heads=[1])
        for layer, place in zip(alone.layers, (2, 0), strict=True):
            expected = whole.layers[place].values[:, [1]][:, :, [number]]
            torch.testing.assert_close(layer.values, expected, atol=1e-7, rtol=1e-4)
            assert layer.heads == (1,)
    mean = sum(whole.layers[0].values[:, :, i] for i in range(3)) / 3
    torch.testing.assert_close(whole.layers[0].token_mean, mean)
    assert probe.contributions(subject, picture(), TEXTS, layers=[0]).certificate.layers == 3


def test_padding_goes_behind_whatever_the_tokenizer_is_set_to():
    subject = tiny_clip()
    right = probe.contributions(subject, picture(), TEXTS)
    subject.processor.tokenizer.padding_side = "left"
    try:
        left = probe.contributions(subject, picture(), TEXTS)
    finally:
        subject.processor.tokenizer.padding_side = "right"
    assert torch.equal(left.layers[1].values, right.layers[1].values)


def test_texts_are_found_in_the_text_they_are_phrases_of():
    subject = tiny_clip()
    joined = probe.contributions(subject, picture(), ["a dog", "a red ball"])
    assert (joined.text, joined.spans) == ("a dog, a red ball", ((0, 5), (7, 17)))
    text = "a dog and a red ball and a dog"
    found = probe.contributions(subject, picture(), ["a dog", "a dog", (12, 20)], text=text)
    assert found.tokens == ("a dog", "a dog", "red ball")
    assert found.spans == ((0, 5), (25, 30), (12, 20))
    assert found["red ball"].tokens == ("red ball",)
    assert found["a dog", 1].spans == ((25, 30),)


def test_nothing_is_left_and_the_users_hooks_stay():
    subject = tiny_clip()
    decompose(subject, picture(), TEXTS)
    before = hook_tables(subject.model)
    decompose(subject, picture(), TEXTS)
    assert hook_tables(subject.model) == before


def test_swapped_heads_and_forgotten_terms_fail_the_certificate(monkeypatch):
    subject = tiny_clip()
    with monkeypatch.context() as patch:
        patch.setattr(residuals, "attention_rows", lambda *a, **k: attention_rows(*a, **k).flip(0))
        with pytest.raises(CertificateError, match="not exact: the terms miss the model's own similarity by"):
            decompose(subject, picture(), TEXTS)
    real = decomposition._direction

    def without_centre(model, output, final):
        along, bias = real(model, output, final)
        return along + along.std(), bias

    with monkeypatch.context() as patch:
        patch.setattr(decomposition, "_direction", without_centre)
        with pytest.raises(CertificateError, match="allowed 1e-05 for float32"):
            decompose(subject, picture(), TEXTS)
    # A model that does more between its layers than is known.
    layer = subject.model.vision_model.encoder.layers[1]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 1.1
    with pytest.raises(CertificateError, match="something between its layers"):
        decompose(subject, picture(), TEXTS)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "There is no text to compare the image with"),
        ("a dog", {}, r"texts is a list of texts, found one text; give \['a dog'\]"),
        (["a dog", " "], {}, "Text 1 is empty"),
        (
            ["a man with a red ball and two dogs near a café " * 3],
            {},
            r"Text 0 .* tokens, .* but the text encoder takes 24",
        ),
        (["a cat"], {"text": "a dog"}, "'a cat' is not in the text 'a dog'"),
        ([(0, 9)], {"text": "a dog"}, "Characters 0 to 9 are not a span"),
        ([(0, 5)], {}, r"need the text that they are of"),
        ([7], {"text": "a dog"}, "7 is neither a text nor"),
        (["a dog"], {"layers": [3]}, "layer 3 does not exist"),
        (["a dog"], {"heads": [4]}, "head 4 does not exist"),
    ],
    ids=str,
)
def test_texts_that_cannot_be_compared_are_refused(texts, options, message):
    with pytest.raises(InputError, match=message):
        probe.contributions(tiny_clip(), picture(), texts, **options)


def test_a_text_too_long_is_refused_before_anything_is_computed(monkeypatch):
    subject = tiny_clip()
    monkeypatch.setattr(subject.model, "forward", None)
    with pytest.raises(InputError, match="takes 24; shorten it"):
        probe.contributions(subject, picture(), ["red " * 40])


def test_models_without_such_a_sum_are_refused_with_the_reason():
    with pytest.raises(CaptureError, match="SiglipModel pools its patches with attention and an MLP of its own"):
        probe.contributions(tiny_siglip(), picture(), TEXTS)
    with pytest.raises(CaptureError, match="LlavaForConditionalGeneration is not a whole CLIP"):
        probe.contributions(tiny_llava(), picture(), TEXTS)
    whole = tiny_clip()
    tower = CLIPVisionModel(whole.model.vision_model.config).eval()
    with pytest.raises(CaptureError, match="CLIPVisionModel is not a whole CLIP"):
        probe.contributions(probe.load_model(tower, whole.processor), picture(), TEXTS)
    whole.model.train()
    with pytest.raises(CaptureError, match="training mode"):
        probe.contributions(whole, picture(), TEXTS)


def test_an_output_projection_that_is_no_plain_layer_is_refused():
    subject = tiny_clip()

    class Adapted(torch.nn.Linear):
        pass

    subject.model.vision_model.encoder.layers[0].self_attn.out_proj = Adapted(32, 32)
    with pytest.raises(CaptureError, match="not a plain linear layer"):
        probe.contributions(subject, picture(), TEXTS)


@pytest.mark.parametrize("options", [{"layers": [3]}, {"heads": [4]}], ids=str)
def test_a_layer_or_head_that_does_not_exist_is_refused_before_anything_is_computed(options, monkeypatch):
    subject = tiny_clip()
    monkeypatch.setattr(subject.model, "forward", None)
    with pytest.raises(InputError, match="does not exist"):
        probe.contributions(subject, picture(), ["a dog"], **options)


def test_only_a_subject_and_a_list_of_texts_are_taken():
    with pytest.raises(InputError, match="for a Subject, found a CLIPModel"):
        probe.contributions(tiny_clip().model, picture(), ["a dog"])
    with pytest.raises(InputError, match="texts is a list of texts, found None"):
        probe.contributions(tiny_clip(), picture(), None)


def test_one_text_alone_says_what_is_missing_for_its_mean():
    with pytest.raises(InputError, match="only text that the image was compared with"):
        probe.contributions(tiny_clip(), picture(), ["a dog"]).minus_mean()
