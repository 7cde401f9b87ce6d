"""``lab/diffusion``: a real Stable Diffusion of three million parameters that learned to draw scenes from captions.

>>> from probe.lab.storage import folder
>>> from diffusers import StableDiffusionPipeline
>>> pipeline = StableDiffusionPipeline.from_pretrained(folder("lab/diffusion"))   # doctest: +SKIP
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probe.lab.storage import halved, readable, without_progress_bars

__all__ = [
    "DiffusionSettings",
    "build_autoencoder",
    "build_unet",
    "make_pipeline",
    "make_scheduler",
    "save_pipeline",
]


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """How big the model is; the defaults are those of ``lab/diffusion``."""

    image: int = 64
    """Height and width in pixels of what is drawn."""
    pixel_widths: tuple[int, ...] = (16, 32, 64)
    """Channels of the autoencoder at each resolution; one latent is 2 ** (number - 1) pixels high and wide."""
    latents: int = 4
    """Channels of the latents."""
    widths: tuple[int, ...] = (48, 64, 64)
    """Channels of the U-Net at each resolution: latents 16, 8 and 4 cells wide. Three, so that the first block on the way up
    ends on the 8 x 8 grid of lab/clip's patches, where DiffLMM needs the features."""
    blocks: int = 1
    """Residual and attention blocks at each resolution on the way down; one more on the way up."""
    heads: int = 4
    groups: int = 8
    """Groups of every group normalisation."""

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent."""
        return 2 ** (len(self.pixel_widths) - 1)


def build_autoencoder(*, settings: DiffusionSettings | None = None, seed: int = 0) -> Any:
    """An `AutoencoderKL` with random weights, in float32; the same for the same seed."""
    from diffusers import AutoencoderKL

    settings = settings or DiffusionSettings()
    depth = len(settings.pixel_widths)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * depth,
            up_block_types=("UpDecoderBlock2D",) * depth,
            block_out_channels=settings.pixel_widths,
            layers_per_block=1,
            latent_channels=settings.latents,
            norm_num_groups=settings.groups,
            sample_size=settings.image,
        )


def build_unet(*, text_width: int, settings: DiffusionSettings | None = None, seed: int = 0) -> Any:
    """A `UNet2DConditionModel` with random weights, in float32, text cross-attention at every resolution.

    The same for the same seed. `text_width` is the length of the text encoder's states.
    """
    from diffusers import UNet2DConditionModel

    settings = settings or DiffusionSettings()
    depth = len(settings.widths)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=settings.image // settings.factor,
            in_channels=settings.latents,
            out_channels=settings.latents,
            down_block_types=("CrossAttnDownBlock2D",) * depth,
            up_block_types=("CrossAttnUpBlock2D",) * depth,
            block_out_channels=settings.widths,
            layers_per_block=settings.blocks,
            cross_attention_dim=text_width,
            attention_head_dim=settings.heads,  # diffusers' name for the number of heads
            norm_num_groups=settings.groups,
        )


def make_scheduler() -> Any:
    """A `DDIMScheduler` with the noise of Stable Diffusion 1.5."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
        timestep_spacing="leading",
    )


def make_pipeline(autoencoder: Any, unet: Any, text_encoder: Any, tokenizer: Any) -> Any:
    """A `StableDiffusionPipeline` of these parts, with the scheduler of `make_scheduler`."""
    with without_progress_bars():  # which the import writes over, too
        from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(out: str | Path, pipeline: Any) -> None:
    """Nothing; writes the pipeline to `out` in the layout of diffusers, with the weights in half precision.

    The text encoder's configuration still says float32, and diffusers loads in float32 unless asked otherwise.
    """
    # torch's own `half`: diffusers' warns, whatever the model.
    autoencoder, unet = (torch.nn.Module.half(copy.deepcopy(part)) for part in (pipeline.vae, pipeline.unet))
    with without_progress_bars():
        make_pipeline(autoencoder, unet, pipeline.text_encoder, pipeline.tokenizer).save_pretrained(out)
        pipeline.text_encoder.save_pretrained(Path(out) / "text_encoder", state_dict=halved(pipeline.text_encoder))
    readable(out)
