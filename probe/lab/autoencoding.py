"""Training the autoencoder of ``lab/diffusion``: pictures of scenes, and nothing that is said about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from probe.lab.captions import Captions
from probe.lab.diffusion import DiffusionSettings, build_autoencoder
from probe.lab.scenes import Scene
from probe.lab.storage import readable
from probe.lab.trainers import Course, OnStep, fit

__all__ = ["AUTOENCODER_STEPS", "Pictures", "canvases", "train_autoencoder"]

AUTOENCODER_STEPS = 1500
BATCH = 8
# The weight of the divergence from a normal distribution, as an average over latents, beside the mean squared error:
# little, so that pictures come back as they were, and enough that near latents are near pictures.
DIVERGENCE = 1e-4
SIZES = ("image", "pixel_widths", "latents", "groups")  # the settings that the autoencoder depends on
MEASURED = 64  # scenes whose latents give the scale
CHECK = 1_000_000  # number of the first of them: beyond those that any training here reaches


def canvases(examples: Sequence[Scene]) -> torch.Tensor:
    """Pictures as Stable Diffusion takes them: (picture, channel, row, col), float32, -1 to 1."""
    stack = np.stack([np.asarray(example.image) for example in examples]).astype(np.float32) / 127.5 - 1.0
    return torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))


class Pictures:
    """A batch of pictures, with the noise that the autoencoder's latents are drawn with."""

    def __init__(self, *, seed: int, settings: DiffusionSettings) -> None:
        side = settings.image // settings.factor
        self.seed, self.shape = seed, (settings.latents, side, side)

    def __call__(self, examples: Sequence[Scene]) -> dict[str, torch.Tensor]:
        return {
            "pictures": canvases(examples),
            "noise": torch.stack([scene_noise(self.shape, seed=self.seed, index=one.index) for one in examples]),
        }


def scene_noise(shape: tuple[int, ...], *, seed: int, index: int) -> torch.Tensor:
    """Normal noise of this shape that depends on the seed and the scene's number alone."""
    return torch.from_numpy(np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32))


class ReconstructionLoss(nn.Module):
    """An autoencoder with its loss as its output: the mean squared error and a little of the divergence."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pictures: torch.Tensor, noise: torch.Tensor) -> dict[str, Any]:
        """The loss (), and its part that is the squared error as a plain number."""
        latents = self.autoencoder.encode(pictures).latent_dist
        back = self.autoencoder.decode(latents.mean + latents.std * noise).sample
        error = (back - pictures).square().mean()
        divergence = 0.5 * (latents.mean.square() + latents.var - 1.0 - latents.logvar).mean()
        return {"loss": error + DIVERGENCE * divergence, "squared_error": float(error.detach())}


def train_autoencoder(
    out: str | Path,
    *,
    steps: int = AUTOENCODER_STEPS,
    seed: int = 0,
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
    resume: bool = True,
    save_every: int = 100,
    settings: DiffusionSettings | None = None,
) -> Path:
    """The folder `out` with the trained `AutoencoderKL` and its loss curve; its ``scaling_factor`` is measured.

    As Stable Diffusion has it, latents times ``scaling_factor`` have a standard deviation of 1.

    Raises
    ------
    InputError
        As `train_diffusion` does.
    """
    settings = settings or DiffusionSettings()
    out = Path(out)

    def save(model: ReconstructionLoss, processor: Any) -> None:
        model.autoencoder.register_to_config(scaling_factor=1.0 / spread(model.autoencoder, seed, settings))
        model.autoencoder.save_pretrained(out)
        readable(out)

    return fit(
        out,
        Course(
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            save_every=save_every,
            measures=("squared_error",),
        ),
        plan={"steps": steps, "seed": seed, "batch_size": batch_size, "model": sizes(settings, SIZES)},
        make=lambda: (ReconstructionLoss(build_autoencoder(settings=settings, seed=seed)), None),
        examples=lambda start: Captions(size=settings.image, seed=seed, start=start),
        collator=lambda processor: Pictures(seed=seed, settings=settings),
        save=save,
        on_step=on_step,
        resume=resume,
    )


def load_autoencoder(home: Path) -> Any:
    """The `AutoencoderKL` in a folder, float32, eval mode, without a note of where the folder was."""
    from diffusers import AutoencoderKL

    saved = AutoencoderKL.from_pretrained(home)
    config = {name: value for name, value in saved.config.items() if name != "_name_or_path"}
    autoencoder = AutoencoderKL.from_config(config)
    autoencoder.load_state_dict(saved.state_dict())
    return autoencoder.requires_grad_(False).eval()


def sizes(settings: DiffusionSettings, names: Iterable[str]) -> dict[str, Any]:
    """These settings as they look after JSON, which knows lists alone."""
    values = {name: getattr(settings, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def spread(autoencoder: Any, seed: int, settings: DiffusionSettings) -> float:
    """The standard deviation of the autoencoder's latents over scenes that it was not trained on."""
    examples = list(islice(Captions(size=settings.image, seed=seed, start=CHECK), MEASURED))
    with torch.no_grad():
        return float(autoencoder.encode(canvases(examples)).latent_dist.mean.std())
