"""Configurations: the paper's, what is refused, and what survives a file."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, LlavaConfig, SiglipVisionConfig

from probe.difflmm import DiffLMMConfig, DiffLMMForConditionalGeneration, DiffusionConfig
from probe.difflmm.configuration import block_shape, latent_factor, require_consistent
from probe.errors import ModelError
from tests.difflmm.tiny_difflmm import tiny_config, tiny_parts


def test_the_papers_blocks():
    config = DiffLMMConfig.paper().diffusion_config
    assert latent_factor(config) == 8
    found = [block_shape(DiffusionConfig(block=number)) for number in range(4)]
    assert found == [(1280, 12, 12), (1280, 24, 24), (640, 48, 48), (320, 48, 48)]


@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_shape_of_a_block_is_the_one_that_comes_out(block):
    config = tiny_config(diffusion={"block": block})
    found = block_shape(config.diffusion_config)
    from diffusers import UNet2DConditionModel

    from probe.difflmm.encoder import cut_unet

    unet = cut_unet(UNet2DConditionModel.from_config(config.diffusion_config.unet), block)
    with torch.no_grad():
        out = unet(torch.randn(1, 4, 8, 8), 1, encoder_hidden_states=torch.randn(1, 64, 12)).sample
    assert found == tuple(out.shape[1:])


def test_a_configuration_survives_a_file(tmp_path):
    config = tiny_config(
        diffusion={"seed": 5, "draws": 2, "posterior": "mean", "timestep": 7},
        normalisation="as-released",
        origin="here",
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is DiffLMMConfig
    assert type(again.diffusion_config) is DiffusionConfig
    again.name_or_path = config.name_or_path
    assert again.to_dict() == config.to_dict()
    assert (again.diffusion_config.seed, again.normalisation, again.origin) == (5, "as-released", "here")
    assert again.diffusion_config.unet == tiny_parts()["unet"]


def test_defaults_are_the_papers():
    found, paper = DiffLMMConfig(), DiffLMMConfig.paper()
    assert found.diffusion_config.to_dict() == paper.diffusion_config.to_dict()
    assert found.vision_config.to_dict()["hidden_size"] == paper.vision_config.hidden_size == 1024
    settings = paper.diffusion_config
    assert (settings.timestep, settings.block, settings.draws, settings.image_size) == (100, 1, 1, 384)
    assert paper.normalisation == "intended"
    assert paper.image_seq_length == 576


@pytest.mark.parametrize(
    ("diffusion", "options", "message"),
    [
        ({"block": 3}, {}, r"block=3 does not exist: the U-Net has 3 up blocks, 0 to 2"),
        ({"block": -1}, {}, r"block=-1 does not exist"),
        (
            {"block": 0},
            {},
            r"Up block 0 gives a grid of 4 x 4 but CLIP has 8 x 8 patches \(56 pixels in patches of 7\)",
        ),
        ({"image_size": 128}, {}, r"gives a grid of 16 x 16 but CLIP has 8 x 8"),
        ({"image_size": 8}, {}, r"image_size=8 of the diffusion picture must be a multiple of 32"),
        ({"image_size": 72}, {}, r"image_size=72 .* latent factor 8 times the U-Net's 4"),
        ({"caption_hidden_size": 16}, {}, r"takes width 12 but .* caption_hidden_size=16"),
        ({"timestep": 1000}, {}, r"timestep=1000 lies outside the schedule"),
        ({"unet": tiny_parts()["unet"] | {"in_channels": 9}}, {}, r"takes 9 channels but the VAE's latent has 4"),
        (
            {"unet": tiny_parts()["unet"] | {"addition_embed_type": "text_time"}},
            {},
            r"addition_embed_type is set, as in SDXL",
        ),
        ({}, {"normalisation": "released"}, r"normalisation must be 'intended' or 'as-released', found 'released'"),
        ({}, {"vision_feature_select_strategy": "full"}, r"vision_feature_select_strategy='default'"),
        ({}, {"vision_feature_layer": [-2, -1]}, r"one number as vision_feature_layer"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_built(monkeypatch, diffusion, options, message):
    config = tiny_config(diffusion=diffusion, **options)
    monkeypatch.setattr("diffusers.AutoencoderKL.from_config", lambda *a, **k: pytest.fail("it was built"))
    with pytest.raises(ModelError, match=message):
        DiffLMMForConditionalGeneration(config)


def test_other_towers_and_configurations_are_refused():
    config = tiny_config()
    config.image_seq_length = 16
    with pytest.raises(ModelError, match="image_seq_length=16 but CLIP has 64 patches"):
        require_consistent(config)
    config = tiny_config()
    config.vision_config = SiglipVisionConfig()
    with pytest.raises(ModelError, match="its vision_config is of 'siglip_vision_model'"):
        require_consistent(config)
    with pytest.raises(ModelError, match="needs a DiffLMMConfig, found a LlavaConfig"):
        DiffLMMForConditionalGeneration(LlavaConfig())
