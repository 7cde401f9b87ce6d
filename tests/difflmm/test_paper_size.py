"""The paper's model on the meta device: every parameter's name and shape."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from probe.difflmm import DiffLMMConfig, DiffLMMForConditionalGeneration

# Written down from the paper and the release, not from the code: what is trained.
TRAINED = {
    "model.diffusion_tower.caption.linear_1.weight": (768, 1024),
    "model.diffusion_tower.caption.linear_1.bias": (768,),
    "model.diffusion_tower.caption.linear_2.weight": (768, 768),
    "model.diffusion_tower.caption.linear_2.bias": (768,),
    "model.diffusion_tower.caption.position": (576, 768),
    "model.multi_modal_projector.norm.weight": (1280,),
    "model.multi_modal_projector.norm.bias": (1280,),
    "model.multi_modal_projector.conv.weight": (1024, 1280, 1, 1),
    "model.multi_modal_projector.conv.bias": (1024,),
    "model.multi_modal_projector.linear_1.weight": (4096, 2048),
    "model.multi_modal_projector.linear_1.bias": (4096,),
    "model.multi_modal_projector.linear_2.weight": (4096, 4096),
    "model.multi_modal_projector.linear_2.bias": (4096,),
    "model.multi_modal_projector.position": (576, 4096),
}


@pytest.fixture(scope="module")
def shapes():
    with torch.device("meta"):
        model = DiffLMMForConditionalGeneration(DiffLMMConfig.paper())
    return {name: tuple(one.shape) for name, one in model.named_parameters()}


def shapes_of(build, prefix):
    with torch.device("meta"):
        made = build()
    return {prefix + name: tuple(one.shape) for name, one in made.named_parameters()}


def count(shapes):
    return sum(torch.Size(one).numel() for one in shapes.values())


def below(shapes, *prefixes):
    return {name: one for name, one in shapes.items() if name.startswith(prefixes)}


def test_what_is_trained(shapes):
    assert below(shapes, "model.diffusion_tower.caption.", "model.multi_modal_projector.") == TRAINED


def test_the_unet_is_stable_diffusions_up_to_the_second_up_block(shapes):
    # The published config.json of Stable Diffusion 1.5's U-Net; 859,520,964 is its published number of parameters.
    whole = shapes_of(
        lambda: UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        ),
        "model.diffusion_tower.unet.",
    )
    assert count(whole) == 859_520_964
    cut = tuple(
        f"model.diffusion_tower.unet.{one}." for one in ("up_blocks.2", "up_blocks.3", "conv_norm_out", "conv_out")
    )
    kept = {name: one for name, one in whole.items() if not name.startswith(cut)}
    assert below(shapes, "model.diffusion_tower.unet.") == kept
    assert len(below(whole, *cut)) > 0


def test_the_vae_is_stable_diffusions_encoder(shapes):
    whole = shapes_of(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        ),
        "model.diffusion_tower.vae.",
    )
    assert count(whole) == 83_653_863  # published
    kept = below(whole, "model.diffusion_tower.vae.encoder.", "model.diffusion_tower.vae.quant_conv.")
    assert below(shapes, "model.diffusion_tower.vae.") == kept


def test_clip_and_the_language_model(shapes):
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    clip = shapes_of(lambda: CLIPVisionModel(vision), "model.vision_tower.")
    assert below(shapes, "model.vision_tower.") == clip
    # A Vicuna of 32,000 tokens, and one for images; 6,738,415,616 is Llama-7B's published number of parameters.
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    )
    vicuna = shapes_of(lambda: LlamaForCausalLM(text), "")
    assert count(vicuna) == 6_738_415_616
    vicuna |= {"model.embed_tokens.weight": (32001, 4096), "lm_head.weight": (32001, 4096)}
    renamed = {name.replace("model.", "model.language_model.", 1): one for name, one in vicuna.items()}
    assert below(shapes, "model.language_model.", "lm_head.") == renamed


def test_nothing_else_is_there(shapes):
    known = (
        "model.vision_tower.",
        "model.diffusion_tower.",
        "model.multi_modal_projector.",
        "model.language_model.",
        "lm_head.",
    )
    assert [name for name in shapes if not name.startswith(known)] == []
    assert {name.split(".")[2] for name in below(shapes, "model.diffusion_tower.")} == {"vae", "unet", "caption"}
