"""From the live image processor's settings to the grid of patches in the original image's pixels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from probe.errors import CaptureError, InputError
from probe.families import Family, matches
from probe.images import image_size as size_of
from probe.images import read_image
from probe.layout import PatchGrid

__all__ = [
    "SAME_PIXELS",
    "Preparation",
    "checked_preparation",
    "encoder_inputs",
    "image_processor_of",
    "preparation_of",
    "processed_picture",
]

#: Half a grey level of 255, after a normalisation that spreads them by about 4.
SAME_PIXELS = 0.02


@dataclass(frozen=True)
class Preparation:
    """How an image processor turned an image into the picture that the model saw.

    Attributes
    ----------
    steps : in words, in order, such as "resize to 336 x 504, centre crop to 336 x 336".
    image_size, frame : (height, width) of the original and of the processed picture, in pixels.
    scale : processed pixels per original pixel, (row, col).
    offset : where the original's origin lies in the processed picture, (row, col) in processed pixels.
    """

    steps: str
    image_size: tuple[int, int]
    frame: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    def grid(self, patch_size: int) -> PatchGrid:
        """The grid of patches of that many processed pixels a side; what does not fill a whole patch is not covered."""
        shape = (self.frame[0] // patch_size, self.frame[1] // patch_size)
        if min(shape) < 1:
            raise InputError(f"The processed picture of {self.frame} pixels is smaller than one patch of {patch_size}.")
        return PatchGrid.from_affine(
            self.image_size, shape=shape, patch_size=patch_size, scale=self.scale, offset=self.offset
        )

    @classmethod
    def unknown(cls, frame: tuple[int, int]) -> Preparation:
        """Processed pixels taken as they are: when nobody said which image they were made from."""
        return cls(
            "unknown image: coordinates are those of the processed picture", frame, frame, (1.0, 1.0), (0.0, 0.0)
        )


def image_processor_of(processor: Any) -> Any:
    """The part of a processor that prepares images; a model that reads no text has nothing else."""
    return getattr(processor, "image_processor", processor)


def encoder_inputs(processor: Any, picture: Any, model: Any) -> dict[str, Any]:
    """What a processor makes of a picture for an image encoder, on the model's device and in its number type."""
    made = image_processor_of(processor)(images=picture, return_tensors="pt")
    found = {name: one.to(model.device) for name, one in dict(made).items() if isinstance(one, Tensor)}
    found["pixel_values"] = found["pixel_values"].to(model.dtype)
    return found


def processed_picture(inputs: Any, patch: int) -> Tensor:
    """(1, channel, row, col) picture that an image encoder is given; one that comes as a row of patches is put together.

    Parameters
    ----------
    inputs : what the encoder is given, by name. With ``spatial_shapes``, (1, 2) rows and cols of patches, ``pixel_values`` are
        (1, patch, value), each patch's pixels row by row with their channels last, and padding behind them.
    patch : side of a patch in pixels.

    Raises
    ------
    CaptureError
        If it is not one picture, or not of this shape.
    """
    pixels, shapes = inputs.get("pixel_values"), inputs.get("spatial_shapes")
    ndim = 4 if shapes is None else 3
    if not isinstance(pixels, Tensor) or pixels.ndim != ndim or pixels.shape[0] != 1:
        shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise CaptureError(
            f"pixel_values of shape {shape} were given to the image encoder; one image at a time, as "
            f"{'(1, channel, height, width)' if shapes is None else '(1, patch, value)'}, can be recorded."
        )
    if shapes is None:
        return pixels
    rows, cols = (int(one) for one in shapes[0])
    if rows * cols > pixels.shape[1] or pixels.shape[2] % (patch * patch):
        raise CaptureError(
            f"spatial_shapes says {rows} x {cols} patches of {patch} pixels, but pixel_values has {pixels.shape[1]} patches of "
            f"{pixels.shape[2]} values; give what the processor made."
        )
    return rearrange(
        pixels[:, : rows * cols],
        "one (row col) (high wide channel) -> one channel (row high) (col wide)",
        row=rows, col=cols, high=patch, wide=patch,
    )  # fmt: skip


