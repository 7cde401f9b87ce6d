"""DiffLMM's conditioning: a U-Net that reads an implicit caption, one token a CLIP patch, instead of words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.assemble import normalisation_note, seed_of
from probe.capture.conditioning import Tell
from probe.capture.denoisers import denoiser_of
from probe.capture.geometry import Preparation, preparation_of
from probe.capture.hooks import watch_forward
from probe.capture.prompts import Keys
from probe.capture.unets import find_unet
from probe.errors import CaptureError, InputError
from probe.families import family_of
from probe.images import image_size, read_image

__all__ = ["CaptionConditioning"]

# Half a grey level of 255, in pixels that span 2 (and about 4 as released).
_SAME_PIXELS = 0.02


class CaptionConditioning:
    """The conditioning of a DiffLMM's U-Net, for a ``DiffusionRecorder``.

    >>> with DiffusionRecorder(CaptionConditioning(model, processor)) as recorder:
    ...     model.generate(**inputs)

    Each pass of a picture through the diffusion side is one pass, with one forward of the U-Net for each draw of noise.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.language_model, self.processor = model, processor
        unet = find_unet(model)
        self.denoiser = denoiser_of(unet)
        name = next(name for name, one in model.named_modules() if one is unet)
        self.tower: nn.Module = model.get_submodule(name.rpartition(".")[0])
        self.family = family_of(model).name
        self.model = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
        self.prompt = ""
        self.seed: int | None = seed_of(model.config)
        self.pixels: Tensor | None = None
        self._in_call = False

    @contextmanager
    def watch(self, begin: Tell, end: Tell) -> Iterator[None]:
        """A context: ``begin()`` when the diffusion side is given a picture, ``end()`` when it has its features."""
        thread = threading.get_ident()

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not self.tower or threading.get_ident() != thread:
                return
            begin()
            pixels = args[0] if args else kwargs.get("pixels")
            if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[0] != 1:
                shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
                raise CaptureError(
                    f"The diffusion side was given pictures of shape {shape}; one, as (1, 3, row, col), can be recorded."
                )
            self.pixels, self._in_call = pixels.detach(), True

        def after(module: nn.Module, output: Any) -> None:
            if module is self.tower and threading.get_ident() == thread and self._in_call:
                self._in_call = False
                end()

        with watch_forward([self.tower], before=before, after=after):
            yield

    def under_way(self) -> bool:
        """True while the diffusion side works on a picture."""
        return self._in_call

    def read(self, hidden: Tensor) -> tuple[int, Keys]:
        """The only row of the batch, and one token for each state of the caption."""
        if hidden.shape[0] != 1:
            raise CaptureError(
                f"The U-Net was given {hidden.shape[0]} captions; one picture at a time can be recorded."
            )
        count = hidden.shape[1]
        names = tuple(f"caption {number}" for number in range(count))
        places = tuple((number,) for number in range(count))
        return 0, Keys("caption token", "", names, (-1,) * count, ((0, 0),) * count, places, tuple(range(count)))

    def preparation(self, latent: tuple[int, int], image: Any) -> Preparation:
        """How the processor made the U-Net's picture, checked against the pixels that the diffusion side saw."""
        assert self.pixels is not None  # for the type checker: a finished pass had a picture
        frame = (int(self.pixels.shape[-2]), int(self.pixels.shape[-1]))
        if image is None:
            return Preparation.unknown(frame)
        picture = read_image(image)
        made = preparation_of(self.processor, image_size(picture), family=family_of(self.language_model))
        again = self.processor.image_processor(images=picture, return_tensors="pt")["diffusion_pixel_values"]
        again = self._as_fed(again).to(self.pixels.device, torch.float32)
        off = float((again - self.pixels.float()).abs().max()) if again.shape == self.pixels.shape else float("inf")
        if off > _SAME_PIXELS:
            raise InputError(
                f"The image given to result() is not the one that the U-Net saw: the processor makes other pixels of it (they "
                f"differ by up to {off:.2g}). Give the same image, turned the same way: EXIF orientation is applied here "
                "(probe.read_image)."
            )
        # What the processor makes for CLIP and for the U-Net shows the same part of the image at two sizes.
        larger = (frame[0] / made.frame[0], frame[1] / made.frame[1])
        scale, offset = ((pair[0] * larger[0], pair[1] * larger[1]) for pair in (made.scale, made.offset))
        steps = (
            f"{made.steps}, at {frame[0]} x {frame[1]} for the U-Net{normalisation_note(self.language_model.config)}"
        )
        return Preparation(steps, made.image_size, frame, scale, offset)

    def _as_fed(self, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] as the model feeds them on; the released weights were trained on others."""
        config = self.language_model.config
        if getattr(config, "normalisation", "intended") != "as-released":
            return pixels
        mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (config.image_mean, config.image_std))
        return ((pixels + 1) / 2 - mean) / std
