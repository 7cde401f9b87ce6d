"""Tiny random diffusion pipelines, with diffusers' own classes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

__all__ = ["LENGTH", "ready", "spread", "text_encoder", "tiny_sd", "tiny_sdxl", "tiny_words", "vae"]

_WORDS = ("a", "red", "circle", "and", "two", "blue", "squares", "on", "the", "grass", "caf", "é", ",")
LENGTH = 20  # positions of the text encoders


@functools.cache
def tiny_words(pad: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer that knows a few words and spells the others letter by letter."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges, pieces = [], []
    for word in _WORDS:
        parts = [
            *[bytes_to_unicode()[byte] for byte in word.encode()[:-1]],
            bytes_to_unicode()[word.encode()[-1]] + "</w>",
        ]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    known = dict.fromkeys([*letters, *(one + "</w>" for one in letters), *pieces, "<|startoftext|>", "<|endoftext|>"])
    vocabulary = {one: number for number, one in enumerate(known)}
    merges = list(dict.fromkeys(merges))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=LENGTH)


def spread(model: nn.Module, scale: float) -> nn.Module:
    """The model with larger attention weights: as initialised its heads attend evenly, and swapped ones pass unnoticed."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("to_q", "to_k", "q_proj", "k_proj")) and weight.ndim == 2:
                weight.mul_(scale)
    return model


def text_encoder(tokenizer: Any, width: int, *, projection: int | None = None) -> Any:
    """CLIP's, which gives the text's own embedding where ``projection`` says how long it is."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=projection or 16, initializer_range=0.3,
    )  # fmt: skip
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config)


def vae(depth: int, *, shift: float | None = None) -> Any:
    """An autoencoder that makes one latent of ``2 ** (depth - 1)`` pixels a side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth, up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=(8,) * depth, layers_per_block=1, latent_channels=4, norm_num_groups=4,
        shift_factor=shift,
    )  # fmt: skip


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def tiny_sd(*, dtype: torch.dtype = torch.float32, size: int | tuple[int, int] = 8, seed: int = 0, **unet: Any) -> Any:
    """A pipeline in the shape of Stable Diffusion 1.5: latents of 8 x 8 for 32 x 32 pixels, three levels of 2 heads."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(seed)
    tokenizer = tiny_words()
    options = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 24, 24), "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 16,
        "norm_num_groups": 8, "sample_size": size,
    }  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae(3), text_encoder=text_encoder(tokenizer, 16), tokenizer=tokenizer,
        unet=spread(UNet2DConditionModel(**options | unet), 2.5), scheduler=_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return ready(pipeline, dtype)


def tiny_sdxl(*, dtype: torch.dtype = torch.float32, size: int = 8, seed: int = 0, zeros: bool = True) -> Any:
    """A pipeline in the shape of SDXL: two text encoders, 1 to 3 transformer blocks in a place, head counts that differ."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(seed)
    tokenizer, other = tiny_words(), tiny_words("!")
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 16, 32), transformer_layers_per_block=(1, 1, 3), layers_per_block=1,
        attention_head_dim=(1, 2, 4), cross_attention_dim=16 + 24, use_linear_projection=True, norm_num_groups=8,
        sample_size=size, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=vae(3), text_encoder=text_encoder(tokenizer, 16), tokenizer=tokenizer,
        text_encoder_2=text_encoder(other, 24, projection=12), tokenizer_2=other,
        unet=spread(unet, 2.5), scheduler=_scheduler(), force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
    return ready(pipeline, dtype)


def ready(pipeline: Any, dtype: torch.dtype) -> Any:
    """The same pipeline with all of its models in evaluation mode and of that number type, and no bar on the screen."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            (part if part.dtype == dtype else part.to(dtype)).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
