"""What denoises in a diffusion model, a U-Net or a transformer: its attention layers, its patches, and what a pass is given."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.hooks import require_uncompiled
from probe.capture.places import Place
from probe.capture.unets import grid_shape, level_of, require_seen, unet_attention
from probe.errors import CaptureError
from probe.families import FAMILIES, Family, matches

__all__ = ["Denoiser", "Pass", "denoiser_of"]


@dataclass(frozen=True)
class Pass:
    """What a denoiser is given for one pass.

    Attributes
    ----------
    hidden : (batch, key, channel) text states.
    batch : rows of latents.
    cells : (rows, cols) of the finest patches there are.
    timestep : the scheduler's number; schedules that lie between its numbers are rounded.
    """

    hidden: Tensor
    batch: int
    cells: tuple[int, int]
    timestep: int


class Denoiser(ABC):
    """One live denoiser, and what its kind has in common.

    Attributes
    ----------
    module : the model itself.
    family : what is declared of its kind.
    side : latents along each side of one of its finest patches.
    cell : what one calls these patches in an error: "latents" or "patches".
    """

    side: int = 1
    cell: str = "latents"

    def __init__(self, module: Any, family: Family) -> None:
        self.module, self.family = module, family

    @abstractmethod
    def attention(self, place: Place) -> list[tuple[str, nn.Module]]:
        """Name and module of every attention layer of a place, in the order in which they run."""

    @abstractmethod
    def read(self, given: dict[str, Any]) -> Pass:
        """What it is given, from the arguments of its forward."""

    @abstractmethod
    def size(self, pipeline: Any) -> tuple[int, int]:
        """(rows, cols) of the latents that it was trained on."""

    @abstractmethod
    def run(self, pipeline: Any, states: tuple[Any, ...], latents: Tensor, timestep: int) -> None:
        """One pass over (1, channel, row, col) noised latents with what ``encode_prompt`` gave out, and without guidance."""

    def grid(self, patches: int, cells: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """How often the finest patches were halved in a layer with that many, and the layer's (rows, cols)."""
        if patches != cells[0] * cells[1]:
            raise CaptureError(
                f"A layer has {patches} patches where {cells[0]} x {cells[1]} were given, so they cannot be placed."
            )
        return 0, cells

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What its forward was given, by name."""
        return dict(zip(inspect.signature(self.module.forward).parameters, args, strict=False)) | kwargs


class _UNet(Denoiser):
    """The U-Net of Stable Diffusion 1, 2 and XL, and of a DiffLMM."""

    def attention(self, place: Place) -> list[tuple[str, nn.Module]]:
        return unet_attention(self.module, place)

    def read(self, given: dict[str, Any]) -> Pass:
        sample = given["sample"]
        return Pass(
            given["encoder_hidden_states"], len(sample), _shape(sample), _number(given["timestep"], type(self.module))
        )

    def size(self, pipeline: Any) -> tuple[int, int]:
        sample = self.module.config.sample_size
        return (sample, sample) if isinstance(sample, int) else (int(sample[0]), int(sample[1]))

    def grid(self, patches: int, cells: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        level = level_of(patches, cells)
        return level, grid_shape(cells, level)

    def run(self, pipeline: Any, states: tuple[Any, ...], latents: Tensor, timestep: int) -> None:
        self.module(
            latents,
            torch.tensor(timestep, device=latents.device),
            encoder_hidden_states=states[0],
            added_cond_kwargs=self._added(pipeline, states, latents),
            return_dict=False,
        )

    def _added(self, pipeline: Any, states: tuple[Any, ...], latents: Tensor) -> dict[str, Tensor] | None:
        """What SDXL's U-Net is told besides: the pooled text, and a picture of full size that was not cropped."""
        if self.module.config.addition_embed_type != "text_time":
            return None
        factor = int(pipeline.vae_scale_factor)
        height, width = latents.shape[-2] * factor, latents.shape[-1] * factor
        times = torch.tensor([[height, width, 0, 0, height, width]], dtype=states[2].dtype, device=states[2].device)
        return {"text_embeds": states[2], "time_ids": times}


