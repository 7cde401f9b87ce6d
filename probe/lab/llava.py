"""``lab/llava``: a real LLaVA of one million parameters that learned to caption scenes, and the folders it ships in.

>>> from probe.lab.llava import folder
>>> from transformers import AutoProcessor, LlavaForConditionalGeneration
>>> model = LlavaForConditionalGeneration.from_pretrained(folder("lab/llava"), dtype="float32")   # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import InputError, ModelError
from probe.lab.storage import MODELS, WEIGHTS_FILE, folder, halved, readable, without_progress_bars

__all__ = [
    "MODELS",
    "LlavaSettings",
    "build",
    "folder",
    "llama_config",
    "load",
    "load_processor",
    "make_processor",
    "picture_processor",
    "save_folder",
    "save_snapshot",
    "snapshot_folders",
    "without_progress_bars",
]

LONGEST_ANSWER = 64  # tokens; the longest captions have about half as many


@dataclass(frozen=True, kw_only=True)
class LlavaSettings:
    """How big the model is; the defaults are those of ``lab/llava``."""

    image: int = 64
    """Height and width in pixels of what the vision model sees."""
    patch: int = 8
    """Height and width of a patch in pixels."""
    vision_width: int = 96
    vision_inner: int = 192
    vision_layers: int = 4
    vision_heads: int = 4
    width: int = 128
    inner: int = 256
    layers: int = 4
    heads: int = 8

    def __post_init__(self) -> None:
        for whole, part in (("image", "patch"), ("vision_width", "vision_heads"), ("width", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(f"{whole}={getattr(self, whole)} is not a multiple of {part}={getattr(self, part)}.")


def make_processor(settings: LlavaSettings | None = None) -> Any:
    """A `LlavaProcessor`: shortest edge resized and centre cropped as LLaVA-1.5 does, and the lab's own tokenizer."""
    from transformers import LlavaProcessor

    from probe.lab.words import CHAT_TEMPLATE, tokenizer

    settings = settings or LlavaSettings()
    pictures = picture_processor(settings.image)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer(),
        patch_size=settings.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops again
        chat_template=CHAT_TEMPLATE,
    )


def picture_processor(side: int) -> Any:
    """A `CLIPImageProcessorPil` that makes the shortest edge `side` pixels long and crops the centre, as LLaVA-1.5 does."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def llama_config(words: Any, settings: Any) -> Any:
    """The `LlamaConfig` of a language model for the tokenizer `words`, as large as `settings` says."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=settings.width,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )


def build(processor: Any, *, settings: LlavaSettings | None = None, seed: int = 0) -> Any:
    """A `LlavaForConditionalGeneration` with random weights for `processor`, in float32; the same for the same seed."""
    import torch
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    settings = settings or LlavaSettings()
    words = processor.tokenizer
    text = llama_config(words, settings)
    vision = CLIPVisionConfig(
        hidden_size=settings.vision_width,
        intermediate_size=settings.vision_inner,
        num_hidden_layers=settings.vision_layers,
        num_attention_heads=settings.vision_heads,
        image_size=settings.image,
        patch_size=settings.patch,
        projection_dim=settings.width,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=processor.image_token_id,
        image_seq_length=(settings.image // settings.patch) ** 2,
        vision_feature_layer=-1,  # every layer is trained, so the last one is as good as any
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.max_new_tokens = LONGEST_ANSWER
    return model.float()


def save_folder(out: str | Path, model: Any, processor: Any) -> None:
    """Nothing; writes model and processor to `out`, with the weights in half precision.

    The configuration still says float32, so that the model loads and runs in it unless asked otherwise.
    """
    with without_progress_bars():
        model.save_pretrained(out, state_dict=halved(model))
    readable(out)
    processor.save_pretrained(out)


def save_snapshot(out: str | Path, step: int, model: Any) -> Path:
    """The folder ``out/snapshots/step-00100`` with the weights alone, in half precision."""
    place = Path(out) / "snapshots" / f"step-{step:05d}"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as beside, without_progress_bars():
        model.save_pretrained(beside, state_dict=halved(model))
        (Path(beside) / WEIGHTS_FILE).replace(place / WEIGHTS_FILE)
    readable(place)
    return place


def snapshot_folders(name: str | Path) -> dict[int, Path]:
    """The training steps of which a model has weights, each with its folder, in order of time; without the final ones.

    Parameters
    ----------
    name : A name in `MODELS`, or a folder that `train_llava` wrote.
    """
    found = {
        path.parent.name.removeprefix("step-"): path.parent
        for path in _folder(name).glob(f"snapshots/step-*/{WEIGHTS_FILE}")
    }
    # A folder of the user's own, such as "step-last", is at no step.
    return dict(sorted((int(step), place) for step, place in found.items() if step.isdecimal()))


def load(name: str | Path, *, step: int | None = None) -> tuple[Any, Any]:
    """The model (float32, eval mode) and its processor; with `step`, the weights of that snapshot.

    Parameters
    ----------
    name : A name in `MODELS`, or a folder that `train_llava` wrote.

    Raises
    ------
    ModelError
        An unknown name, or a step of which there is no snapshot.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig, LlavaForConditionalGeneration

    home = place = _folder(name)
    if step is not None:
        snapshots = snapshot_folders(name)
        if step not in snapshots:
            raise ModelError(
                f"{name} has no snapshot of step {step}; it has {', '.join(map(str, snapshots)) or 'none'}."
            )
        place = snapshots[step]
    with without_progress_bars():
        model = LlavaForConditionalGeneration.from_pretrained(
            place,
            # A snapshot is weights alone: the rest is its parent's.
            config=AutoConfig.from_pretrained(home, trust_remote_code=False),
            generation_config=GenerationConfig.from_pretrained(home),
            dtype=torch.float32,
        )
    return model.eval(), load_processor(home)


def load_processor(home: str | Path) -> Any:
    """The `LlavaProcessor` saved in a folder."""
    from transformers import LlavaProcessor

    return LlavaProcessor.from_pretrained(home)


def _folder(name: str | Path) -> Path:
    """The folder of a model given by name or by folder."""
    return Path(name) if Path(name).is_dir() else folder(str(name))
