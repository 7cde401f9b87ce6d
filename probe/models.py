"""From a name, a folder or a live object to a subject: model, processor and family."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import ModelError
from probe.families import Family, family_of
from probe.families.wrappers import unwrapped
from probe.loading import CONFIG, locate, number_type, quiet, require_complete, typed, usable_device
from probe.pipelines import INDEX, load_pipeline

__all__ = ["Subject", "load_model"]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is studied: a live model with its processor.

    Attributes
    ----------
    model : a transformers model, or a diffusers pipeline.
    processor : its processor: tokenizer and image processor; a pipeline's image processor.
    family : what is known of its kind.
    name : what it was loaded as.
    """

    model: Any
    processor: Any
    family: Family
    name: str

    def __repr__(self) -> str:
        return f"Subject({self.name!r}, family {self.family.name!r}, {self.model.dtype}, {self.model.device})"


def load_model(
    model: str | os.PathLike[str] | Any,
    processor: Any = None,
    *,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """A ``Subject`` in evaluation mode, from a name, a folder or a live model.

    >>> subject = probe.load_model("lab/llava")

    Parameters
    ----------
    model : "lab/..." for a model that ships with the package, a hub name, a local folder, a live transformers model, or a live
        diffusers pipeline.
    processor : only with a live model, and needed there; a pipeline brings its own.
    dtype : "auto" takes the checkpoint's own (float32 for "lab/..." and for pipelines); or "float32", "bfloat16", ...
    device : such as "cuda"; by default a GPU if torch sees one, and the CPU otherwise. A live model stays where it is.
    trust_remote_code : run Python code that comes with the checkpoint. Never on unless asked for.

    Raises
    ------
    ModelError
        If it cannot be found or loaded, is neither a vision-language model, an image encoder nor a diffusion pipeline, or is of an
        unknown family.
    CaptureError
        If a live model is inside a wrapper that cannot be recorded: compiled, or parallel.
    """
    if not isinstance(model, (str, os.PathLike)):
        return _live(model, processor)
    name = os.fspath(model)
    return _load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def _live(model: Any, processor: Any) -> Subject:
    """The subject of a model that is there already."""
    model = unwrapped(model)
    config = getattr(model, "config", None)
    name = getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", "") or type(model).__name__
    family = family_of(model)
    if processor is None and family.kind != "diffusion":
        raise ModelError(
            f"A live {type(model).__name__} needs its processor too: load_model(model, processor); a name or a folder "
            "brings its own."
        )
    return Subject(model, model.image_processor if processor is None else processor, family, name)


def _load(name: str, *, dtype: str, device: str | None, trust_remote_code: bool) -> Subject:
    import torch

    folder, dtype = locate(name, dtype=dtype, files=(CONFIG, INDEX), example="lab/llava")
    wanted = number_type(dtype)
    target = usable_device(device)
    # Reading a large checkpoint takes a while, so its bar may show on a terminal; the shipped model needs none.
    bars = folder == name and (not Path(name).is_dir() or sys.stderr.isatty())
    with typed(name), quiet(bars=bars):
        pipeline = _pipeline_folder(folder)
        if pipeline is not None:
            # Its configuration names no number type; its parts are computed in single precision unless told otherwise.
            model, family = load_pipeline(pipeline, dtype=torch.float32 if wanted == "auto" else wanted, device=target)
            model.register_to_config(_name_or_path=name)
            return Subject(model, model.image_processor, family, name)
        model, processor, family = _load_parts(folder, dtype=wanted, trust_remote_code=trust_remote_code)
        model = model.to(target).eval()
    # The library notes where the files lay on this machine; a record says what was asked for.
    model.config.name_or_path = name
    return Subject(model, processor, family, name)


def _load_parts(folder: str, *, dtype: Any, trust_remote_code: bool) -> tuple[Any, Any, Family]:
    """The transformers model in a folder or on the hub, its processor and its family."""
    import transformers

    remote = {"trust_remote_code": trust_remote_code}
    settings, _ = transformers.PretrainedConfig.get_config_dict(folder)
    if isinstance(settings, dict) and settings.get("model_type") == "difflmm":
        importlib.import_module("probe.difflmm")  # makes its classes known to the library
    config = transformers.AutoConfig.from_pretrained(folder, **remote)
    family = family_of(config)
    processor = transformers.AutoProcessor.from_pretrained(folder, **remote)
    # An encoder that reads no text is saved with an image processor alone.
    alone = family.kind == "image encoder" and hasattr(processor, "do_resize")
    if not (hasattr(processor, "image_processor") or alone):
        raise ModelError("there is no image processor beside its tokenizer; preprocessor_config.json is missing.")
    encoder = family.kind == "image encoder"
    loader = transformers.AutoModel if encoder else transformers.AutoModelForImageTextToText
    model, found = loader.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **remote
    )
    if (Path(folder) / "frozen.json").is_file():
        from probe.lab.towers import complete

        found = complete(model, folder, found)
    require_complete(found)
    return model, processor, family


def _pipeline_folder(folder: str) -> Path | None:
    """The local folder of a diffusion pipeline, fetched if it is one of the hub; ``None`` if it is none."""
    if Path(folder).is_dir():
        return Path(folder) if (Path(folder) / INDEX).is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(folder, INDEX, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None  # neither that file nor any other; what is wrong is said where the model itself is asked for
    if found is None:
        return None
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(folder))
