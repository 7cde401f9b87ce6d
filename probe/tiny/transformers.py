"""Tiny random pipelines whose denoiser is a transformer, with diffusers' own classes: PixArt, Stable Diffusion 3 and Flux."""

from __future__ import annotations

import functools
from typing import Any

import torch

from probe.tiny.pipelines import ready, spread, text_encoder, tiny_words, vae

__all__ = ["T5_LENGTH", "tiny_flux", "tiny_pixart", "tiny_sd3", "tiny_t5_words"]

#: Positions that the tiny T5 is asked for; the pipelines' own defaults are 120 to 512.
T5_LENGTH = 16

_PIECES = ("▁a", "▁red", "▁circle", "▁and", "▁two", "▁blue", "▁square", "s", "▁on", "▁the", "▁grass", "▁")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZé,."


@functools.cache
def tiny_t5_words() -> Any:
    """A T5 tokenizer that knows a few words and spells the others letter by letter."""
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    # A longer piece must always win over the letters that spell it.
    known = [(one, -1.0) for one in _PIECES] + [(one, -10.0) for one in _LETTERS if one not in _PIECES]
    return T5TokenizerFast(vocab=[*special, *known], extra_ids=0, model_max_length=512)


def _t5(width: int = 16) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tiny_t5_words()), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=1, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    return T5EncoderModel(config)


def tiny_pixart(*, dtype: torch.dtype = torch.float32, size: int = 8, seed: int = 0, sigma: bool = False) -> Any:
    """A pipeline in the shape of PixArt-Alpha (or -Sigma): latents of 8 x 8 in patches of 2, two blocks of 2 heads, T5 words.

    Give it ``use_resolution_binning=False``: the sizes that it otherwise rounds to are those of the real models.
    """
    from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=16,
        caption_channels=16, sample_size=size, patch_size=2, num_embeds_ada_norm=1000, use_additional_conditions=False,
    )  # fmt: skip
    kind = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    pipeline = kind(
        vae=vae(3), text_encoder=_t5(), tokenizer=tiny_t5_words(), transformer=spread(transformer, 4.0),
        scheduler=_dpm(),
    )  # fmt: skip
    return ready(pipeline, dtype)


def tiny_sd3(
    *, dtype: torch.dtype = torch.float32, size: int = 8, seed: int = 0, dual: bool = True, t5: bool = True
) -> Any:
    """A pipeline in the shape of Stable Diffusion 3.5: latents of 8 x 8 in patches of 2, three joint blocks of 2 heads.

    Parameters
    ----------
    dual : True gives the first block a second attention, of patches alone, as Stable Diffusion 3.5 has it.
    t5 : False leaves T5 out, as many do to save memory; its states are then zeros.
    """
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(seed)
    tokenizer, other = tiny_words(), tiny_words("!")
    transformer = SD3Transformer2DModel(
        sample_size=size, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=16 + 12,
        pos_embed_max_size=size, dual_attention_layers=(0,) if dual else (), qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        vae=vae(3, shift=0.1), scheduler=_flow(), transformer=spread(transformer, 4.0),
        text_encoder=text_encoder(tokenizer, 16, projection=16), tokenizer=tokenizer,
        text_encoder_2=text_encoder(other, 24, projection=12), tokenizer_2=other,
        text_encoder_3=_t5(40) if t5 else None, tokenizer_3=tiny_t5_words() if t5 else None,
    )  # fmt: skip
    return ready(pipeline, dtype)


def tiny_flux(*, dtype: torch.dtype = torch.float32, size: int = 8, seed: int = 0, guidance: bool = False) -> Any:
    """A pipeline in the shape of Flux: latents of 8 x 8 packed two by two, two joint blocks and two single-stream blocks.

    Parameters
    ----------
    guidance : True tells the transformer the guidance scale, as Flux.1-dev's is told.
    """
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(seed)
    tokenizer = tiny_words()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=guidance, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    pipeline = FluxPipeline(
        vae=vae(3, shift=0.1), scheduler=_flow(), transformer=spread(transformer, 4.0),
        text_encoder=text_encoder(tokenizer, 16), tokenizer=tokenizer, text_encoder_2=_t5(), tokenizer_2=tiny_t5_words(),
    )  # fmt: skip
    pipeline.default_sample_size = size  # in latents; no configuration of a part states it
    return ready(pipeline, dtype)


def _flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def _dpm() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
