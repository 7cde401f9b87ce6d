"""The hidden states of an image's patches on their way through a language model, for what attention alone cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.hooks import watch_forward
from probe.capture.passes import inputs_with_answer
from probe.capture.recorder import Recorder
from probe.capture.views import views_of
from probe.errors import CaptureError, InputError
from probe.images import read_image
from probe.layout import PatchGrid
from probe.models import Subject

__all__ = ["PatchStates", "patch_states"]


@dataclass(frozen=True, eq=False)
class PatchStates:
    """What goes into each layer of a language model where the patches of an image stand.

    Attributes
    ----------
    layers : module path of each layer.
    grid : where the patches lie in the image.
    values : (layer, row, col, channel) float32, on the host.
    first : (layer, channel) of the first token of the sequence, a sink in every language model.
    """

    layers: tuple[str, ...]
    grid: PatchGrid
    values: Tensor
    first: Tensor


def patch_states(subject: Subject, image: Any, prompt: str, *, answer: str | Sequence[int]) -> PatchStates:
    """The hidden states that go into each layer at an image's patches, while the model reads this answer: ``PatchStates``.

    >>> states = patch_states(subject, "photo.jpg", "Describe the image.", answer="a dog and a red ball")
    >>> dimensions = sink_dimensions(states.first[2:])               # probe.analysis.sinks
    >>> sinks = dimension_sinks(states.values[2:], dimensions).any(0)

    An image in several views gives its own, not its thumbnail's.

    Raises
    ------
    InputError, CaptureError
        If the model has no sequence in which patches stand, or as ``probe.record`` and ``probe.read_image`` do.
    """
    if not isinstance(subject, Subject) or subject.family.kind != "language model":
        raise InputError(f"patch_states() needs a Subject with a language model, found {subject!r}.")
    if subject.family.image_tokens == "cross-attention":
        raise CaptureError(
            f"The patches of {subject.name!r} are no part of its sequence, so they have no hidden states there."
        )
    model, picture = subject.model, read_image(image)
    inputs, start = inputs_with_answer(subject, picture, prompt, answer)
    layers = list(model.get_decoder().layers)
    inward: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inward[module] = (args[0] if args else kwargs["hidden_states"])[0].float().cpu()

    # One layer's attention is recorded beside, for the places of the patches.
    recorder = Recorder(model, subject.processor, layers=[0], heads=[0], answer_start=start)
    with torch.inference_mode(), recorder, watch_forward(layers, before=keep):
        model(**inputs, use_cache=False)
    track = recorder.tracks[0]
    seen = views_of(
        track.sequence.units,
        track.sequence.image_keys,
        model=model,
        processor=subject.processor,
        family=subject.family,
        images=picture,
    )
    view = next(one for one in seen.views if one.name == "image 0")
    if len(inward) != len(layers):
        raise CaptureError(f"Only {len(inward)} of {len(layers)} layers ran, so their states cannot be read.")
    states = torch.stack([inward[one] for one in layers])
    names = {module: name for name, module in model.named_modules()}
    first = track.layout.bos if track.layout is not None and track.layout.bos is not None else 0
    return PatchStates(
        layers=tuple(names[one] for one in layers),
        grid=view.grid,
        values=states[:, list(view.positions)].unflatten(1, view.grid.shape),
        first=states[:, first],
    )
