"""From the live image processor's settings to the grid of patches in the original image's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probe.errors import CaptureError, InputError
from probe.families import Family, matches
from probe.images import image_size as size_of
from probe.images import read_image
from probe.layout import PatchGrid

__all__ = ["SAME_PIXELS", "Preparation", "checked_preparation", "image_processor_of", "preparation_of"]

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


def checked_preparation(processor: Any, image: Any, *, seen: Tensor, family: Family) -> Preparation:
    """How the picture that a model saw was made of this image, checked pixel by pixel.

    Parameters
    ----------
    image : path, PIL image or array; ``None`` where nobody says which it was.
    seen : (1, channel, row, col) picture that the model was given.

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
    again = images(images=picture, return_tensors="pt")["pixel_values"].to(seen.device, seen.dtype)
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
