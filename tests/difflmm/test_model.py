"""The whole model: against a plain second writing, through files, generating, training."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from probe.difflmm import DiffLMMForConditionalGeneration, DiffLMMModel
from probe.difflmm.encoder import draw_noise
from probe.errors import InputError
from tests.difflmm.reference import intended_pixels, released_names, visual_tokens
from tests.difflmm.tiny_difflmm import tiny_difflmm
from tests.tiny import picture

PROMPT = "USER: <image>\nDescribe the image. ASSISTANT:"
TRAINED = {
    *(f"diffusion_tower.caption.{layer}.{one}" for layer in ("linear_1", "linear_2") for one in ("weight", "bias")),
    *(f"multi_modal_projector.{layer}.{one}" for layer in ("norm", "conv", "linear_1", "linear_2") for one in ("weight", "bias")),
    "diffusion_tower.caption.position",
    "multi_modal_projector.position",
}  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return tiny_difflmm()


def inputs_of(processor, images, text=PROMPT):
    images = images if isinstance(images, list) else [images]
    return processor(images=images, text=[text] * len(images), padding=True, return_tensors="pt")


def whole(part, kind, config):
    """A whole U-Net or VAE that holds the weights of a cut one; what was cut is random."""
    found = kind.from_config(config).eval()
    found.load_state_dict(part.state_dict(), strict=False)
    return found


def test_visual_tokens_and_logits_are_those_of_a_plain_writing(made):
    model, processor = made
    tower = model.model.diffusion_tower
    settings = model.config.diffusion_config
    image = picture(40, 56)
    tokens = visual_tokens(
        released_names(model),
        model.get_encoder(modality="image"),
        whole(tower.unet, UNet2DConditionModel, settings.unet),
        whole(tower.vae, AutoencoderKL, settings.vae),
        intended_pixels(image, large=64, small=56),
        noise=draw_noise((4, 8, 8), seed=0, draw=0),
    )
    inputs = inputs_of(processor, image)
    with torch.no_grad():
        found = model(**inputs)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        place = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
        embeds[0, place : place + 64] = tokens
        language = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        expected = language @ model.lm_head.weight.T
    seen = found.image_hidden_states
    seen = (
        torch.cat(seen) if isinstance(seen, list) else seen
    )  # a tensor until 5.23, a list of one a picture since then
    torch.testing.assert_close(seen, tokens, rtol=0, atol=1e-4 * float(tokens.abs().max()))
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-3)


def realigned(model):
    """A copy whose weights start where the allocator puts them: loaded ones lie in the file, and kernels round by alignment."""
    return copy.deepcopy(model)


def test_a_saved_model_is_the_same_to_the_bit(made, tmp_path):
    model, processor = made
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, found = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is DiffLMMForConditionalGeneration
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    inputs = inputs_of(processor, picture())
    others = inputs_of(AutoProcessor.from_pretrained(tmp_path), picture())
    with torch.no_grad():
        assert torch.equal(realigned(again)(**others).logits, model(**inputs).logits)
    assert not again.training
    inner = AutoModel.from_pretrained(tmp_path)
    assert type(inner) is DiffLMMModel
    names = {name for name, one in inner.named_parameters() if one.requires_grad and "language_model" not in name}
    assert names == TRAINED


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_from_a_file_keeps_the_vae_in_single(made, tmp_path, dtype):
    made[0].save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    kinds = {name: one.dtype for name, one in half.named_parameters()}
    assert {kind for name, kind in kinds.items() if "diffusion_tower.vae" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "diffusion_tower.vae" not in name} == {dtype}
    with torch.no_grad():
        inputs = inputs_of(made[1], picture())
        logits, expected = half(**inputs).logits.float(), made[0](**inputs).logits
        words = half.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert float((logits - expected).norm() / expected.norm()) < 0.15
    assert words.shape[1] == inputs["input_ids"].shape[1] + 4


def test_generate_is_the_argmax_of_one_pass_after_the_other(made):
    model, processor = made
    inputs = inputs_of(processor, picture())
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), found)
        assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=False), found)
        ids = inputs["input_ids"]
        pictures = {name: inputs[name] for name in ("pixel_values", "diffusion_pixel_values")}
        for _ in range(5):
            ids = torch.cat([ids, model(input_ids=ids, **pictures).logits[:, -1:].argmax(-1)], dim=1)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    assert torch.equal(found, ids)


def test_generate_encodes_its_pictures_once(made, monkeypatch):
    model, processor = made
    calls = []
    inner = model.model.diffusion_tower.forward
    monkeypatch.setattr(model.model.diffusion_tower, "forward", lambda *a: (calls.append(len(a[0])), inner(*a))[1])
    inputs = inputs_of(processor, [picture(), picture(seed=1)])
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert calls == [2]
        found = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, num_beams=2)
    assert found.shape[0] == 2


def test_a_batch_answers_as_its_singles():
    model, processor = tiny_difflmm(dtype=torch.float64)
    images = [picture(seed=0), picture(30, 60, seed=1)]
    with torch.no_grad():
        together = model(**inputs_of(processor, images)).logits
        singles = torch.cat([model(**inputs_of(processor, one)).logits for one in images])
    torch.testing.assert_close(together, singles, rtol=0, atol=1e-11)


def test_the_picture_matters_in_both_sizes(made):
    model, processor = made
    first, second = (inputs_of(processor, picture(seed=seed)) for seed in (0, 1))
    with torch.no_grad():
        plain = model(**first).logits
        for name in ("pixel_values", "diffusion_pixel_values"):
            assert (model(**dict(first) | {name: second[name]}).logits - plain).abs().max() > 1e-3, name


def test_gradients_reach_what_is_trained_and_nothing_that_is_frozen():
    model, processor = tiny_difflmm()
    model.train()
    inputs = inputs_of(processor, picture())
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    moved = {name for name, one in model.model.named_parameters() if one.grad is not None and one.grad.abs().max() > 0}
    assert {name for name in moved if not name.startswith("language_model.")} == TRAINED
    assert any(name.startswith("language_model.") for name in moved)
    frozen = (model.model.vision_tower, model.model.diffusion_tower.vae, model.model.diffusion_tower.unet)
    assert not any(one.training for part in frozen for one in part.modules())
    assert model.model.language_model.training
    assert not any(one.requires_grad for part in frozen for one in part.parameters())


def test_parts_are_found_where_the_library_looks_for_them(made):
    model, _ = made
    assert model.get_encoder(modality="image") is model.model.vision_tower
    assert model.get_decoder() is model.model.language_model
    assert model.get_input_embeddings() is model.model.language_model.embed_tokens
    names = [name for name, one in model.named_modules() if name.endswith(("attn1", "attn2"))]
    assert "model.diffusion_tower.unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2" in names
    assert len(names) == 2 * 5  # two down blocks, the middle, and twice in up block 1


def test_tied_embeddings_stay_tied(tmp_path):
    model, processor = tiny_difflmm(text={"tie_word_embeddings": True})
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    with torch.no_grad():
        inputs = inputs_of(processor, picture())
        assert torch.equal(realigned(again)(**inputs).logits, model(**inputs).logits)


def test_placeholders_that_do_not_match_the_pictures_are_refused_before_any_compute(made, monkeypatch):
    model, processor = made
    inputs = dict(inputs_of(processor, picture()))
    monkeypatch.setattr(model.model.vision_tower, "forward", lambda *a, **k: pytest.fail("it was computed"))
    with pytest.raises(
        InputError, match="2 pictures of 64 patches need 128 image placeholders, but the prompt holds 64"
    ):
        model(**inputs | {name: inputs[name].repeat(2, 1, 1, 1) for name in ("pixel_values", "diffusion_pixel_values")})
    with pytest.raises(InputError, match="diffusion_pixel_values must come with pixel_values"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
