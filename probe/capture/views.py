"""From units of image tokens to views: which rectangle of which original image each token covers, checked pixel by pixel."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probe.capture.geometry import SAME_PIXELS, Preparation, preparation_of
from probe.capture.pictures import cell_side, stitched, units_of
from probe.capture.units import Part, Unit
from probe.errors import CaptureError, InputError
from probe.families import Family, matches
from probe.images import image_size as size_of
from probe.images import read_image
from probe.layout import PatchGrid, View

__all__ = ["Seen", "views_of"]


@dataclass(frozen=True)
class Seen:
    """The views of one sequence, how its first image was prepared, and that image's size."""

    views: tuple[View, ...]
    steps: str
    image_size: tuple[int, int]


def views_of(
    units: Sequence[Unit], positions: Sequence[int], *, model: Any, processor: Any, family: Family, images: Any
) -> Seen:
    """The views of one sequence whose image tokens stand at these positions.

    Views are called "image 0", "image 1", ... in the order of the prompt, a thumbnail of the first image "thumbnail" and of the
    others "thumbnail 1", .... Tiles whose image nobody gave are "tile 0", "tile 1", ...: how they are arranged is not known.

    Parameters
    ----------
    images : the picture that the processor was given, or a list of them; ``None`` where nobody says which they were.

    Raises
    ------
    CaptureError
        If the processor is not understood, or makes pictures of another size than the model saw.
    InputError
        If the images are others than the model saw, or not as many.
    """
    images_processor = getattr(processor, "image_processor", processor)
    made: list[tuple[Part, Preparation, int]] = []
    if images is None:
        made = list(_unknown(units, images_processor))
    else:
        if not matches(images_processor, family.image_processors):
            raise CaptureError(
                f"The image processor {type(images_processor).__name__} is not one whose geometry is known for family "
                f"{family.name!r} ({', '.join(family.image_processors)}); use the model's own processor."
            )
        listed = list(images) if isinstance(images, (list, tuple)) else [images]
        left, first, used = list(units), 0, 0
        for number, one in enumerate(listed):
            if not left:
                break
            picture = read_image(one)
            own, parts = _identified(left, picture, model, images_processor, family, number)
            made += [(part, preparation, first) for part, preparation in parts]
            first += sum(unit.count for unit in own)
            left = left[len(own) :]
            used += 1
        if left or not listed or used < len(listed):
            raise InputError(
                f"result() was given {len(listed)} image(s), but the model saw {len(units)} picture(s), tiles counted singly; give "
                "all images of this sequence as a list, in the order of the prompt."
            )
    views = tuple(
        View(name, _grid(part, preparation), tuple(positions[first + place] for place in part.places))
        for name, (part, preparation, first) in zip(_names([part for part, _, _ in made]), made, strict=True)
    )
    return Seen(views, made[0][1].steps, made[0][1].image_size)


def _names(parts: list[Part]) -> list[str]:
    images, tiles, found = -1, -1, []
    for part in parts:
        if part.kind == "tile":
            tiles += 1
            found.append(f"tile {tiles}")
        elif part.kind == "image":
            images += 1
            found.append(f"image {images}")
        else:
            found.append("thumbnail" if images <= 0 else f"thumbnail {images}")
    return found


def _grid(part: Part, preparation: Preparation) -> PatchGrid:
    edges = [
        tuple(float(one) for one in (start + np.arange(count + 1) * cell - offset) / scale)
        for start, count, cell, offset, scale in zip(
            part.start, part.shape, part.cell, preparation.offset, preparation.scale, strict=True
        )
    ]
    return PatchGrid(preparation.image_size, edges[0], edges[1], round(part.cell[0]))


def _unknown(units: Sequence[Unit], images: Any) -> Iterator[tuple[Part, Preparation, int]]:
    """Each part in pixels of its own processed picture, or of the original where the processor said its size."""
    first = 0
    for unit in units:
        for part in unit.parts:
            known = unit.size is not None
            made = _prepare(part, unit.size, images, unit) if known else Preparation.unknown(part.frame)
            yield part, made, first
        first += unit.count


