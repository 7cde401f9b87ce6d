"""What a model was fed as pictures, cut into units whose image tokens are known in number and order.

The library puts the features of all pictures, one after the other, in the place of the placeholders of all sequences, one after the
other; so a unit's tokens are known once the units are, and the placeholders counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probe.capture.units import Part, Unit
from probe.errors import CaptureError, InputError
from probe.families import Family

__all__ = [
    "IMAGE_INPUTS",
    "allocate",
    "cell_side",
    "image_token_id",
    "patch_size",
    "stitched",
    "tile_keys",
    "units_of",
]

#: What image processors make, besides token ids: everything that a unit is cut from.
IMAGE_INPUTS = (
    "pixel_values",
    "image_sizes",
    "image_grid_thw",
    "aspect_ratio_ids",
    "aspect_ratio_mask",
    "pixel_attention_mask",
    "batch_num_images",
    "vision_aspect_ratio",
)


def units_of(model: Any, family: Family, inputs: dict[str, Any]) -> list[Unit]:
    """The units of everything that the model was fed as pictures, in the order in which their tokens are put into the sequences.

    Raises
    ------
    InputError
        If there is no picture.
    CaptureError
        If its shape is not one of this family's.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None:
        raise InputError("No image was given to the model (pixel_values is missing): there are no patches to record.")
    if inputs.get("pixel_values_videos") is not None:
        raise CaptureError("Frames of a video were given (pixel_values_videos); only images can be recorded.")
    makers = {
        "placeholder": _images,
        "grid_thw": _dynamic,
        "anyres": _anyres,
        "tiles": _tiles,
        "cross-attention": _canvases,
    }
    if family.image_tokens not in makers:
        raise CaptureError(f"Images of family {family.name!r} do not reach the sequence of text tokens.")
    return makers[family.image_tokens](model, family, inputs)


def allocate(units: Sequence[Unit], counts: Sequence[int]) -> list[list[Unit]]:
    """The units of each sequence, from the number of placeholders that each sequence has.

    Raises
    ------
    InputError
        If the numbers do not match.
    """
    left, found = list(units), []
    for number, count in enumerate(counts):
        own: list[Unit] = []
        while left and sum(one.placeholders for one in own) < count:
            own.append(left.pop(0))
        last = number == len(counts) - 1
        if sum(one.placeholders for one in own) != count or (last and left):
            shown = own + (left if last else [])
            where = "The prompt" if len(counts) == 1 else f"Sequence {number}"
            raise InputError(
                f"{where} has {count} image tokens in the sequence but {len(shown)} picture(s) of "
                f"{', '.join(one.words for one in shown) or 'no patches'}; the prompt must hold one placeholder for each "
                f"{'picture' if any(one.apart for one in shown) else 'patch'}."
            )
        found.append(own)
    return found


def image_token_id(model: Any) -> int:
    """The id of the placeholder that stands for one patch in the token ids."""
    for name in ("image_token_id", "image_token_index"):
        found = getattr(model.config, name, None)
        if found is not None:
            return int(found)
    raise CaptureError(f"The configuration of {type(model).__name__} names no image_token_id.")


def patch_size(model: Any) -> int:
    """Side of one patch in pixels of the processed picture."""
    found = getattr(model.config.vision_config, "patch_size", None)
    if isinstance(found, (list, tuple)) and len(set(found)) == 1:
        found = found[0]
    if not isinstance(found, int):
        raise CaptureError(
            f"The vision configuration of {type(model).__name__} has patch_size={found!r}; expected one number."
        )
    return found


def cell_side(model: Any, family: Family) -> int:
    """Side of what one image token covers, in pixels of the processed picture: a patch, or as many as are merged."""
    patch = patch_size(model)
    if not family.merge:
        return patch
    found = model.config
    for name in family.merge.split("."):
        found = getattr(found, name, None)
    if family.merge == "mm_tokens_per_image" and found:
        merged = model.config.vision_config.image_size / patch / math.isqrt(int(found))
    else:
        # A ratio says by how much the grid shrinks.
        merged = 0.0 if not isinstance(found, (int, float)) or found <= 0 else found if found >= 1 else 1 / found
    if merged < 1 or merged != int(merged):
        raise CaptureError(
            f"The configuration of {type(model).__name__} has {family.merge}={found!r}, from which the side of an image token's "
            "square of patches cannot be read."
        )
    return patch * int(merged)


