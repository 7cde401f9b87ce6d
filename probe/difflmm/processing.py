"""Pictures in two sizes, for CLIP and for the U-Net, and the processor that puts them beside the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, LlavaProcessor
from transformers.image_utils import SizeDict
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.processing_utils import ImagesKwargs

from probe.difflmm.configuration import DiffLMMConfig
from probe.errors import InputError

__all__ = ["CHAT_TEMPLATE", "DiffLMMImageProcessorPil", "make_processor"]

#: The conversation that LLaVA-1.5 and the released DiffLMM were trained with, word for word: another one changes the answers.
CHAT_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. "
    "{% for message in messages %}{% if message.role == 'user' %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %} {% else %}"
    "ASSISTANT: {{ message.content[0].text }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class DiffLMMImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What LLaVA's image processor takes, and the size of the U-Net's picture."""

    diffusion_size: dict[str, int] | None


class DiffLMMImageProcessorPil(LlavaImageProcessorPil):
    """``pixel_values`` for CLIP and ``diffusion_pixel_values`` in [-1, 1] for the U-Net, each (picture, 3, row, col).

    A picture is padded to a square with the mean colour as LLaVA does, resized to ``diffusion_size`` and, from there, shrunk
    bilinearly to ``size``: both show the same patches, and the smaller is made from the larger as in the released code.
    Which normalisation reaches the model is the model's own affair (``config.normalisation``), said in one place.

    Raises
    ------
    InputError
        If a centre crop is asked for: it would cut two sizes differently.
    """

    valid_kwargs = DiffLMMImageKwargs
    model_input_names = ["pixel_values", "diffusion_pixel_values"]  # noqa: RUF012 - the library reads a list
    size = {"height": 336, "width": 336}  # noqa: RUF012
    crop_size = {"height": 336, "width": 336}  # noqa: RUF012
    diffusion_size = {"height": 384, "width": 384}  # noqa: RUF012
    default_to_square = True
    do_pad = True
    do_center_crop = False

    def _preprocess(
        self,
        images: list[np.ndarray],
        *,
        size: SizeDict,
        diffusion_size: dict[str, int],
        image_mean: Any,
        image_std: Any,
        do_center_crop: bool,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if do_center_crop or not (size.height and size.width):
            raise InputError(
                "A DiffLMM's picture is padded to a square and resized to a height and width, never cropped; found "
                f"do_center_crop={do_center_crop} and size={dict(size)}."
            )
        settings = kwargs | {"do_normalize": False, "do_rescale": True, "do_resize": True}
        large = super()._preprocess(
            images,
            size=SizeDict(**diffusion_size),
            image_mean=image_mean,  # the colour of the padding
            image_std=image_std,
            do_center_crop=False,
            return_tensors=None,
            **settings,
        )["pixel_values"]
        pictures = torch.from_numpy(np.stack(large)).float()
        small = torch.nn.functional.interpolate(pictures, size=(size.height, size.width), mode="bilinear")
        mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (image_mean, image_std))
        data = {"pixel_values": ((small - mean) / std).numpy(), "diffusion_pixel_values": (2 * pictures - 1).numpy()}
        return BatchFeature(data=data, tensor_type=return_tensors)


def make_processor(tokenizer: Any, config: DiffLMMConfig, *, chat_template: str = CHAT_TEMPLATE) -> LlavaProcessor:
    """LLaVA's processor for a DiffLMM of this configuration: one image placeholder a patch.

    Parameters
    ----------
    tokenizer : one that knows ``<image>`` as a token.

    Raises
    ------
    InputError
        If the tokenizer's placeholder is not the configuration's.
    """
    vision: Any = config.vision_config
    diffusion: Any = config.diffusion_config
    found = tokenizer.convert_tokens_to_ids("<image>")
    if found != config.image_token_id:
        raise InputError(f"The tokenizer's <image> has id {found}, but the configuration says {config.image_token_id}.")
    pictures = DiffLMMImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size},
        crop_size={"height": vision.image_size, "width": vision.image_size},
        diffusion_size={"height": diffusion.image_size, "width": diffusion.image_size},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops again
        chat_template=chat_template,
    )
