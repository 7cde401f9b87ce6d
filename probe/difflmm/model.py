"""DiffLMM: a LLaVA whose visual tokens come from a frozen diffusion U-Net beside CLIP."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from probe.difflmm.configuration import DiffLMMConfig, require_consistent
from probe.difflmm.encoder import DiffusionTower, ImplicitCaption
from probe.difflmm.projector import DiffLMMProjector
from probe.errors import InputError, ModelError

__all__ = ["DiffLMMForConditionalGeneration", "DiffLMMModel"]


# The library calls the key cache "past_key_values" until 5.23 and "cache" since then.
_CACHE = "cache" if "cache" in signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"


class DiffLMMPreTrainedModel(LlavaPreTrainedModel):
    """What both models share: configuration, initialisation, and what stays in single precision."""

    config_class = DiffLMMConfig
    # diffusers' VAEs declare `force_upcast`: in half precision some overflow.
    _keep_in_fp32_modules_strict = ("diffusion_tower.vae",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (ImplicitCaption, DiffLMMProjector)):
            init.normal_(module.position, mean=0.0, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The model of a folder or hub name, as the library loads it, with its frozen parts frozen."""
        found = super().from_pretrained(*args, **kwargs)
        # Loading puts new parameters in the place of those that were frozen when the model was made.
        (found[0] if isinstance(found, tuple) else found).base_model.freeze()
        return found


