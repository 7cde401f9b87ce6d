"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: grids of the picture's own size, squares of patches merged (Wang et al., arXiv 2409.12191)."""

from probe.families.base import Family

QWEN2_VL = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    models=("Qwen2VLForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="grid_thw",
    class_token=False,
    image_processors=("Qwen2VLImageProcessor*",),
    merge="vision_config.spatial_merge_size",
)

QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    models=("Qwen2_5_VLForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="grid_thw",
    class_token=False,
    image_processors=("Qwen2VLImageProcessor*",),
    merge="vision_config.spatial_merge_size",
)

QWEN3_VL = Family(
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    models=("Qwen3VLForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="grid_thw",
    class_token=False,
    image_processors=("Qwen2VLImageProcessor*",),
    merge="vision_config.spatial_merge_size",
)
