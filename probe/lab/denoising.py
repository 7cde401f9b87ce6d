"""Training ``lab/diffusion``: to tell the noise from the picture, given the caption. No place is ever part of the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from probe.errors import ModelError
from probe.lab.autoencoding import AUTOENCODER_STEPS, canvases, load_autoencoder, sizes, train_autoencoder
from probe.lab.captions import Captions
from probe.lab.diffusion import DiffusionSettings, build_unet, make_pipeline, save_pipeline
from probe.lab.scenes import Scene
from probe.lab.storage import WEIGHTS_FILE, folder, without_progress_bars
from probe.lab.trainers import Course, OnSnapshot, OnStep, fit

__all__ = ["NoisyLatents", "train_diffusion"]

STEPS = 2500
BATCH = 32
HIGHEST_RATIO = 5.0  # of signal to noise: beyond it a timestep counts less
EMPTY = 0.1  # share of captions left out, so that guidance knows the picture without one


class NoisyLatents:
    """A batch as the U-Net takes it, with the noise that is to be found and the weight of each scene in the loss.

    The timestep, the noise and whether the caption is left out depend on the seed and the scene's number alone. The
    autoencoder and the text encoder are used here and not in the model, so that they run while the U-Net learns.
    """

    def __init__(self, pipeline: Any, *, seed: int) -> None:
        self.pipeline, self.seed = pipeline, seed

    def __call__(self, examples: Sequence[Scene]) -> dict[str, torch.Tensor]:
        timesteps, captions, noises = [], [], []
        unet = self.pipeline.unet.config
        shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        for example in examples:
            rng = np.random.default_rng([self.seed, example.index])
            timesteps.append(int(rng.integers(self.pipeline.scheduler.config.num_train_timesteps)))
            captions.append("" if rng.uniform() < EMPTY else example.caption)
            noises.append(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)))
        return noisy_batch(self.pipeline, examples, captions, torch.tensor(timesteps), torch.stack(noises))


@torch.no_grad()
def noisy_batch(
    pipeline: Any, examples: Sequence[Scene], captions: Sequence[str], timesteps: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Noisy latents (scene, channel, row, col), timesteps and weights (scene,), text states (scene, token, width), noise."""
    vae = pipeline.vae
    latents = vae.encode(canvases(examples)).latent_dist.mean * vae.config.scaling_factor
    return {
        "sample": pipeline.scheduler.add_noise(latents, noise, timesteps),
        "timestep": timesteps,
        "weight": noise_weights(pipeline.scheduler, timesteps),
        "encoder_hidden_states": text_states(pipeline, captions),
        "noise": noise,
    }


