"""What a DiffLMM computes, written out plainly a second time: tensors by their released names, a whole U-Net with a hook."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

# OpenAI's CLIP.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def square(image: Image.Image, side: int) -> torch.Tensor:
    """The picture in [0, 1] (3, side, side): pasted on a square of CLIP's mean colour, then resized bicubically."""
    width, height = image.size
    longest = max(width, height)
    board = Image.new("RGB", (longest, longest), tuple(int(one * 255) for one in MEAN.flatten().tolist()))
    board.paste(image, ((longest - width) // 2, (longest - height) // 2))
    resized = np.asarray(board.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 255


def shrink(pixels: torch.Tensor, side: int) -> torch.Tensor:
    return functional.interpolate(pixels[None], size=(side, side), mode="bilinear", align_corners=False)[0]


def released_pixels(image: Image.Image, *, large: int, small: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(for CLIP, for the VAE) as the released code makes them: CLIP's normalisation, taken for [-1, 1] and normalised again."""
    x = (square(image, large) - MEAN) / STD
    return (shrink(x, small) * 0.5 + 0.5 - MEAN) / STD, x


def intended_pixels(image: Image.Image, *, large: int, small: int) -> tuple[torch.Tensor, torch.Tensor]:
    p = square(image, large)
    return (shrink(p, small) - MEAN) / STD, p * 2 - 1


@torch.no_grad()
def visual_tokens(
    tensors: dict[str, torch.Tensor],
    clip: Any,
    unet: Any,
    vae: Any,
    pixels: tuple[torch.Tensor, torch.Tensor],
    *,
    noise: tuple[torch.Tensor, torch.Tensor],
    block: int = 1,
    timestep: int = 100,
    empty_prompt: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Visual tokens (patch, width) of one picture. ``tensors`` are named as released, after "mm_projector."."""
    small, large = pixels
    c = clip(small[None], output_hidden_states=True).hidden_states[-2][:, 1:]
    hidden = functional.gelu(c @ tensors["clip_projector.0.weight"].T + tensors["clip_projector.0.bias"])
    text = hidden @ tensors["clip_projector.2.weight"].T + tensors["clip_projector.2.bias"]
    text = text + tensors["clip_pe"] + empty_prompt
    moments = vae.quant_conv(vae.encoder(large[None]))
    mean, logvar = moments.chunk(2, dim=1)
    z = (mean + torch.exp(logvar.clamp(-30, 20) / 2) * noise[0]) * vae.config.scaling_factor
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)[timestep]
    noisy = kept.sqrt() * z + (1 - kept).sqrt() * noise[1]
    seen = []
    hook = unet.up_blocks[block].register_forward_hook(lambda module, args, output: seen.append(output))
    unet(noisy, timestep, encoder_hidden_states=text)
    hook.remove()
    (features,) = seen
    rows = features[0].flatten(1).T  # (patch, channel)
    normed = functional.layer_norm(
        rows, rows.shape[-1:], tensors["sd_norm_layer.weight"], tensors["sd_norm_layer.bias"]
    )
    kernel = tensors["sd_proj_layer.0.weight"][:, :, 0, 0]
    both = torch.cat([functional.gelu(normed @ kernel.T + tensors["sd_proj_layer.0.bias"]), c[0]], dim=1)
    inner = functional.gelu(both @ tensors["linear.0.weight"].T + tensors["linear.0.bias"])
    return inner @ tensors["linear.2.weight"].T + tensors["linear.2.bias"] + tensors["vt_pe"]


def released_names(model: Any) -> dict[str, torch.Tensor]:
    """A model's own trained tensors, under their released names."""
    caption, projector = model.model.diffusion_tower.caption, model.model.multi_modal_projector
    layers = {
        "clip_projector.0": caption.linear_1,
        "clip_projector.2": caption.linear_2,
        "sd_norm_layer": projector.norm,
        "sd_proj_layer.0": projector.conv,
        "linear.0": projector.linear_1,
        "linear.2": projector.linear_2,
    }
    found = {f"{name}.{one}": getattr(layer, one) for name, layer in layers.items() for one in ("weight", "bias")}
    return found | {"clip_pe": caption.position, "vt_pe": projector.position}