class _Transformer(Denoiser):
    """What the transformers have in common: one grid of patches in all layers."""

    cell = "patches"

    def __init__(self, module: Any, family: Family) -> None:
        super().__init__(module, family)
        self.side = int(module.config.patch_size)

    def attention(self, place: Place) -> list[tuple[str, nn.Module]]:
        found = [
            (name, one)
            for name, one in self.module.named_modules()
            if matches(one, self.family.attention) and self._belongs(one, place)
        ]
        stated = self._stated()
        if len(found) != stated:
            raise CaptureError(
                f"The configuration of {type(self.module).__name__} states {stated} {place} layers but {len(found)} were found: it "
                "is not built as its family is."
            )
        require_seen(
            found, cure="switch it off (xformers, adapters, guidance that perturbs attention, another backend)"
        )
        return found

    def _belongs(self, module: Any, place: Place) -> bool:
        return True

    def _stated(self) -> int:
        return int(self.module.config.num_layers)

    def read(self, given: dict[str, Any]) -> Pass:
        states = given["hidden_states"]
        rows, cols = _shape(states)
        if rows % self.side or cols % self.side:
            raise CaptureError(
                f"Latents of {rows} x {cols} are no whole number of patches of {self.side} x {self.side}; generate a picture whose "
                "height and width are."
            )
        timestep = _number(given["timestep"], type(self.module))
        return Pass(given["encoder_hidden_states"], len(states), (rows // self.side, cols // self.side), timestep)

    def size(self, pipeline: Any) -> tuple[int, int]:
        sample = int(self.module.config.sample_size)
        return sample, sample


class _PixArt(_Transformer):
    """PixArt: attention of patches to each other, and to T5's words under a mask."""

    def _belongs(self, module: Any, place: Place) -> bool:
        return bool(getattr(module, "is_cross_attention", False)) == (place == "cross-attention")

    def run(self, pipeline: Any, states: tuple[Any, ...], latents: Tensor, timestep: int) -> None:
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.module.use_additional_conditions:
            factor = int(pipeline.vae_scale_factor)
            height, width = latents.shape[-2] * factor, latents.shape[-1] * factor
            told = {"resolution": [[height, width]], "aspect_ratio": [[height / width]]}
            added = {name: torch.tensor(one).to(states[0]) for name, one in told.items()}
        self.module(
            latents,
            encoder_hidden_states=states[0],
            encoder_attention_mask=states[1],
            timestep=torch.tensor([timestep], device=latents.device),
            added_cond_kwargs=added,
            return_dict=False,
        )


class _StableDiffusion3(_Transformer):
    """Stable Diffusion 3: each block attends once over patches and words.

    The second attention that blocks of 3.5 have, of patches alone, is not among its layers.
    """

    def _belongs(self, module: Any, place: Place) -> bool:
        return getattr(module, "added_kv_proj_dim", None) is not None

    def read(self, given: dict[str, Any]) -> Pass:
        if given.get("skip_layers") is not None:
            raise CaptureError(
                "Guidance that skips layers (skip_guidance_layers) makes a third pass without some of them; leave it out to record."
            )
        return super().read(given)

    def run(self, pipeline: Any, states: tuple[Any, ...], latents: Tensor, timestep: int) -> None:
        self.module(
            hidden_states=latents,
            timestep=torch.tensor([float(timestep)], device=latents.device),
            encoder_hidden_states=states[0],
            pooled_projections=states[2],
            return_dict=False,
        )


class _Flux(_Transformer):
    """Flux: latents packed two by two, words before patches, also in the blocks that hold both in one stream."""

    def __init__(self, module: Any, family: Family) -> None:
        super().__init__(module, family)
        self.side = 2  # the pipeline packs them; the transformer itself knows patches of 1

    def _stated(self) -> int:
        return int(self.module.config.num_layers) + int(self.module.config.num_single_layers)

    def read(self, given: dict[str, Any]) -> Pass:
        states, ids = given["hidden_states"], given["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        rows, cols = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
        plain = torch.cartesian_prod(torch.arange(1.0), torch.arange(float(rows)), torch.arange(float(cols)))
        if states.shape[1] != rows * cols or not torch.equal(ids.float().cpu(), plain):
            raise CaptureError(
                f"Flux was given {states.shape[1]} patches whose positions are no grid of {rows} x {cols}, row by row: "
                "other pictures are among them (Kontext, Redux), which is not understood."
            )
        # Its timesteps lie between 0 and 1; it takes them times 1000 itself.
        timestep = _number(torch.as_tensor(given["timestep"]) * 1000, type(self.module))
        return Pass(given["encoder_hidden_states"], len(states), (rows, cols), timestep)

    def size(self, pipeline: Any) -> tuple[int, int]:
        # The pipeline's own default: no configuration of a part states it.
        return int(pipeline.default_sample_size), int(pipeline.default_sample_size)

    def run(self, pipeline: Any, states: tuple[Any, ...], latents: Tensor, timestep: int) -> None:
        rows, cols = _shape(latents)
        packed = pipeline._pack_latents(latents, 1, latents.shape[1], rows, cols)
        guidance = None
        if self.module.config.guidance_embeds:
            default = inspect.signature(type(pipeline).__call__).parameters["guidance_scale"].default
            guidance = torch.full([1], float(default), device=latents.device)
        self.module(
            hidden_states=packed,
            timestep=torch.tensor([timestep / 1000], device=latents.device),
            guidance=guidance,
            pooled_projections=states[1],
            encoder_hidden_states=states[0],
            txt_ids=states[2],
            img_ids=pipeline._prepare_latent_image_ids(1, rows // 2, cols // 2, latents.device, latents.dtype),
            return_dict=False,
        )


_KINDS: dict[str, type[Denoiser]] = {
    "stable_diffusion": _UNet,
    "pixart": _PixArt,
    "stable_diffusion_3": _StableDiffusion3,
    "flux": _Flux,
}


def denoiser_of(module: Any) -> Denoiser:
    """The denoiser of a known family that this module is.

    Raises
    ------
    CaptureError
        If it is of none.
    """
    require_uncompiled(module)
    for family in FAMILIES:
        if family.denoiser and matches(module, family.denoiser):
            return _KINDS[family.name](module, family)
    known = ", ".join(name for family in FAMILIES for name in family.denoiser)
    raise CaptureError(f"A {type(module).__name__} denoises here, which is not known; {known} can be recorded.")


def _shape(latents: Tensor) -> tuple[int, int]:
    return int(latents.shape[-2]), int(latents.shape[-1])


def _number(given: Any, kind: type) -> int:
    """The scheduler's number of a pass."""
    numbers = {round(float(one)) for one in torch.as_tensor(given).flatten()}
    if len(numbers) != 1:
        raise CaptureError(
            f"The {kind.__name__} was given the timesteps {sorted(numbers)} in one pass; one at a time can be recorded."
        )
    return numbers.pop()