def noise_weights(scheduler: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """The weight (scene,) of each timestep in the loss: 1 where there is much noise, less where there is little.

    The smallest noise cannot be told from texture, and would drown what is learned of shapes and colours.

    References
    ----------
    Hang et al. (2023), Efficient Diffusion Training via Min-SNR Weighting Strategy, Sect. 3.4, for noise as the target.
    """
    from diffusers.training_utils import compute_snr

    ratio: torch.Tensor = compute_snr(scheduler, timesteps)
    return ratio.clamp(max=HIGHEST_RATIO) / ratio


def text_states(pipeline: Any, captions: Sequence[str]) -> torch.Tensor:
    """The text encoder's states (caption, token, width), padded to the longest length as Stable Diffusion does."""
    words = pipeline.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    states: torch.Tensor = pipeline.text_encoder(words["input_ids"]).last_hidden_state
    return states


class DenoisingLoss(nn.Module):
    """A U-Net with the error of the noise that it finds as its output."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        weight: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        noise: torch.Tensor,
    ) -> dict[str, Any]:
        """The weighted loss (), and the error without weights as a plain number."""
        found = self.unet(sample, timestep, encoder_hidden_states).sample
        error = (found - noise).square().mean(dim=(1, 2, 3))
        return {"loss": (weight * error).mean(), "squared_error": float(error.detach().mean())}


def train_diffusion(
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = BATCH,
    on_snapshot: OnSnapshot | None = None,
    on_step: OnStep | None = None,
    resume: bool = True,
    save_every: int = 100,
    settings: DiffusionSettings | None = None,
    clip: str | Path = "lab/clip",
    autoencoder_steps: int = AUTOENCODER_STEPS,
) -> Path:
    """The folder `out`, with a `StableDiffusionPipeline` in the layout of diffusers and the loss curve ``loss.csv``.

    >>> train_diffusion("runs/diffusion", on_step=lambda step, loss: print(step, loss))  # doctest: +SKIP

    First the autoencoder is trained, in ``out/autoencoder``; then, on its latents, the U-Net. The text encoder is that
    of `clip` and stays as it is. Seeds, killed runs and ``OMP_WAIT_POLICY`` are as in `train_llava`.

    Parameters
    ----------
    steps : Of the U-Net.
    on_snapshot : Called with the step, the pipeline with its U-Net in eval mode, the pipeline's image processor and
        the loss of that step's batch, at the steps of `snapshot_steps` that this call passes.
    on_step : Called with the step and its loss after every step of the U-Net, to show progress.
    resume : Go on from a checkpoint in `out`; otherwise start again.
    save_every : Steps between two checkpoints.
    settings : Another size of model, for tests.
    clip : "lab/clip", or a folder that `train_clip` wrote.
    autoencoder_steps : Of the autoencoder.

    Raises
    ------
    InputError
        No steps or an empty batch, or `out` holds a run with other settings.
    ModelError
        No weights in `clip`.

    References
    ----------
    Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models, Eq. 3.
    """
    settings = settings or DiffusionSettings()
    out, clip = Path(out), Path(clip) if Path(clip).is_dir() else folder(str(clip))
    course = Course(steps=steps, seed=seed, batch_size=batch_size, save_every=save_every, measures=("squared_error",))
    text_encoder, tokenizer = text_parts(clip)
    first: dict[str, Any] = {"seed": seed, "resume": resume, "save_every": save_every, "settings": settings}
    train_autoencoder(out / "autoencoder", steps=autoencoder_steps, **first)

    def make() -> tuple[Any, Any]:
        unet = build_unet(text_width=text_encoder.config.hidden_size, settings=settings, seed=seed)
        return DenoisingLoss(unet), make_pipeline(load_autoencoder(out / "autoencoder"), unet, text_encoder, tokenizer)

    return fit(
        out,
        course,
        plan={
            "steps": steps,
            "seed": seed,
            "batch_size": batch_size,
            "model": sizes(settings, asdict(settings)),
            "text_encoder": hashlib.sha256((clip / WEIGHTS_FILE).read_bytes()).hexdigest(),
        },
        make=make,
        examples=lambda start: Captions(size=settings.image, seed=seed, start=start),
        collator=lambda pipeline: NoisyLatents(pipeline, seed=seed),
        save=lambda model, pipeline: save_pipeline(out, pipeline),
        on_snapshot=on_snapshot
        and (lambda step, model, pipe, loss: on_snapshot(step, pipe, pipe.image_processor, loss)),
        on_step=on_step,
        resume=resume,
    )


def text_parts(clip: Path) -> tuple[Any, Any]:
    """The text encoder of a CLIP in a folder, as a `CLIPTextModel` that is not trained any further, and its tokenizer."""
    from transformers import CLIPModel, CLIPProcessor, CLIPTextModel

    if not (clip / WEIGHTS_FILE).is_file():
        raise ModelError(f"There is no CLIP in {clip}: {WEIGHTS_FILE} is missing. Give a folder that train_clip wrote.")
    with without_progress_bars():
        whole = CLIPModel.from_pretrained(clip, dtype=torch.float32)
        tokenizer = CLIPProcessor.from_pretrained(clip).tokenizer
    text = CLIPTextModel(whole.config.text_config)
    text.load_state_dict(whole.text_model.state_dict())
    return text.requires_grad_(False).eval(), tokenizer
