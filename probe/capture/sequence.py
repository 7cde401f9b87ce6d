"""One sequence as the model was fed it: token ids by position, the pictures, and where their tokens stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probe.capture.units import Unit
from probe.errors import CaptureError
from probe.layout import Layout

__all__ = ["Sequence", "prompts_of", "require_same_cache"]


@dataclass
class Sequence:
    """What the model was fed, position by position.

    Attributes
    ----------
    prompt : the token ids before the answer.
    image_token : the id of the placeholder that stands for one patch.
    attends : the attention mask given with the prompt, 1 for real tokens; ``None`` if there was none.
    units : the pictures of this sequence, in the order of its placeholders.
    ids : the token ids fed so far, the prompt included.
    """

    prompt: list[int]
    image_token: int
    attends: list[int] | None = None
    units: list[Unit] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    @property
    def positions(self) -> list[int]:
        """Where the image tokens stand in the prompt."""
        return [i for i, one in enumerate(self.prompt) if one == self.image_token]

    @property
    def image_keys(self) -> list[int]:
        """Where the image tokens stand among the keys: here, where they stand in the prompt."""
        return self.positions

    def text_positions(self, *, lag: int) -> tuple[int, ...]:
        """Positions of the prompt's text tokens that are read ``lag`` positions before, which must be a real token too."""
        # The first real token follows nothing, or padding, which predict nothing.
        hidden = {i for i, one in enumerate(self.attends or ()) if not one}
        return tuple(
            i
            for i, one in enumerate(self.prompt)
            if one != self.image_token and i not in hidden and i >= lag and i - lag not in hidden
        )

    def feed(self, ids: list[int], *, past: int) -> None:
        """Take the ids of one forward pass that continues after ``past`` cached positions.

        Raises
        ------
        CaptureError
            If the cache does not hold what was recorded so far.
        """
        require_same_cache(past, len(self.ids))
        expected = self.prompt[past : past + len(ids)]
        if expected != ids[: len(expected)]:
            raise CaptureError("The model was fed other token ids than the prompt that generate was given.")
        self.ids += ids

    def layout(self) -> Layout:
        """Where text and image tokens stand, from the ids and the mask; what the image tokens show is not said here."""
        padding = tuple(i for i, one in enumerate(self.attends or ()) if not one)
        hidden = set(padding)
        first = next((i for i in range(len(self.prompt)) if i not in hidden), 0)
        bos = None if self.prompt[first] == self.image_token else first
        return Layout((), len(self.prompt), padding, bos, tuple(self.positions))


def prompts_of(ids: Any) -> list[list[int]]:
    """The token ids of each sequence in the batch.

    Raises
    ------
    CaptureError
        If there are none, or they have no values.
    """
    if ids is None:
        raise CaptureError(
            "The model was given no input_ids (inputs_embeds instead?), so its tokens cannot be known; give input_ids."
        )
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not len(ids):
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise CaptureError(f"input_ids of shape {shape} were given; expected (sequence, length).")
    try:
        return [[int(one) for one in row] for row in ids.tolist()]
    except torch.OutOfMemoryError:  # a RuntimeError too, but of another kind
        raise
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # as under torch.func.vmap, torch.export and on the meta device
        raise CaptureError(
            "The token ids that the model was fed have no values (it runs under vmap or torch.export, or lies on the meta device), "
            "so there is nothing to record; run the model itself, on one batch."
        ) from error


def require_same_cache(past: int, fed: int) -> None:
    """Nothing, if the cache holds as many positions as were fed while recording.

    Raises
    ------
    CaptureError
        If it does not.
    """
    if past != fed:
        raise CaptureError(
            f"The key cache holds {past} positions but {fed} were fed while recording: what it was filled with cannot be known, or "
            "it was changed on the way. Start with an empty cache, and keep use_cache on in generate."
        )