def preparation_of(processor: Any, image_size: tuple[int, int], *, family: Family) -> Preparation:
    """How this processor prepares an image of (height, width) pixels, read from its live settings.

    Understands pad to square, resize (to a size, or the shortest edge to a length) and centre crop, in this order.

    Raises
    ------
    CaptureError
        If the processor, or one of its settings, is not understood: geometry is never guessed.
    """
    images = image_processor_of(processor)
    if not matches(images, family.image_processors):
        raise CaptureError(
            f"The image processor {type(images).__name__} is not one whose geometry is known for family {family.name!r} "
            f"({', '.join(family.image_processors)}); use the model's own processor."
        )
    height, width = image_size
    scale, offset, frame, steps = (1.0, 1.0), (0.0, 0.0), (height, width), []
    if getattr(images, "do_pad", False):
        if not hasattr(images, "pad_to_square"):
            # The library's plain padding comes last and goes to the bottom and right: another geometry under the same name.
            raise CaptureError(
                f"{type(images).__name__} has do_pad=True but no pad_to_square, so where it pads is not known; set do_pad=False, "
                "or use LlavaImageProcessor to pad to a square."
            )
        # LLaVA's pad_to_square rounds the smaller half down and pads before it resizes.
        side = max(height, width)
        offset = (float((side - height) // 2), float((side - width) // 2))
        frame = (side, side)
        steps.append(f"pad to {side} x {side}")
    if getattr(images, "do_resize", False):
        resized = _resized(images, frame)
        factor = (resized[0] / frame[0], resized[1] / frame[1])
        scale = factor
        offset = (offset[0] * factor[0], offset[1] * factor[1])
        frame = resized
        steps.append(f"resize to {resized[0]} x {resized[1]}")
    if getattr(images, "do_center_crop", False):
        crop = _crop_size(images)
        start = tuple(_crop_start(length, cut, images) for length, cut in zip(frame, crop, strict=True))
        offset = (offset[0] - start[0], offset[1] - start[1])
        frame = crop
        steps.append(f"centre crop to {crop[0]} x {crop[1]}")
    return Preparation(", ".join(steps) or "as it is", image_size, frame, scale, offset)


def checked_preparation(
    processor: Any, image: Any, *, seen: Tensor, family: Family, patch: int | None = None
) -> Preparation:
    """How the picture that a model saw was made of this image, checked pixel by pixel.

    Parameters
    ----------
    image : path, PIL image or array; ``None`` where nobody says which it was.
    seen : (1, channel, row, col) picture that the model was given.
    patch : side of a patch in pixels, where the processor may make a row of patches.

    Raises
    ------
    CaptureError
        If the processor makes pictures of another size than the model saw.
    InputError
        If the image is another one than the model saw.
    """
    frame = (int(seen.shape[-2]), int(seen.shape[-1]))
    if image is None:
        return Preparation.unknown(frame)
    picture = read_image(image)
    preparation = preparation_of(processor, size_of(picture), family=family)
    images = image_processor_of(processor)
    made = images(images=picture, return_tensors="pt")
    again = (made["pixel_values"] if patch is None else processed_picture(made, patch)).to(seen.device, seen.dtype)
    if preparation.frame != frame or again.shape != seen.shape:
        raise CaptureError(
            f"The model saw a picture of {frame} pixels (height, width), but its processor is set to make {preparation.frame} "
            f"of this image ({preparation.steps}); prepare the image with the model's own processor."
        )
    off = float((again.float() - seen.float()).abs().max())
    if off > SAME_PIXELS:
        raise InputError(
            f"The image given to result() is not the one that the model saw: the processor makes other pixels of it (they differ "
            f"by up to {off:.2g}). Give the same image, turned the same way: EXIF orientation is applied here (probe.read_image)."
        )
    return preparation


def _setting(settings: Any, name: str) -> int | None:
    """A field of a size setting, whether it is kept as a dictionary or as an object."""
    return settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)


def _crop_size(images: Any) -> tuple[int, int]:
    height, width = _setting(images.crop_size, "height"), _setting(images.crop_size, "width")
    if not (height and width):
        raise CaptureError(f"The image processor's crop_size {images.crop_size!r} has no height and width.")
    return int(height), int(width)


def _resized(images: Any, frame: tuple[int, int]) -> tuple[int, int]:
    if hasattr(images, "max_num_patches"):
        # The most patches that keep the picture's shape, by the library's own function.
        fit = sys.modules[type(images).__module__].get_image_size_for_max_num_patches
        height, width = fit(*frame, images.patch_size, images.max_num_patches)
        return int(height), int(width)
    size = images.size
    height, width, shortest = (_setting(size, name) for name in ("height", "width", "shortest_edge"))
    others = [name for name in ("longest_edge", "max_height", "max_width") if _setting(size, name)]
    if others or not ((height and width) or shortest):
        raise CaptureError(
            f"The image processor resizes to size={size!r}; only height and width, or shortest_edge, are understood."
        )
    if height and width:
        return int(height), int(width)
    assert shortest is not None  # for the type checker: the condition above leaves no other case
    # The library cuts the longer edge off to whole pixels, so the two axes are scaled slightly differently.
    longest = int(shortest * max(frame) / min(frame))
    return (longest, int(shortest)) if frame[0] >= frame[1] else (int(shortest), longest)


def _crop_start(length: int, crop: int, images: Any) -> int:
    """First kept pixel of a centre crop along one axis; negative where a smaller picture is padded."""
    if length >= crop:
        return (length - crop) // 2
    # The two backends put the odd pixel of padding on different sides.
    missing = crop - length
    torchvision = any(kind.__name__ == "TorchvisionBackend" for kind in type(images).__mro__)
    return -(missing // 2) if torchvision else -((missing + 1) // 2)
