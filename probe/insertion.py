"""Insertion and deletion: what a phrase's log-probability does as patches appear, or vanish, in the order of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from probe.capture.passes import inputs_with_answer
from probe.capture.references import require_language_model
from probe.errors import InputError
from probe.images import read_image
from probe.layout import PatchGrid
from probe.models import Subject

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["curve_areas", "patch_curves"]

DIRECTIONS = ("insertion", "deletion")


def patch_curves(
    subject: Subject,
    image: Any,
    prompt: str,
    answer: str,
    *,
    tokens: Sequence[int],
    patches: Tensor,
    grid: PatchGrid,
    steps: int = 8,
    fill: Literal["blur", "mean"] = "blur",
    random_orders: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """A table of a phrase's log-probability as patches of the image are shown, or hidden, from the map's highest to its lowest.

    >>> record = probe.run(subject, image, prompt, answer=text).record
    >>> layer = record["red circle"].mean("layer", "head", "token").layers[0]
    >>> curve_areas(patch_curves(subject, image, prompt, text, tokens=record.tokens_of(4, 14), patches=layer.values[0, 0, 0],
    ...                          grid=layer.grid))

    Columns: direction ("insertion" begins with every patch hidden, "deletion" with none), order ("map", or "random 0", ...: the
    control), share (of the patches that were shown or hidden so far, 0 to 1) and log_probability (natural, summed over the tokens).
    A map that says what the model needs rises early under insertion and falls early under deletion.

    Parameters
    ----------
    tokens : which tokens of the answer are the phrase.
    patches : (row, col) map; equal values come in row-major order.
    grid : where the patches lie, in pixels of the image. Pixels that no patch covers are left as they are.
    steps : after how many equal shares of the patches the model is asked.
    fill : what hides a patch: the image blurred over about two patches, or its mean colour.
    random_orders : how many orders that have nothing to do with the map are measured beside it.

    Raises
    ------
    InputError
        If the map has another shape than the grid or is not finite, a token does not exist, or a number is out of its range.

    References
    ----------
    Petsiuk, Das, Saenko, RISE (BMVC 2018), section 4.3.
    """
    import pandas as pd

    require_language_model(subject, "patch_curves")
    _check(patches, grid, steps=steps, random_orders=random_orders, fill=fill)
    picture = read_image(image)
    hidden = _hidden(picture, grid, fill)
    owner = _owners(grid, (picture.height, picture.width))
    count = patches.numel()
    shares = np.linspace(0, 1, steps + 1)
    generator = np.random.default_rng(seed)
    orders = {"map": np.argsort(-patches.double().cpu().numpy().ravel(), kind="stable")}
    orders |= {f"random {number}": generator.permutation(count) for number in range(random_orders)}
    known: dict[bytes, float] = {}
    rows = []
    for direction in DIRECTIONS:
        for name, order in orders.items():
            for share in shares:
                chosen = np.zeros(count, bool)
                chosen[order[: round(share * count)]] = True
                shown = chosen if direction == "insertion" else ~chosen
                # Both ends are the same for every order.
                if (key := shown.tobytes()) not in known:
                    known[key] = _log_probability(
                        subject, _mixed(picture, hidden, shown, owner), prompt, answer, tokens
                    )
                rows.append({"direction": direction, "order": name, "share": share, "log_probability": known[key]})
    return pd.DataFrame(rows)


def curve_areas(curves: pd.DataFrame) -> pd.DataFrame:
    """The area under each curve of ``patch_curves``: its mean log-probability over shares, by direction and order.

    Columns: direction, order ("map", or "random": the mean over all random orders), area. Without random orders there is no
    "random" row.
    """
    import pandas as pd

    rows = []
    for (direction, order), curve in curves.groupby(["direction", "order"], sort=False):
        area = float(np.trapezoid(curve["log_probability"], curve["share"]))
        rows.append({"direction": direction, "order": str(order).split(" ")[0], "area": area})
    return pd.DataFrame(rows).groupby(["direction", "order"], sort=False, as_index=False).mean()


def _check(patches: Any, grid: PatchGrid, *, steps: int, random_orders: int, fill: Any) -> None:
    if not isinstance(patches, Tensor) or tuple(patches.shape) != grid.shape:
        found = tuple(patches.shape) if isinstance(patches, Tensor) else type(patches).__name__
        raise InputError(f"patches must be a (row, col) tensor of the grid's shape {grid.shape}, found {found}.")
    if not bool(torch.isfinite(patches).all()):
        raise InputError("patches holds NaN or infinite values, so it orders nothing.")
    if not 1 <= steps <= patches.numel():
        raise InputError(f"steps must be between 1 and the {patches.numel()} patches, found {steps}.")
    if random_orders < 0:
        raise InputError(f"random_orders must be 0 or more, found {random_orders}.")
    if fill not in ("blur", "mean"):
        raise InputError(f"fill must be 'blur' or 'mean', found {fill!r}.")


def _hidden(picture: Image.Image, grid: PatchGrid, fill: str) -> NDArray[np.uint8]:
    """(height, width, 3) the picture with every patch hidden."""
    if fill == "blur":
        side = max(float(np.diff(grid.row_edges).max()), float(np.diff(grid.col_edges).max()))
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(side)))
    pixels = np.asarray(picture)
    return np.broadcast_to(pixels.mean((0, 1)).round().astype(np.uint8), pixels.shape)


def _owners(grid: PatchGrid, size: tuple[int, int]) -> NDArray[np.intp]:
    """(height, width) number of the patch that covers each pixel's centre, row-major, or -1."""
    parts = []
    for edges, length in zip((grid.row_edges, grid.col_edges), size, strict=True):
        found = np.searchsorted(np.asarray(edges), np.arange(length) + 0.5, side="right") - 1
        parts.append(np.where((found >= 0) & (found < len(edges) - 1), found, -1))
    rows, cols = parts[0][:, None], parts[1][None]
    return np.where((rows >= 0) & (cols >= 0), rows * grid.shape[1] + cols, -1)


def _mixed(
    picture: Image.Image, hidden: NDArray[np.uint8], shown: NDArray[np.bool_], owner: NDArray[np.intp]
) -> Image.Image:
    visible = np.where(owner >= 0, shown[owner], True)
    return Image.fromarray(np.where(visible[..., None], np.asarray(picture), hidden))


def _log_probability(subject: Subject, picture: Image.Image, prompt: str, answer: str, tokens: Sequence[int]) -> float:
    inputs, start = inputs_with_answer(subject, picture, prompt, answer)
    taken = inputs["input_ids"][0, start:]
    chosen = list(tokens)
    if not chosen or not all(0 <= one < len(taken) for one in chosen):
        raise InputError(f"tokens={chosen} must name one or more of the answer's {len(taken)} tokens, from 0.")
    with torch.inference_mode():
        logits = subject.model(**inputs, use_cache=False, logits_to_keep=len(taken) + 1).logits[0, :-1]
    chances = torch.log_softmax(logits.double(), dim=-1).gather(1, taken[:, None])[:, 0]
    return float(chances[chosen].sum())