def _identified(
    left: Sequence[Unit], picture: Any, model: Any, images: Any, family: Family, number: int
) -> tuple[list[Unit], list[tuple[Part, Preparation]]]:
    """Those of the units that this picture became, and its parts."""
    size, problem = size_of(picture), None
    cell = cell_side(model, family)
    for options in _options(images, cell):
        among = bool(left) and not left[0].alone
        outputs = images(images=[[picture, picture]] if among else picture, return_tensors="pt", **options)
        again = units_of(model, family, dict(outputs))[: 1 if among else None]
        difference = _difference(left[: len(again)], again, size, number, images, family)
        problem = problem or difference
        if difference is None:
            own = list(left[: len(again)])
            if len(own) != 1 and family.image_tokens != "tiles":
                raise CaptureError(
                    f"{type(images).__name__} makes {len(own)} pictures of image {number} (crops of it: pan and scan), which is "
                    "not understood; set do_pan_and_scan=False."
                )
            if family.image_tokens == "tiles":
                return own, _arranged(own, size, images, outputs)
            if family.image_tokens == "placeholder" and "image_sizes" not in outputs:
                return own, [(own[0].parts[0], preparation_of(images, size, family=family))]
            return own, [(part, _prepare(part, size, images, own[0])) for part in own[0].parts]
    assert problem is not None  # for the type checker: there is at least one choice of options
    raise problem


def _options(images: Any, cell: int) -> list[dict[str, Any]]:
    """What the model's own processor may have told its image processor, beyond the settings kept there."""
    if hasattr(images, "crop_to_patches"):
        return [{"crop_to_patches": True}, {"crop_to_patches": False}]
    if hasattr(images, "return_row_col_info"):
        return [{"return_row_col_info": True}]
    if hasattr(images, "patch_size") and not hasattr(images, "merge_size"):
        return [{"patch_size": {"height": cell, "width": cell}}]
    return [{}]


def _difference(
    seen: Sequence[Unit], again: Sequence[Unit], size: tuple[int, int], number: int, images: Any, family: Family
) -> Exception | None:
    """What tells this picture's units from those that the model saw; ``None`` if they are the same."""
    frames = [[part.frame for unit in some for part in unit.parts] for some in (seen, again)]
    if frames[0] != frames[1] or any(a.pixels.shape != b.pixels.shape for a, b in zip(seen, again, strict=False)):
        steps = ""
        if family.image_tokens == "placeholder" and not hasattr(images, "patch_size"):
            steps = f" ({preparation_of(images, size, family=family).steps})"
        if len(frames[0]) == len(frames[1]) == 1:
            frames = [some[0] for some in frames]  # type: ignore[misc]
        return CaptureError(
            f"The model saw a picture of {frames[0]} pixels (height, width), but its processor is set to make {frames[1]} of image "
            f"{number}{steps}; give the same image, prepared with the model's own processor as it was then."
        )
    off = max(
        float((b.pixels.to(a.pixels).float() - a.pixels.float()).abs().max()) for a, b in zip(seen, again, strict=True)
    )
    if off > SAME_PIXELS or [one.size for one in seen] != [one.size for one in again]:
        return InputError(
            f"The image given to result() is not the one that the model saw: the processor makes other pixels of it (they differ "
            f"by up to {off:.2g}). Give the same image, turned the same way: EXIF orientation is applied here (probe.read_image)."
        )
    return None


def _squash(frame: tuple[int, int], size: tuple[int, int]) -> Preparation:
    steps = f"resize to {frame[0]} x {frame[1]}"
    return Preparation(steps, size, frame, (frame[0] / size[0], frame[1] / size[1]), (0.0, 0.0))


