"""From a released adapter and the language model it was trained on to a folder that loads like any model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.difflmm.parts import (
    DiffusionParts,
    add_image_token,
    combine,
    load_clip,
    load_diffusion,
    load_language_model,
)
from probe.difflmm.processing import make_processor
from probe.difflmm.releases import (
    NAMES,
    POSITIONS,
    Release,
    diffusion_settings,
    lora_class,
    read_release,
    require_names,
)
from probe.errors import FileError, ModelError

__all__ = ["convert"]


def convert(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    clip: str | None = None,
    diffusion: str | None = None,
    dtype: str = "auto",
) -> Path:
    """The folder `out`, made from released DiffLMM weights: model and processor, as ``save_pretrained`` writes them.

    >>> convert("difflmm-llava-v1.5-7b-lora", "lmsys/vicuna-7b-v1.5", "models/difflmm")      # doctest: +SKIP

    The configuration says ``normalisation="as-released"``: the weights were trained on pixels normalised that way. The released
    code adds the empty prompt's mean state to the implicit caption; it is constant, so it goes into the caption's positions.

    Parameters
    ----------
    adapter : folder with ``adapter_config.json``, ``adapter_model.safetensors`` or ``.bin``, ``non_lora_trainables.bin`` or
        ``.safetensors`` and, as released, the ``config.json`` of its training.
    base : folder or hub name of the language model that it was trained on.
    out : a new folder; it appears when everything is written, or not at all.
    clip, diffusion : folders or hub names; by default those that the adapter's ``config.json`` names.
    dtype : "auto" takes the language model's own; or "float16", "bfloat16", "float32".

    Raises
    ------
    ModelError
        If a tensor is missing, unknown or of another shape, or a part cannot be loaded.
    FileError
        If `out` exists or cannot be written.
    """
    place, target = Path(adapter), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileError(f"{target} exists already. Give a new folder.")
    if dtype not in ("auto", "float16", "bfloat16", "float32"):
        raise ModelError(
            f"dtype={dtype!r} is not one that weights are kept in; give 'auto', 'float16', 'bfloat16' or 'float32'."
        )
    # Everything small is read and checked before anything large is loaded.
    release = read_release(place, clip=clip, diffusion=diffusion)
    parts = load_diffusion(release.diffusion)
    release.loose[POSITIONS] = _with_empty_prompt(release, parts)
    language_model, tokenizer = load_language_model(os.fspath(base), dtype=dtype)
    merged = _merged(language_model, release)
    model = combine(
        merged,
        load_clip(release.clip),
        parts,
        image_token=add_image_token(merged, tokenizer),
        settings={
            "normalisation": "as-released",
            "diffusion_features": len(release.loose["multi_modal_projector.conv.bias"]),
            "origin": f"converted from the adapter {place.resolve().name}; pixels normalised as released",
        },
        diffusion_settings=diffusion_settings(release.settings),
    )
    _fill(model.model, release.loose)
    _write(target, model, make_processor(tokenizer, model.config))
    return target


def _with_empty_prompt(release: Release, parts: DiffusionParts) -> Tensor:
    """The caption's positions with the empty prompt's mean state added."""
    position, empty, name = release.loose[POSITIONS], parts.empty_prompt, release.diffusion
    if empty is None:
        raise ModelError(
            f"{name!r} has no text_encoder: the released caption starts from what it makes of the empty prompt; give the whole "
            "Stable Diffusion folder."
        )
    if position.shape[-1:] != empty.shape:
        raise ModelError(
            f"clip_pe has width {tuple(position.shape)[-1:]}, the text encoder of {name!r} {tuple(empty.shape)}."
        )
    return position + empty


def _merged(language_model: Any, release: Release) -> Any:
    """The language model with its LoRA merged into the weights, by peft."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    tensors = release.adapted
    try:
        wrapped = get_peft_model(language_model, lora_class()(task_type="CAUSAL_LM", **release.lora))
    except (ValueError, TypeError) as error:
        raise ModelError(f"adapter_config.json does not fit the base model: {str(error).splitlines()[0]}") from error
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    require_names("adapter_model", set(tensors) - set(expected), set(expected) - set(tensors), expected)
    _require_shapes("adapter_model", {name: (tensors[name], one) for name, one in expected.items()})
    set_peft_model_state_dict(wrapped, tensors)
    try:
        return wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:  # what is merged is not finite
        raise ModelError(f"The adapter cannot be merged: {str(error).splitlines()[0]}") from error


def _fill(inner: Any, loose: dict[str, Tensor]) -> None:
    """Put the loose tensors where they belong; all of them were random so far."""
    own = dict(inner.named_parameters())
    back = {new: old for old, new in NAMES.items()}
    _require_shapes("non_lora_trainables", {back[name]: (value, own[name]) for name, value in loose.items()})
    with torch.no_grad():
        for name, value in loose.items():
            own[name].copy_(value)


def _require_shapes(where: str, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (found, expected) in pairs.items():
        if found.shape != expected.shape:
            raise ModelError(
                f"{where}: {name!r} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}: the adapter is not of this "
                "base, CLIP or Stable Diffusion."
            )


def _write(out: Path, model: Any, processor: Any) -> None:
    """Nothing; the folder is written beside and renamed, so that no one ever sees half of it."""
    beside: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        model.save_pretrained(beside)
        processor.save_pretrained(beside)
        for one in beside.iterdir():
            one.chmod(0o644)  # safetensors writes for the owner alone
        beside.chmod(0o755)  # as does a temporary folder
        beside.replace(out)
    except OSError as error:
        raise FileError(f"The model cannot be written to {out}: {error.strerror or error}.") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