class DiffLMMModel(DiffLMMPreTrainedModel, LlavaModel):
    """The model without its language modelling head.

    ``vision_tower`` is CLIP, ``diffusion_tower`` holds ``vae``, ``unet`` and ``caption``, ``multi_modal_projector`` makes the
    visual tokens, ``language_model`` reads them.

    Raises
    ------
    ModelError
        If the parts of the configuration do not fit each other.
    """

    def __init__(self, config: DiffLMMConfig) -> None:
        require_consistent(config)
        # Not LLaVA's own: it would make a projector that is thrown away.
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.diffusion_tower = DiffusionTower(config)
        self.multi_modal_projector = DiffLMMProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.freeze()
        self.post_init()

    def freeze(self) -> None:
        """Take CLIP, VAE and U-Net out of training: they get no gradients, and dropout in them stays off."""
        for one in self._frozen():
            one.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DiffLMMModel:
        """The model itself, in training mode but for what is frozen."""
        super().train(mode)
        for one in self._frozen():
            one.eval()
        return self

    def _frozen(self) -> tuple[nn.Module, ...]:
        return (self.vision_tower, self.diffusion_tower.vae, self.diffusion_tower.unet)

    def get_image_features(
        self,
        pixel_values: Tensor,
        diffusion_pixel_values: Tensor | None = None,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """CLIP's output, whose ``pooler_output`` is a list of visual tokens (patch, text width), one entry a picture.

        Parameters
        ----------
        pixel_values : (picture, 3, row, col), normalised once for CLIP.
        diffusion_pixel_values : (picture, 3, row, col) in [-1, 1]: the same pictures, larger.

        Raises
        ------
        InputError
            If the pictures are not there in both sizes, or of other sizes.
        ModelError
            If the settings of ``config.diffusion_config`` were changed to something impossible.
        """
        self._require_pictures(pixel_values, diffusion_pixel_values)
        assert diffusion_pixel_values is not None  # for the type checker: just checked
        if self.config.normalisation == "as-released":
            pixel_values, diffusion_pixel_values = self._as_released(pixel_values, diffusion_pixel_values)
        layer = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        found = self.vision_tower(pixel_values.to(self.vision_tower.dtype), output_hidden_states=True, return_dict=True)
        patches = found.hidden_states[layer][:, 1:]  # without the class token
        features = self.diffusion_tower(diffusion_pixel_values, patches)
        found.pooler_output = list(self.multi_modal_projector(features.to(patches.dtype), patches))
        return found

    def _require_pictures(self, pixels: Tensor, larger: Tensor | None) -> None:
        if larger is None:
            raise InputError(
                "The U-Net's picture is missing: diffusion_pixel_values must come with pixel_values; prepare pictures with the "
                "model's own processor, which makes both."
            )
        if len(larger) != len(pixels):
            raise InputError(
                f"{len(pixels)} pictures for CLIP but {len(larger)} for the U-Net; give both sizes of each."
            )
        side = self.config.vision_config.image_size
        if tuple(pixels.shape[1:]) != (3, side, side):
            raise InputError(
                f"pixel_values has shape {tuple(pixels.shape)}, expected (picture, 3, {side}, {side}); prepare pictures with the "
                "model's own processor."
            )
        self.diffusion_tower.require_ready(larger)

    def _as_released(self, pixels: Tensor, larger: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels that the released code feeds, from those that were intended.

        There `x = (p - mean) / std` of a picture p in [0, 1] is taken for `2 p - 1`: the VAE gets x as it is, and CLIP gets
        `((x / 2 + 1 / 2) - mean) / std`. In single precision, whatever the model's.
        """
        kind = torch.promote_types(larger.dtype, torch.float32)
        mean, std = (
            torch.tensor(one, dtype=kind, device=larger.device).view(1, 3, 1, 1)
            for one in (self.config.image_mean, self.config.image_std)
        )
        return ((pixels.to(kind) / 2 + 0.5) - mean) / std, ((larger.to(kind) + 1) / 2 - mean) / std

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        diffusion_pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """LLaVA's output, with the visual tokens where its image placeholders stand."""
        found = (mm_encoder_outputs or {}).get("image")
        if found is None and pixel_values is not None:
            self._require_placeholders(input_ids, len(pixel_values))
            found = self.get_image_features(pixel_values, diffusion_pixel_values)
        if found is None:
            return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        tokens = torch.cat(list(found.pooler_output), dim=0).to(inputs_embeds)
        mask = self.get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds, image_features=tokens)
        output = super().forward(inputs_embeds=inputs_embeds.masked_scatter(mask, tokens), **kwargs)
        if not isinstance(output, tuple):
            # Since 5.24 outputs hold what the image encoder gave, and the visual tokens are read from that.
            if hasattr(output, "image_outputs"):
                output.image_outputs = found
            else:
                output.image_hidden_states = tokens
        return output

    def _require_placeholders(self, ids: Tensor | None, pictures: int) -> None:
        """Nothing, if the prompt has a place for every patch: said before the pictures are encoded."""
        wanted = pictures * self.config.image_seq_length
        if ids is not None and (found := int((ids == self.config.image_token_id).sum())) != wanted:
            raise InputError(
                f"{pictures} pictures of {self.config.image_seq_length} patches need {wanted} image placeholders, but the prompt "
                f"holds {found}; let the processor make text and pictures together."
            )


class DiffLMMForConditionalGeneration(DiffLMMPreTrainedModel, LlavaForConditionalGeneration):
    """A DiffLMM that answers questions about pictures; used as any LLaVA is.

    >>> import probe.difflmm                                      # makes the Auto classes know it
    >>> model = AutoModelForImageTextToText.from_pretrained("runs/difflmm")
    >>> processor = AutoProcessor.from_pretrained("runs/difflmm")
    >>> model.generate(**processor(images=image, text="USER: <image>\\nWhat is this? ASSISTANT:", return_tensors="pt"))

    The noise comes from ``model.config.diffusion_config.seed``: a picture gives the same answer each time, alone or in a batch.

    Raises
    ------
    ModelError
        If the parts of the configuration do not fit each other.
    """

    def __init__(self, config: DiffLMMConfig) -> None:
        if not isinstance(config, DiffLMMConfig):
            raise ModelError(f"A DiffLMM needs a DiffLMMConfig, found a {type(config).__name__}.")
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = DiffLMMModel(config)
        text: Any = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, diffusion_pixel_values: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See ``DiffLMMModel.get_image_features``."""
        return self.model.get_image_features(pixel_values, diffusion_pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        diffusion_pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """LLaVA's output for a prompt and its pictures; parameters as there, and the U-Net's pictures.

        Every name stands here because the library looks for them here: ``generate`` and ``Trainer`` drop what they do not find.
        """
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            diffusion_pixel_values=diffusion_pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            mm_encoder_outputs=mm_encoder_outputs,
            **{_CACHE: past_key_values if cache is None else cache},
            **kwargs,
        )
