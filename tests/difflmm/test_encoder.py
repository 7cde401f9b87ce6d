"""The diffusion side: noise, the cut U-Net, draws, number types; and what is refused before anything is computed."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from probe.difflmm.encoder import cut_unet, draw_noise
from probe.errors import InputError, ModelError
from tests.difflmm.tiny_difflmm import tiny_difflmm, tiny_parts
from tests.tiny import picture

PICTURES = [picture(seed=0), picture(40, 20, seed=1), picture(33, 64, seed=2)]


@pytest.fixture(scope="module")
def made():
    return tiny_difflmm()


def tokens(model, processor, images, **settings):
    """Visual tokens (picture, patch, width) under these settings of the diffusion side, which are put back."""
    config = model.config.diffusion_config
    before = {name: getattr(config, name) for name in settings}
    pixels = processor.image_processor(images=images, return_tensors="pt")
    kind = next(model.model.multi_modal_projector.parameters()).dtype
    try:
        for name, value in settings.items():
            setattr(config, name, value)
        with torch.no_grad():
            found = model.get_image_features(**{name: one.to(kind) for name, one in pixels.items()})
    finally:
        for name, value in before.items():
            setattr(config, name, value)
    return torch.stack(list(found.pooler_output))


def test_noise_depends_on_the_seed_and_the_draw_alone():
    first = draw_noise((4, 8, 8), seed=3, draw=1)
    torch.manual_seed(99)
    with torch.device("meta"):  # whatever device is the default, and whatever was drawn before
        again = draw_noise((4, 8, 8), seed=3, draw=1)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    others = [draw_noise((4, 8, 8), seed=seed, draw=draw) for seed, draw in ((3, 2), (4, 1), (1, 3))]
    tensors = [one for pair in (first, *others) for one in pair]
    for number, one in enumerate(tensors):
        assert not any(torch.equal(one, other) for other in tensors[number + 1 :])
    many = torch.cat([one.flatten() for one in draw_noise((100_000,), seed=0, draw=0)])
    assert abs(float(many.mean())) < 0.01
    assert abs(float(many.std()) - 1) < 0.01


def test_same_seed_same_tokens_to_the_bit_and_another_seed_others(made):
    first = tokens(*made, PICTURES[:1])
    torch.manual_seed(123)
    assert torch.equal(tokens(*made, PICTURES[:1]), first)
    assert torch.equal(tokens(*tiny_difflmm(), PICTURES[:1]), first)
    for other in ({"seed": 1}, {"first_draw": 1}, {"timestep": 101}, {"posterior": "mean"}):
        assert (tokens(*made, PICTURES[:1], **other) - first).abs().max() > 1e-3, other


def test_a_batch_is_its_singles():
    model, processor = tiny_difflmm(dtype=torch.float64)
    together = tokens(model, processor, PICTURES)
    singles = torch.cat([tokens(model, processor, [one]) for one in PICTURES])
    # The noise is the same to the bit; kernels may add up a batch in another order.
    torch.testing.assert_close(together, singles, rtol=0, atol=1e-12)
    swapped = tokens(model, processor, PICTURES[::-1])
    torch.testing.assert_close(swapped.flip(0), singles, rtol=0, atol=1e-12)


def test_every_picture_of_a_batch_gets_the_same_noise(made, monkeypatch):
    model, processor = made
    tower = model.model.diffusion_tower
    seen = []
    whole = tower.unet.forward
    monkeypatch.setattr(tower.unet, "forward", lambda latent, *a, **k: (seen.append(latent), whole(latent, *a, **k))[1])
    same = [PICTURES[0]] * 3
    tokens(model, processor, same)
    (latents,) = seen
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])


def test_draws_are_averaged_features(made):
    model, processor = made
    tower = model.model.diffusion_tower
    pixels = processor.image_processor(images=PICTURES[0], return_tensors="pt")["diffusion_pixel_values"]
    patches = torch.randn(1, 64, 20, generator=torch.Generator().manual_seed(0))

    def features(**settings):
        for name, value in ({"draws": 1, "first_draw": 0} | settings).items():
            setattr(model.config.diffusion_config, name, value)
        with torch.no_grad():
            return tower(pixels, patches)

    each = [features(first_draw=number) for number in (2, 3, 4)]
    mean = features(draws=3, first_draw=2)
    features()  # leaves the settings as they were
    torch.testing.assert_close(mean, sum(each) / 3)
    assert (each[0] - each[1]).abs().max() > 1e-2


def test_without_noise_nothing_is_random(made):
    quiet = {"timestep": 0, "posterior": "mean"}
    first = tokens(*made, PICTURES[:1], **quiet)
    assert torch.equal(tokens(*made, PICTURES[:1], **quiet, seed=7), first)
    noisy = {"timestep": 0, "posterior": "sample"}
    assert not torch.equal(tokens(*made, PICTURES[:1], **noisy), tokens(*made, PICTURES[:1], **noisy, seed=7))


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_cut_unet_gives_what_the_block_of_the_whole_one_gives(block):
    torch.manual_seed(0)
    whole = UNet2DConditionModel.from_config(tiny_parts()["unet"]).eval()
    seen = []
    whole.up_blocks[block].register_forward_hook(lambda module, args, output: seen.append(output))
    torch.manual_seed(0)
    cut = cut_unet(UNet2DConditionModel.from_config(tiny_parts()["unet"]).eval(), block)
    latent, text = torch.randn(2, 4, 8, 8), torch.randn(2, 64, 12)
    with torch.no_grad():
        whole(latent, 100, encoder_hidden_states=text)
        found = cut(latent, 100, encoder_hidden_states=text).sample
    assert torch.equal(found, seen[0])
    assert len(cut.up_blocks) == block + 1


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_stays_near_single(made, dtype, allowed):
    single = tokens(*made, PICTURES)
    half = tokens(*tiny_difflmm(dtype=dtype), PICTURES).float()
    assert half.isfinite().all()
    off = float((half - single).norm() / single.norm())
    assert 0 < off < allowed  # 0 would mean that nothing was cast


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep": 1000}, r"timestep=1000 lies outside the schedule of 1000 steps; give 0 to 999"),
        ({"timestep": -1}, r"timestep=-1"),
        ({"draws": 0}, r"draws must be a whole number, 1 or more; found 0"),
        ({"first_draw": -1}, r"first_draw must be"),
        ({"seed": -1}, r"seed must be"),
        ({"posterior": "mode"}, r"posterior must be 'sample' or 'mean', found 'mode'"),
    ],
)
def test_settings_changed_to_the_impossible_are_refused_before_any_compute(made, monkeypatch, settings, message):
    monkeypatch.setattr(made[0].model.vision_tower, "forward", lambda *a, **k: pytest.fail("it was computed"))
    with pytest.raises(ModelError, match=message):
        tokens(*made, PICTURES[:1], **settings)


def test_pictures_of_another_size_are_refused(made):
    model, _ = made
    with pytest.raises(
        InputError, match=r"diffusion_pixel_values has shape \(1, 3, 32, 64\), expected \(picture, 3, 64, 64\)"
    ):
        model.get_image_features(torch.zeros(1, 3, 56, 56), torch.zeros(1, 3, 32, 64))
    with pytest.raises(InputError, match=r"pixel_values has shape \(1, 3, 48, 56\), expected \(picture, 3, 56, 56\)"):
        model.get_image_features(torch.zeros(1, 3, 48, 56), torch.zeros(1, 3, 64, 64))
    with pytest.raises(InputError, match="1 pictures for CLIP but 2 for the U-Net"):
        model.get_image_features(torch.zeros(1, 3, 56, 56), torch.zeros(2, 3, 64, 64))
    with pytest.raises(InputError, match="diffusion_pixel_values must come with pixel_values"):
        model.get_image_features(torch.zeros(1, 3, 56, 56))