def _square(kind: Any, frame: tuple[int, int], cell: int, first: int = 0) -> Part:
    """All whole cells of a picture, whose tokens follow each other row by row from ``first``."""
    shape = (frame[0] // cell, frame[1] // cell)
    if min(shape) < 1:
        raise InputError(f"The processed picture of {frame} pixels is smaller than one patch of {cell}.")
    return Part(kind, frame, shape, (cell, cell), places=tuple(range(first, first + shape[0] * shape[1])))


def _listed(pixels: Any, ndim: int, what: str) -> list[Tensor]:
    """One tensor for each unit, from a tensor or a list of them."""
    found = list(pixels) if isinstance(pixels, (Tensor, list, tuple)) else []
    if not found or any(not isinstance(one, Tensor) or one.ndim != ndim for one in found):
        shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise CaptureError(f"pixel_values has shape {shape}; expected {what}.")
    return found


def _images(model: Any, family: Family, inputs: dict[str, Any]) -> list[Unit]:
    """Every image is a unit: one token a cell, with the class token in front where the model keeps it."""
    listed = _listed(inputs["pixel_values"], 3, "(image, channel, height, width)")
    sizes = inputs.get("image_sizes")
    cell = cell_side(model, family)
    kept = family.class_token and getattr(model.config, "vision_feature_select_strategy", None) == "full"
    first = 1 if kept and _has_class_token(model) else 0
    units = []
    for number, one in enumerate(listed):
        # Pictures of different sizes are padded to one; the model leaves the padding out again.
        height, width = one.shape[-2:] if sizes is None else (int(side) for side in sizes[number])
        part = _square("image", (int(height), int(width)), cell, first)
        units.append(Unit(first + len(part.places), (part,), one[..., : part.frame[0], : part.frame[1]]))
    if family.merge and sizes is not None and [one.count for one in units] == [1]:
        raise InputError(
            f"The picture becomes a single image token of {cell} x {cell} pixels, of which {type(model).__name__} loses "
            "track; give a larger one."
        )
    return units


def _has_class_token(model: Any) -> bool:
    """Whether the vision tower puts a class token in front of the patches."""
    return any(name.endswith("class_embedding") for name, _ in model.named_parameters())


def _dynamic(model: Any, family: Family, inputs: dict[str, Any]) -> list[Unit]:
    """Every image has a grid of its own, in patches: time, height and width; several patches a side become one token."""
    pixels, grids = inputs["pixel_values"], inputs.get("image_grid_thw")
    if not isinstance(pixels, Tensor) or pixels.ndim != 2 or grids is None:
        raise CaptureError(
            "pixel_values must be (patch, value), and image_grid_thw must come with it; give what the processor made."
        )
    patch, cell = patch_size(model), cell_side(model, family)
    units, start = [], 0
    for time, rows, cols in ([int(one) for one in grid] for grid in grids):
        if time != 1:
            raise CaptureError(f"image_grid_thw says {time} frames; only images of one frame can be recorded.")
        part = _square("image", (rows * patch, cols * patch), cell)
        units.append(Unit(len(part.places), (part,), pixels[start : start + rows * cols]))
        start += rows * cols
    if start != len(pixels):
        raise InputError(f"image_grid_thw describes {start} patches but pixel_values has {len(pixels)}.")
    return units


def _tiles(model: Any, family: Family, inputs: dict[str, Any]) -> list[Unit]:
    """Every tile is a unit: how many of them make an image is known from the image alone."""
    pixels = inputs["pixel_values"]
    if isinstance(pixels, Tensor) and pixels.ndim == 5:
        # Sequences with fewer tiles are filled up with empty ones, which the model leaves out.
        pixels = pixels.flatten(0, 1)
        pixels = pixels[(pixels != 0).flatten(1).any(1)]
    cell = cell_side(model, family)
    units = []
    for one in _listed(pixels, 3, "(tile, channel, height, width)"):
        part = _square("tile", (int(one.shape[-2]), int(one.shape[-1])), cell)
        units.append(Unit(len(part.places), (part,), one))
    return units


def _anyres(model: Any, family: Family, inputs: dict[str, Any]) -> list[Unit]:
    """Every image is a unit: a thumbnail, and tiles that are put together, freed of padding, and given a newline a row."""
    sizes, config = inputs.get("image_sizes"), model.config
    if sizes is None:
        raise CaptureError("image_sizes is missing; give all that the processor made.")
    listed = _listed(inputs["pixel_values"], 4, "(image, tile, channel, height, width)")
    side, patch = int(config.vision_config.image_size), patch_size(model)
    counts = inputs.get("batch_num_images")
    counts = [1] * len(listed) if counts is None else [int(one) for one in counts]
    among = [many for many in counts for _ in range(many)]
    limit = inputs.get("vision_aspect_ratio") or getattr(config, "vision_aspect_ratio", None)
    units = []
    for pixels, size, many in zip(listed, sizes, among, strict=True):
        height, width = (int(one) for one in size)
        thumbnail = _square("thumbnail", (side, side), patch)
        if many > 1:  # several images in one sequence are not tiled
            alone = Part("image", thumbnail.frame, thumbnail.shape, thumbnail.cell, places=thumbnail.places)
            units.append(Unit(len(alone.places) + 1, (alone,), pixels[:1], (height, width), alone=False))
            continue
        whole, tiles = _put_together((height, width), config.image_grid_pinpoints, side, patch, limit, thumbnail)
        rows, cols = whole.shape
        count = len(thumbnail.places) + rows * (cols + 1)
        units.append(Unit(count, (whole, thumbnail), pixels[: 1 + tiles], (height, width)))
    return units


def _put_together(
    size: tuple[int, int], pinpoints: Any, side: int, patch: int, limit: str | None, thumbnail: Part
) -> tuple[Part, int]:
    """The grid that an image's tiles make together, behind the thumbnail's tokens, and their number."""
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    height, width = select_best_resolution(size, pinpoints)
    rows, cols = height // patch, width // patch
    # The library's own function, asked which cells it leaves.
    left = unpad_image(torch.arange(rows * cols).reshape(1, rows, cols), size)[0]
    _require_cells(size, (int(left.shape[0]), int(left.shape[1])))
    start = divmod(int(left[0, 0]), cols)
    cell, shape = (float(patch), float(patch)), (int(left.shape[0]), int(left.shape[1]))
    if limit is not None:
        # More cells than so many tiles have are shrunk, bilinearly, to a grid of larger ones.
        most = int(limit.removeprefix("anyres_max_"))
        ratio = math.sqrt(shape[0] * shape[1] / (most * (side // patch) ** 2))
        if ratio > 1.1:
            shrunk = (int(shape[0] // ratio), int(shape[1] // ratio))
            _require_cells(size, shrunk)
            cell, shape = (patch * shape[0] / shrunk[0], patch * shape[1] / shrunk[1]), shrunk
    first = len(thumbnail.places)
    places = tuple(first + row * (shape[1] + 1) + col for row in range(shape[0]) for col in range(shape[1]))
    tiles = (height // side) * (width // side)
    return Part("image", (height, width), shape, cell, (start[0] * patch, start[1] * patch), places), tiles


def _require_cells(size: tuple[int, int], shape: tuple[int, int]) -> None:
    if min(shape) < 1:
        raise InputError(
            f"The picture of {size[0]} x {size[1]} pixels (height x width) is so narrow that no row or column of patches of its "
            "tiles is left; give a picture that is less elongated."
        )


def tile_keys(model: Any) -> int:
    """How many keys of cross-attention one tile has: its class token, and its patches behind it.

    Raises
    ------
    CaptureError
        If patches do not fill the tile, so that those of tiles side by side make no even grid.
    """
    side, patch = int(model.config.vision_config.image_size), patch_size(model)
    if side % patch:
        raise CaptureError(f"Tiles of {side} pixels are not whole in patches of {patch}, so they make no even grid.")
    return (side // patch) ** 2 + 1


def stitched(rows: int, cols: int, tile: tuple[int, int], *, step: int, first: int = 0) -> tuple[int, ...]:
    """Which token each cell of the grid is that rows x cols tiles make together, row by row of the whole.

    Parameters
    ----------
    tile : (rows, cols) of cells in one tile.
    step : tokens of one tile, the tiles following each other row by row.
    first : tokens of a tile that come before its cells.
    """
    height, width = tile
    return tuple(
        ((row // height) * cols + col // width) * step + first + (row % height) * width + col % width
        for row in range(height * rows)
        for col in range(width * cols)
    )


def _canvases(model: Any, family: Family, inputs: dict[str, Any]) -> list[Unit]:
    """Every image is a unit: tiles that make one canvas, each with a class token in front."""
    pixels, shapes = inputs["pixel_values"], inputs.get("aspect_ratio_ids")
    if not isinstance(pixels, Tensor) or pixels.ndim != 6 or shapes is None:
        raise CaptureError(
            "pixel_values must be (sequence, image, tile, channel, height, width), and aspect_ratio_ids must come with it; give "
            "what the processor made."
        )
    vision, step, patch = model.config.vision_config, tile_keys(model), patch_size(model)
    side = int(vision.image_size)
    cells, units = side // patch, []
    for image, number in zip(pixels.flatten(0, 1), shapes.flatten().tolist(), strict=True):
        if not number:  # a sequence with fewer images than another
            continue
        # (rows, cols) of tiles, counted from 1.
        rows, cols = vision.supported_aspect_ratios[int(number) - 1]
        frame, shape = (rows * side, cols * side), (rows * cells, cols * cells)
        places = stitched(rows, cols, (cells, cells), step=step, first=1)
        part = Part("image", frame, shape, (float(patch), float(patch)), places=places)
        units.append(Unit(rows * cols * step, (part,), image[: rows * cols], apart=True))
    return units
