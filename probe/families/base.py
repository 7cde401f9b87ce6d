"""What a model family declares about itself: plain facts, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Family", "Kind"]

Kind = Literal["language model", "image encoder", "diffusion"]


@dataclass(frozen=True)
class Family:
    """The facts that capture needs about one kind of model. Names are shell patterns over class names, never module paths.

    Attributes
    ----------
    name : as it stands in a record's source.
    model_types : ``config.model_type`` of its checkpoints.
    models : class names of the models themselves.
    attention : class names of the attention modules of the language model, of the image encoder, or of the U-Net.
    image_tokens : how patches reach the sequence. "placeholder": one ``config.image_token_id`` a patch, row by row. "none": there
        is no sequence that text and patches share.
    class_token : True if the vision tower has a class token in front, which the feature selection may keep or drop.
    image_processors : class names of the image processors whose geometry is known to be resize, pad and centre crop.
    kind : what it does with an image: a "language model" speaks about it, an "image encoder" embeds it, "diffusion" denoises it.
    denoiser : class names of what denoises in a diffusion pipeline.
    text_encoders : parts of a diffusion pipeline whose states are the words of its keys, in the order of the keys. Those of one
        group stand side by side in the channels, so that each key is one word of all of them; the groups follow each other.
    text_first : whether text comes before the patches where both are keys of one attention; ``None`` where they never are.
    """

    name: str
    model_types: tuple[str, ...]
    models: tuple[str, ...]
    attention: tuple[str, ...]
    image_tokens: Literal["placeholder", "none"]
    class_token: bool
    image_processors: tuple[str, ...]
    kind: Kind = "language model"
    denoiser: tuple[str, ...] = ()
    text_encoders: tuple[tuple[str, ...], ...] = ()
    text_first: bool | None = None
