"""BLIP-2 and InstructBLIP: learned queries gather the patches for the language model (arXiv 2301.12597, 2305.06500)."""

from probe.families.base import Family

BLIP_2 = Family(
    name="blip_2",
    model_types=("blip-2",),
    models=("Blip2ForConditionalGeneration",),
    attention=("Blip2QFormerMultiHeadAttention",),
    image_tokens="none",
    class_token=True,
    image_processors=("BlipImageProcessor*",),
    kind="q-former",
)

INSTRUCTBLIP = Family(
    name="instructblip",
    model_types=("instructblip",),
    models=("InstructBlipForConditionalGeneration",),
    attention=("InstructBlipQFormerMultiHeadAttention",),
    image_tokens="none",
    class_token=True,
    image_processors=("BlipImageProcessor*",),
    kind="q-former",
)

BLIP_2_VISION = Family(
    name="blip_2_vision",
    model_types=("blip_2_vision_model", "instructblip_vision_model"),
    models=("Blip2VisionModel", "InstructBlipVisionModel"),
    attention=("Blip2Attention", "InstructBlipAttention"),
    image_tokens="none",
    class_token=True,
    image_processors=("BlipImageProcessor*",),
    kind="image encoder",
)
