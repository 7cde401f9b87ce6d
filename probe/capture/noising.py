"""Text and noise as a pipeline was trained with them: its text states, and latents with the noise of one timestep."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from probe.errors import CaptureError
from probe.families import matches

__all__ = ["encode_text", "noise_at", "training_timesteps"]


def encode_text(pipeline: Any, text: str, *, device: torch.device) -> tuple[Any, ...]:
    """What the pipeline's own ``encode_prompt`` gives out for one text, without guidance."""
    given = {
        "prompt": text,
        "prompt_2": None,
        "prompt_3": None,
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    names = inspect.signature(type(pipeline).encode_prompt).parameters
    found: tuple[Any, ...] = pipeline.encode_prompt(**{name: one for name, one in given.items() if name in names})
    return found


def training_timesteps(pipeline: Any) -> range:
    """Numbers of the timesteps at which a pipeline's model was trained: 0 to 999, or 1 to 1000 in flow matching.

    Raises
    ------
    CaptureError
        If the scheduler is not one of these two kinds.
    """
    count = int(pipeline.scheduler.config.num_train_timesteps)
    return range(1, count + 1) if _is_flow(pipeline) else range(count)


def noise_at(pipeline: Any, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Latents with noise as in training: of this timestep's share, whatever sampler the pipeline has been given since.

    The scheduler is made anew from the pipeline's configuration. A sampler's own tables hold only the timesteps that it was set
    to, and may move. In flow matching latents are ``(1 - s) * latents + s * noise`` with ``s = timestep / 1000``; a "shift" moves
    which of the timesteps are visited, not what they mean.

    References
    ----------
    Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020, equation 4; Esser et al., arXiv 2403.03206, equation 1.
    """
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    config = pipeline.scheduler.config
    if not _is_flow(pipeline):
        number = torch.tensor([timestep], device=latents.device)
        return DDPMScheduler.from_config(config).add_noise(latents, noise, number)
    plain = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(config.num_train_timesteps))
    return plain.scale_noise(latents, torch.tensor([float(timestep)], device=latents.device), noise)


def _is_flow(pipeline: Any) -> bool:
    """True for flow matching, as the scheduler says and the family was trained."""
    scheduler = pipeline.scheduler
    config = scheduler.config
    flow = matches(scheduler, ("FlowMatch*",)) or bool(getattr(config, "use_flow_sigmas", False))
    trained = matches(pipeline, ("StableDiffusion3Pipeline", "FluxPipeline"))
    if flow != trained or getattr(config, "invert_sigmas", False):
        raise CaptureError(
            f"{type(pipeline).__name__} was trained with {'flow matching' if trained else 'diffusion noise'}, but its scheduler "
            f"is a {type(scheduler).__name__} that does not noise in this way; give the pipeline the scheduler that it came with."
        )
    return flow
