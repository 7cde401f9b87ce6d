"""One sequence as the model was fed it: token ids by position, the picture, and where its patches sit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from probe.capture.geometry import Preparation
from probe.errors import CaptureError, InputError
from probe.families import Family
from probe.layout import Layout, View

__all__ = ["Sequence", "batch_of_one", "image_token_id", "patch_size", "require_one_sequence"]


@dataclass
class Sequence:
    """What the model was fed, position by position.

    Attributes
    ----------
    prompt : the token ids before the answer.
    ids : the token ids fed so far, the prompt included.
    attends : the attention mask given with the prompt, 1 for real tokens; ``None`` if there was none.
    pixels : (1, channel, row, col) processed picture.
    image_token : the id of the placeholder that stands for one patch.
    """

    prompt: list[int]
    image_token: int
    attends: list[int] | None = None
    pixels: Tensor | None = None
    ids: list[int] = field(default_factory=list)

    def feed(self, ids: list[int], *, past: int) -> None:
        """Take the ids of one forward pass that continues after ``past`` cached positions.

        Raises
        ------
        CaptureError
            If the cache does not hold what was recorded so far.
        """
        if past != len(self.ids):
            raise CaptureError(
                f"The key cache holds {past} positions but {len(self.ids)} were fed while recording: what it was filled with "
                "cannot be known, or it was changed on the way. Start with an empty cache, and keep use_cache on in generate."
            )
        expected = self.prompt[past : past + len(ids)]
        if expected != ids[: len(expected)]:
            raise CaptureError("The model was fed other token ids than the prompt that generate was given.")
        self.ids += ids

    def layout(self, model: Any, family: Family, *, start: int) -> Layout:
        """Where text and patches sit, from the ids, the mask and the picture themselves.

        The grid is in processed pixels here; ``result(image=...)`` puts it into the original's.
        """
        if self.pixels is None:
            raise InputError(
                "No image was given to the model (pixel_values is missing): there are no patches to record."
            )
        if self.pixels.ndim != 4 or self.pixels.shape[0] != 1:
            raise CaptureError(
                f"pixel_values has shape {tuple(self.pixels.shape)}; one image a sequence can be recorded, as (1, channel, height, "
                "width). Several images come later."
            )
        token = self.image_token
        positions = [i for i, one in enumerate(self.prompt) if one == token]
        frame = (int(self.pixels.shape[-2]), int(self.pixels.shape[-1]))
        grid = Preparation.unknown(frame).grid(patch_size(model))
        patches = positions
        other: tuple[int, ...] = ()
        full = getattr(model.config, "vision_feature_select_strategy", None) == "full"
        if family.class_token and full and len(positions) == grid.shape[0] * grid.shape[1] + 1:
            # This strategy keeps the class token, in front of the patches.
            patches, other = positions[1:], (positions[0],)
        padding = tuple(i for i, one in enumerate(self.attends or ()) if not one)
        first = next((i for i in range(len(self.prompt)) if i not in set(padding)), 0)
        bos = None if self.prompt[first] == token else first
        view = View("image 0", grid, tuple(patches))
        return Layout((view,), start, padding, bos, other)


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
    if not isinstance(found, int):
        raise CaptureError(
            f"The vision configuration of {type(model).__name__} has patch_size={found!r}; expected one number."
        )
    return found


def batch_of_one(ids: Any) -> list[int]:
    """The token ids of the only sequence in the batch.

    Raises
    ------
    CaptureError
        If there are several, or none.
    """
    if ids is None:
        raise CaptureError(
            "The model was given no input_ids (inputs_embeds instead?), so its tokens cannot be known; give input_ids."
        )
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[0] != 1:
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise CaptureError(
            f"input_ids of shape {shape} were given; one sequence at a time, as (1, length), can be recorded. Batches come later."
        )
    return [int(one) for one in ids[0]]


def require_one_sequence(given: dict[str, Any], settings: Any) -> None:
    """Nothing, if ``generate`` makes one sequence, and feeds it token by token.

    Parameters
    ----------
    given, settings : the arguments of ``generate``, and the generation configuration that holds where they say nothing.

    Raises
    ------
    CaptureError
        If it searches beams, gives back several, or lets the model read tokens that it may drop again.
    """
    for name in ("num_beams", "num_return_sequences"):
        value = given.get(name, getattr(settings, name, None)) or 1
        if value > 1:
            raise CaptureError(
                f"{name}={value} cannot be followed yet; record greedy decoding or sampling of one sequence."
            )
    for name in ("assistant_model", "prompt_lookup_num_tokens"):
        if given.get(name) is not None:
            raise CaptureError(f"{name} makes the model read tokens that it may drop again, which cannot be followed.")
