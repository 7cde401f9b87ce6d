"""``lab/sam``: a real SAM of about a million parameters that learned the outlines of scenes' objects from their masks.

Alone of the lab's models it was shown masks, as SAM was. It never saw a word: it knows where an object ends, not what it is called.

>>> from probe.lab.storage import folder
>>> from transformers import SamModel
>>> model = SamModel.from_pretrained(folder("lab/sam"), dtype="float32")   # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import InputError
from probe.lab.storage import halved, readable, without_progress_bars

__all__ = ["SamSettings", "build_sam", "make_sam_processor", "save_sam"]

INITIAL = 0.02  # standard deviation of the first weights; the library's for SAM's image encoder, 1e-10, cannot be trained from


@dataclass(frozen=True, kw_only=True)
class SamSettings:
    """How big the model is; the defaults are those of ``lab/sam``."""

    image: int = 128
    """Height and width in pixels of what the vision model sees."""
    patch: int = 8
    """Height and width of a patch in pixels; the decoder makes masks of four by four cells a patch."""
    vision_width: int = 96
    vision_inner: int = 192
    vision_layers: int = 4
    vision_heads: int = 4
    width: int = 96
    """Of prompts and of the mask decoder."""
    inner: int = 192
    heads: int = 4

    def __post_init__(self) -> None:
        for whole, part in (("image", "patch"), ("vision_width", "vision_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(f"{whole}={getattr(self, whole)} is not a multiple of {part}={getattr(self, part)}.")
        # The decoder attends in half its width, and makes masks in an eighth of it.
        if self.width % 8 or self.width // 2 % self.heads:
            raise InputError(f"width={self.width} is not a multiple of 8 and of 2 heads={2 * self.heads}.")

    @property
    def cells(self) -> int:
        """Height and width of the masks that the decoder makes."""
        return 4 * (self.image // self.patch)


def make_sam_processor(settings: SamSettings | None = None) -> Any:
    """A `SamProcessor`: the longest edge resized, the rest padded at the bottom and on the right, as SAM does."""
    from transformers import SamProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    settings = settings or SamSettings()
    image, cells = settings.image, settings.cells
    pictures = SamImageProcessorPil(
        size={"longest_edge": image},
        pad_size={"height": image, "width": image},
        mask_size={"longest_edge": cells},
        mask_pad_size={"height": cells, "width": cells},
    )
    return SamProcessor(pictures)


def build_sam(*, settings: SamSettings | None = None, seed: int = 0) -> Any:
    """A `SamModel` with random weights, in float32; the same for the same seed."""
    import torch
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    settings = settings or SamSettings()
    vision = SamVisionConfig(
        hidden_size=settings.vision_width,
        mlp_dim=settings.vision_inner,
        num_hidden_layers=settings.vision_layers,
        num_attention_heads=settings.vision_heads,
        output_channels=settings.width,
        num_pos_feats=settings.width // 2,
        image_size=settings.image,
        patch_size=settings.patch,
        window_size=0,
        global_attn_indexes=list(range(settings.vision_layers)),  # so few patches need no windows
        initializer_range=INITIAL,
    )
    prompts = SamPromptEncoderConfig(
        hidden_size=settings.width, image_size=settings.image, patch_size=settings.patch, mask_input_channels=16
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=settings.width,
        mlp_dim=settings.inner,
        num_attention_heads=settings.heads,
        iou_head_hidden_dim=settings.width,
    )
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, initializer_range=INITIAL
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SamModel(config).float()
        # The frequencies that places are told by: one standard deviation and never trained, as in SAM's own code. The library
        # draws them half the vision model's width times as high, where neighbouring pixels have nothing in common.
        frequencies = model.shared_image_embedding.positional_embedding
        torch.nn.init.normal_(frequencies, std=1.0)
    frequencies.requires_grad_(False)
    return model


def save_sam(out: str | Path, model: Any, processor: Any) -> None:
    """Nothing; writes model and processor to `out`, with the weights in half precision.

    The configuration still says float32, so that the model loads and runs in it unless asked otherwise.
    """
    with without_progress_bars():
        model.save_pretrained(out, state_dict=halved(model))
    readable(out)
    processor.save_pretrained(out)