def _prepare(part: Part, size: tuple[int, int] | None, images: Any, unit: Unit) -> Preparation:
    """How a picture was made whose size follows from the image's own."""
    assert size is not None  # for the type checker: asked only where it is known
    tiled = hasattr(images, "image_grid_pinpoints")
    # Both have a centre crop among their settings, which does nothing where it cuts to the size that is there.
    if getattr(images, "do_center_crop", False) and not tiled:
        raise CaptureError(
            f"{type(images).__name__} has do_center_crop=True, which is not understood; set it to False."
        )
    if tiled:
        _require_whole_tiles(images, unit.pixels.shape[-2:])
    if hasattr(images, "max_image_tiles"):
        return _fitted(part.frame, size, images)
    if not tiled or part.kind == "thumbnail":
        return _squash(part.frame, size)
    if not unit.alone:
        side = max(size)
        scale = part.frame[0] / side
        offset = tuple(scale * ((side - length) // 2) for length in size)
        steps = f"pad to {side} x {side}, resize to {part.frame[0]} x {part.frame[1]}"
        return Preparation(steps, size, part.frame, (scale, scale), (offset[0], offset[1]))
    return _padded_into(part.frame, size)


def _fitted(frame: tuple[int, int], size: tuple[int, int], images: Any) -> Preparation:
    """Resized until it fits into a canvas of tiles, and padded at the bottom and on the right."""
    fit = getattr(sys.modules[type(images).__module__], "get_image_size_fit_to_canvas", None)
    if fit is None:
        raise CaptureError(f"How {type(images).__name__} fits a picture into its tiles is not known.")
    side = int(images.size["height"] if isinstance(images.size, dict) else images.size.height)
    height, width = (int(one) for one in fit(*size, *frame, side))
    steps = f"resize to {height} x {width}, pad to {frame[0]} x {frame[1]} at the bottom and right, in tiles"
    return Preparation(steps, size, frame, (height / size[0], width / size[1]), (0.0, 0.0))


def _require_whole_tiles(images: Any, tile: Sequence[int]) -> None:
    """Nothing, if tiles are neither resized nor cropped after they are cut."""
    settings = [("size", images.size)]
    if getattr(images, "do_center_crop", False):
        settings.append(("crop_size", images.crop_size))
    for name, given in settings:
        plain = given if isinstance(given, dict) else vars(given)
        sides = {int(one) for one in plain.values() if one}
        if sides != {int(one) for one in tile}:
            raise CaptureError(
                f"{type(images).__name__} has {name}={given!r} where its tiles have {int(tile[0])} pixels a side: they are "
                "resized or cropped after they are cut, which is not understood."
            )


def _padded_into(frame: tuple[int, int], size: tuple[int, int]) -> Preparation:
    """Resized until it fits into the frame, and padded on both sides, as for tiles of any resolution."""
    from transformers.image_processing_utils import get_patch_output_size
    from transformers.image_utils import ChannelDimension

    blank = np.broadcast_to(np.zeros(1, np.uint8), (3, *size))
    height, width = get_patch_output_size(blank, frame, input_data_format=ChannelDimension.FIRST)
    offset = (float((frame[0] - height) // 2), float((frame[1] - width) // 2))
    steps = f"resize to {height} x {width}, pad to {frame[0]} x {frame[1]}, in tiles"
    return Preparation(steps, size, frame, (height / size[0], width / size[1]), offset)


def _arranged(own: Sequence[Unit], size: tuple[int, int], images: Any, outputs: Any) -> list[tuple[Part, Preparation]]:
    """An image's tiles put together row by row, and its thumbnail behind them."""
    tile = own[0].parts[0]
    count = len(tile.places)
    if len(own) == 1:
        return [(replace(tile, kind="image"), _squash(tile.frame, size))]
    rows, cols = _arrangement(size, images, outputs, tile.frame)
    if len(own) - rows * cols not in (0, 1):
        raise CaptureError(
            f"{len(own)} tiles were seen, but {type(images).__name__} arranges this image in {rows} x {cols}; its geometry is not "
            "understood."
        )
    height, width = tile.shape
    frame, shape = (tile.frame[0] * rows, tile.frame[1] * cols), (height * rows, width * cols)
    places = stitched(rows, cols, tile.shape, step=count)
    whole = (Part("image", frame, shape, tile.cell, places=places), _squash(frame, size))
    if len(own) == rows * cols:
        return [whole]
    behind = tuple(rows * cols * count + one for one in tile.places)
    return [whole, (replace(tile, kind="thumbnail", places=behind), _squash(tile.frame, size))]


def _arrangement(size: tuple[int, int], images: Any, outputs: Any, tile: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) of an image's tiles, from the processor's own answer or its own function."""
    if "rows" in outputs:
        rows, cols = (np.asarray(outputs[name]).reshape(-1) for name in ("rows", "cols"))
        return int(rows[0]), int(cols[0])
    chosen = getattr(sys.modules[type(images).__module__], "get_optimal_tiled_canvas", None)
    if chosen is None:
        raise CaptureError(f"How {type(images).__name__} arranges its tiles is not known.")
    cols, rows = chosen(size, tile, images.min_patches, images.max_patches)
    return int(rows), int(cols)
