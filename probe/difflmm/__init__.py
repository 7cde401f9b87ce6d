"""DiffLMM as a transformers model. Importing this makes the Auto classes know it; nothing of capture is needed.

>>> from probe.difflmm import DiffLMMConfig, DiffLMMForConditionalGeneration
>>> model = DiffLMMForConditionalGeneration(DiffLMMConfig.paper())
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaProcessor,
)

# At the top of the library this is a placeholder where torchvision is absent, in its oldest supported releases.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from probe.difflmm.configuration import DiffLMMConfig, DiffusionConfig
from probe.difflmm.encoder import DiffusionTower, ImplicitCaption
from probe.difflmm.model import DiffLMMForConditionalGeneration, DiffLMMModel
from probe.difflmm.processing import DiffLMMImageProcessorPil, make_processor
from probe.difflmm.projector import DiffLMMProjector

__all__ = [
    "DiffLMMConfig",
    "DiffLMMForConditionalGeneration",
    "DiffLMMImageProcessorPil",
    "DiffLMMModel",
    "DiffLMMProjector",
    "DiffusionConfig",
    "DiffusionTower",
    "ImplicitCaption",
    "make_processor",
]

AutoConfig.register("difflmm", DiffLMMConfig, exist_ok=True)
AutoModel.register(DiffLMMConfig, DiffLMMModel, exist_ok=True)
AutoModelForImageTextToText.register(DiffLMMConfig, DiffLMMForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(DiffLMMConfig, image_processor_classes={"pil": DiffLMMImageProcessorPil}, exist_ok=True)
AutoProcessor.register(DiffLMMConfig, LlavaProcessor, exist_ok=True)
