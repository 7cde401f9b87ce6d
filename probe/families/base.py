"""What a model family declares about itself: plain facts, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Family", "Kind"]

Kind = Literal["language model", "q-former", "image encoder", "diffusion"]


@dataclass(frozen=True)
class Family:
    """The facts that capture needs about one kind of model. Names are shell patterns over class names, never module paths.

    Attributes
    ----------
    name : as it stands in a record's source.
    model_types : ``config.model_type`` of its checkpoints.
    models : class names of the models themselves.
    attention : class names of the attention modules of the language model, of the image encoder, or of the U-Net.
    image_tokens : how patches reach the sequence, each as one ``config.image_token_id``. "placeholder": an image, row by row, of
        one size or of its own (``image_sizes``). "grid_thw": of its own size in patches (``image_grid_thw``). "anyres": a
        thumbnail, then tiles put together, freed of padding, a newline behind every row. "tiles": tile by tile, a thumbnail behind
        them. "cross-attention": one placeholder an image, whose tiles are the keys of layers that have no other; class tokens too.
        "none": there is no sequence that text and patches share.
    vision_types : ``config.vision_config.model_type`` of its vision towers, where models of one class are of several families.
    class_token : True if the vision tower has a class token in front, which the feature selection may keep or drop.
    image_processors : class names of the image processors whose geometry is known to be resize, pad and centre crop.
    merge : the field of the configuration that says how many patches a side become one image token, or by which ratio the grid
        shrinks; empty where a patch is a token.
    prompt : what is asked of a model without a chat template, around its image placeholder.
    answer_type : what stands for an answer's token in ``token_type_ids``.
    kind : what it does with an image: a "language model" speaks about it, a "q-former" gathers it in learned queries before
        words come into it, an "image encoder" embeds it, "diffusion" denoises it.
    denoiser : class names of what denoises in a diffusion pipeline.
    text_encoders : parts of a diffusion pipeline whose states are the words of its keys, in the order of the keys. Those of one
        group stand side by side in the channels, so that each key is one word of all of them; the groups follow each other.
    text_first : whether text comes before the patches where both are keys of one attention; ``None`` where they never are.
    """

    name: str
    model_types: tuple[str, ...]
    models: tuple[str, ...]
    attention: tuple[str, ...]
    image_tokens: Literal["placeholder", "grid_thw", "anyres", "tiles", "cross-attention", "none"]
    class_token: bool
    image_processors: tuple[str, ...]
    kind: Kind = "language model"
    merge: str = ""
    prompt: str = "{image}\n{prompt}\n"
    answer_type: int = 0
    vision_types: tuple[str, ...] = ()
    denoiser: tuple[str, ...] = ()
    text_encoders: tuple[tuple[str, ...], ...] = ()
    text_first: bool | None = None
