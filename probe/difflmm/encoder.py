"""The frozen diffusion side: VAE, noise and a U-Net that is cut after the block it is needed for, with an implicit caption."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from probe.difflmm.configuration import DiffLMMConfig, DiffusionConfig, require_draws
from probe.errors import InputError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

__all__ = ["DiffusionTower", "ImplicitCaption", "cut_unet", "cut_vae", "draw_noise"]


class ImplicitCaption(nn.Module):
    """What the U-Net reads instead of a prompt, made from CLIP's patches: (batch, patch, caption width).

    ``Linear, GELU, Linear`` and one learned position a patch; the text slot holds as many tokens as there are patches.
    """

    def __init__(self, config: DiffLMMConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        diffusion: Any = config.diffusion_config
        width = diffusion.caption_hidden_size
        self.linear_1 = nn.Linear(vision.hidden_size, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros(config.image_seq_length, width))

    def forward(self, patches: Tensor) -> Tensor:
        """The caption (batch, patch, caption width) of CLIP's patches (batch, patch, width)."""
        return self.linear_2(self.act(self.linear_1(patches))) + self.position


class DiffusionTower(nn.Module):
    """Features (batch, channel, row, col) of pictures, from one noising and one pass through a cut U-Net.

    ``vae`` and ``unet`` are diffusers' own modules and frozen; gradients pass through the U-Net to ``caption`` alone.

    References
    ----------
    Cao, Gui, Wang, arXiv 2410.08209, section 3.3; Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models,
    CVPR 2022.
    """

    def __init__(self, config: DiffLMMConfig) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        super().__init__()
        diffusion: Any = config.diffusion_config
        self.config: DiffusionConfig = diffusion
        self.vae = cut_vae(AutoencoderKL.from_config(diffusion.vae))
        self.unet = cut_unet(UNet2DConditionModel.from_config(diffusion.unet), diffusion.block)
        self.caption = ImplicitCaption(config)

    def forward(self, pixels: Tensor, patches: Tensor) -> Tensor:
        """The features of pictures.

        Parameters
        ----------
        pixels : (batch, 3, row, col), as the VAE is to see them.
        patches : (batch, patch, width), CLIP's.

        Raises
        ------
        ModelError
            If the timestep, the seed or the number of draws is out of range.
        InputError
            If the pictures are not of the configured size.
        """
        self.require_ready(pixels)
        settings = self.config
        step = torch.tensor(settings.timestep, device=pixels.device)
        caption = self.caption(patches).to(self.unet.dtype)
        moments = self._moments(pixels)
        total: Tensor | None = None
        for draw in range(settings.first_draw, settings.first_draw + settings.draws):
            latent = self._noised(*moments, draw=draw).to(self.unet.dtype)
            found = self.unet(latent, step, encoder_hidden_states=caption, return_dict=False)[0]
            total = found if total is None else total + found
        assert total is not None  # for the type checker: there is at least one draw
        return total / settings.draws

    def require_ready(self, pixels: Tensor) -> None:
        """Nothing, if the settings can be used and the pictures are of their size; raises what a forward pass would."""
        require_draws(self.config)
        side = self.config.image_size
        if tuple(pixels.shape[1:]) != (3, side, side):
            raise InputError(
                f"diffusion_pixel_values has shape {tuple(pixels.shape)}, expected (picture, 3, {side}, {side}); prepare pictures "
                "with the model's own processor."
            )

    def _moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, scaled as the U-Net expects; never in less than single precision."""
        kind = next(self.vae.parameters()).dtype
        # Training computes in half precision wherever it may, which the VAE's own number type would not stop.
        with torch.autocast(pixels.device.type, enabled=False):
            posterior = self.vae.encode(pixels.to(kind)).latent_dist
        precise = torch.promote_types(kind, torch.float32)
        shift = self.vae.config.get("shift_factor") or 0.0
        factor = self.vae.config.scaling_factor
        return (posterior.mean.to(precise) - shift) * factor, posterior.std.to(precise) * factor

    def _noised(self, mean: Tensor, std: Tensor, *, draw: int) -> Tensor:
        """The latents of one draw at the configured timestep."""
        settings = self.config
        first, second = (one.to(mean) for one in draw_noise(tuple(mean.shape[1:]), seed=settings.seed, draw=draw))
        latent = mean if settings.posterior == "mean" else mean + std * first
        if settings.timestep == 0:
            return latent  # the schedule's first step would add a little noise; no noise is what a timestep of 0 is asked for
        schedule = _scheduler(json.dumps(settings.scheduler, sort_keys=True))
        steps = torch.full((len(latent),), settings.timestep, device=latent.device)
        return schedule.add_noise(latent, second.expand_as(latent), steps)


def draw_noise(shape: tuple[int, ...], *, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    """Two standard normal tensors ``(1, *shape)`` on the CPU: for the VAE's posterior, and for the noising.

    They depend on the seed and the draw's number alone, never on the device, the image or its place in a batch.
    """
    state = int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(state)
    first, second = (torch.randn(1, *shape, generator=generator, dtype=torch.float32, device="cpu") for _ in range(2))
    return first, second


def cut_unet(unet: UNet2DConditionModel, block: int) -> UNet2DConditionModel:
    """The same U-Net, changed so that its output is that of up block number ``block``; what comes after is dropped."""
    unet.up_blocks = unet.up_blocks[: block + 1]
    unet.conv_norm_out = None
    unet.conv_out = nn.Identity()
    return unet


def cut_vae(vae: AutoencoderKL) -> AutoencoderKL:
    """The same VAE without its decoder, which nothing here runs."""
    vae.decoder = None
    vae.post_quant_conv = None
    return vae


@functools.lru_cache(maxsize=8)
def _scheduler(settings: str) -> DDIMScheduler:
    """The noise schedule of a configuration, kept outside the model: it has no weights, and on the meta device no numbers."""
    from diffusers import DDIMScheduler

    with torch.device("cpu"):
        return DDIMScheduler.from_config(json.loads(settings))
