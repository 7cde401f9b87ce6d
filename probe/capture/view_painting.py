"""Does every view name the right image tokens? Painting one cell of an image and seeing which of the model's tokens moves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from probe.capture.cross_attention import projected_tokens
from probe.capture.modules import attention_modules
from probe.capture.passes import inputs_for
from probe.capture.pictures import IMAGE_INPUTS, units_of
from probe.capture.questions import Answer
from probe.capture.taps import AttentionCall, edit_registry
from probe.capture.views import views_of
from probe.errors import CaptureError
from probe.layout import View

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["paint_views", "visual_tokens"]

_CELLS = 12  # cells of a view that are painted, one at a time
_PIXELS = 4  # original pixels that the smallest cell must be wide, for its box to be painted in whole pixels


def paint_views(subject: Subject, picture: Any) -> Answer:
    """Paint one cell's box in the original image: of all tokens of its view, does the one that the grid names move most?

    How far each moves is a share of how far it moves when the whole image is painted. The tokens are the model's own, in the order
    in which it puts them into the sequence; meanwhile its vision tower's attention gives out nothing, so that each token is about
    its own pixels alone. Where features were shrunk to a coarser grid a neighbour of the named token may move as much.
    """
    picture = _enlarged(subject, picture)
    pixels, generator = np.asarray(picture), np.random.default_rng(0)
    plain, (views, reach) = visual_tokens(subject, picture), _views(subject, picture)
    # Other pixels everywhere, and of another brightness: a coarse view sees little else.
    inverted = np.where(pixels < 128, 128, 0).astype(np.uint8)
    other = inverted + generator.integers(0, 128, pixels.shape, dtype=np.uint8)
    furthest = (visual_tokens(subject, other) - plain).norm(dim=-1)
    # Where a picture does not fill its tiles, what lies wholly in the padding shows nothing of it.
    inside = [
        place for view in views for place, w in zip(view.positions, view.grid.weight.flat, strict=True) if w > 0.01
    ]
    if not bool((furthest[inside] > 0).all()):
        raise CaptureError(
            "Some image tokens do not depend on the image at all, so nothing can be seen by painting it."
        )
    count, wrong = 0, []
    for view in views:
        cells = np.argwhere(view.grid.weight > 0.99)
        if not len(cells):
            raise CaptureError(
                f"No patch of {view.name!r} lies wholly inside this picture of {picture.height} x {picture.width} pixels (height x "
                "width), so none can be painted; give another image."
            )
        for row, col in cells[generator.permutation(len(cells))[:_CELLS]]:
            top, left, bottom, right = np.round(view.grid.boxes[row, col]).astype(int)
            painted = pixels.copy()
            painted[top:bottom, left:right] = other[top:bottom, left:right]
            moved = ((visual_tokens(subject, painted) - plain).norm(dim=-1) / furthest).nan_to_num(0.0)
            found = divmod(int(moved[list(view.positions)].argmax()), view.grid.shape[1])
            count += 1
            if max(abs(found[0] - row), abs(found[1] - col)) > reach:
                wrong.append(f"painted ({row}, {col}) of {view.name!r}, moved {found}")
    detail = f"; {wrong[0]}" if wrong else ""
    return not wrong, f"{len(wrong)} of {count} patches wrong{detail}", "0 wrong", len(wrong)


def visual_tokens(subject: Subject, picture: Any) -> Tensor:
    """(image token, channel) what the model puts in the place of a picture's placeholders, in order, each from its own pixels."""
    from PIL import Image

    model = subject.model
    shown = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    inputs, _ = inputs_for(subject, shown, "Describe the image.")
    if subject.family.image_tokens == "cross-attention":
        with torch.inference_mode(), _deaf(subject):
            return projected_tokens(model, inputs).float()
    taken = inspect.signature(model.get_image_features).parameters
    # A LLaVA hands the sizes on to its vision tower without naming them.
    given = {name: inputs[name] for name in IMAGE_INPUTS if name in inputs and name in (*taken, "image_sizes")}
    with torch.inference_mode(), _deaf(subject):
        found = model.get_image_features(**given)
    found = getattr(found, "pooler_output", found)
    if isinstance(found, (tuple, list)):
        found = torch.cat([one.reshape(-1, one.shape[-1]) for one in found])
    return found.reshape(-1, found.shape[-1]).float()


@contextmanager
def _deaf(subject: Subject) -> Iterator[None]:
    """Nothing outside the language model attends to anything."""
    model = subject.model
    decoder = {id(one) for one in model.get_decoder().modules()}
    outside = [one for one in model.modules() if id(one) not in decoder]

    def nothing(module: nn.Module, call: AttentionCall) -> Tensor:
        return torch.zeros_like(call.output)

    attention_modules(model, subject.family)  # refuses a model that is not built as its family is
    with edit_registry(outside, nothing, name="vision attention off"):
        yield


def _views(subject: Subject, picture: Any) -> tuple[tuple[View, ...], int]:
    """A picture's views, with positions counted among its image tokens, and how far beside a cell another may move more."""
    inputs, _ = inputs_for(subject, picture, "Describe the image.")
    units = units_of(subject.model, subject.family, inputs)
    positions = range(sum(one.count for one in units))
    views = views_of(
        units, positions, model=subject.model, processor=subject.processor, family=subject.family, images=picture
    ).views
    # Cells that features were shrunk to are mixed of patches that they share with their neighbours.
    mixed = any(side != int(side) for unit in units for part in unit.parts for side in part.cell)
    return views, 1 if mixed else 0


def _enlarged(subject: Subject, picture: Any) -> Any:
    """The picture, so large that every cell is several of its pixels wide."""
    for _ in range(3):
        grids = [view.grid for view in _views(subject, picture)[0]]
        smallest = min(min(np.diff(grid.row_edges).min(), np.diff(grid.col_edges).min()) for grid in grids)
        if smallest >= _PIXELS:
            break
        factor = max(2, math.ceil(_PIXELS / smallest))
        picture = picture.resize((picture.width * factor, picture.height * factor))
    return picture
