"""Language models that look at a picture in layers of their own, where the keys are the picture's tokens and not the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probe.capture.pictures import tile_keys
from probe.capture.sequence import Sequence
from probe.capture.taps import AttentionCall
from probe.capture.tracks import dropped_positions
from probe.capture.units import Unit
from probe.errors import CaptureError
from probe.families import Family
from probe.layout import Layout

__all__ = ["CrossSequence", "dropped_keys", "projected_tokens", "sequence_of"]


@dataclass
class CrossSequence(Sequence):
    """A sequence whose pictures are the keys of cross-attention: picture by picture, tile by tile, a class token and its patches.

    Attributes
    ----------
    slot : number of keys that each picture takes, padded tiles included.
    slots : number of pictures that there is room for: as many as the sequence with the most pictures has.
    """

    slot: int = 0
    slots: int = 0

    @property
    def image_keys(self) -> list[int]:
        """The keys of what the pictures show, without padded tiles."""
        return [number * self.slot + key for number, unit in enumerate(self.units) for key in range(unit.count)]

    def text_positions(self, *, lag: int) -> tuple[int, ...]:
        """As of any sequence, but from the first picture on: before it a row is told to look at nothing, and what the kernel then
        gives out, an even look at all keys, padding too, means nothing."""
        first = min(self.positions, default=len(self.prompt))
        return tuple(one for one in super().text_positions(lag=lag) if one - lag >= first)

    def layout(self) -> Layout:
        """Where the pictures' tokens are among the keys; all else is padding, and there is no text."""
        shown, keys = self.image_keys, self.slot * self.slots
        hidden = set(range(keys)) - set(shown)
        return Layout((), keys, padding=tuple(sorted(hidden)), other=tuple(shown))


def sequence_of(
    prompt: list[int],
    token: int,
    attends: list[int] | None,
    units: list[Unit],
    *,
    model: Any,
    family: Family,
    given: Any,
) -> Sequence:
    """One sequence of a batch, with its pictures in the sequence itself or among keys of their own.

    Parameters
    ----------
    given : what the model was fed besides token ids, by name.

    Raises
    ------
    CaptureError
        If nothing says which tiles the text may look at.
    """
    if family.image_tokens != "cross-attention":
        return Sequence(prompt, token, attends, units)
    if given.get("cross_attention_mask") is None:
        raise CaptureError(
            "cross_attention_mask is missing: without it the text looks at padded tiles too, or the kernel takes its keys for a "
            "causal text; pass everything that the model's processor made."
        )
    slots, tiles = given["pixel_values"].shape[1:3]
    return CrossSequence(prompt, token, attends, units, slot=int(tiles) * tile_keys(model), slots=int(slots))


def dropped_keys(name: str, module: nn.Module, call: AttentionCall, cache: Any, *, fed: int, sequence: Sequence) -> int:
    """How many keys, counted from the first, a call no longer has; see ``dropped_positions``. Those of pictures are never dropped.

    Raises
    ------
    CaptureError
        If keys are missing, or there are more than were laid out.
    """
    if not isinstance(sequence, CrossSequence):
        return dropped_positions(name, module, call, cache, fed=fed, total=len(sequence.ids))
    queries, keys, laid_out = call.query.shape[2], call.key.shape[2], sequence.slot * sequence.slots
    if queries != fed or keys != laid_out:
        raise CaptureError(
            f"{name} saw {queries} queries and {keys} keys where {fed} tokens were fed and the pictures have {laid_out} keys, so "
            "columns cannot be matched to patches; start with an empty cache, and give each picture once."
        )
    return 0


def projected_tokens(model: Any, inputs: dict[str, Any]) -> Tensor:
    """(key, channel) what the cross-attention layers of a model are given of its pictures, in the order of their keys."""
    inner = model.model
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    states = inner.vision_model(**{name: inputs[name] for name in names}).last_hidden_state
    found: Tensor = inner.multi_modal_projector(states)
    return found.reshape(-1, found.shape[-1])
