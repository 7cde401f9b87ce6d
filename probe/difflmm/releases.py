"""What a release of DiffLMM holds, read and checked: a LoRA adapter, loose tensors, and the settings of its training.

The layout is known by its tensors' names: ``...mm_projector.clip_projector.{0,2}``, ``...clip_pe``, ``...sd_norm_layer``,
``...sd_proj_layer.0``, ``...linear.{0,2}`` and ``...vt_pe``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.errors import ModelError, did_you_mean
from probe.ordinary_files import require_file

__all__ = ["NAMES", "POSITIONS", "Release", "diffusion_settings", "lora_class", "read_release", "require_names"]

#: Released name, after "mm_projector." -> name below ``model.`` here.
NAMES = {
    "clip_projector.0.weight": "diffusion_tower.caption.linear_1.weight",
    "clip_projector.0.bias": "diffusion_tower.caption.linear_1.bias",
    "clip_projector.2.weight": "diffusion_tower.caption.linear_2.weight",
    "clip_projector.2.bias": "diffusion_tower.caption.linear_2.bias",
    "clip_pe": "diffusion_tower.caption.position",
    "sd_norm_layer.weight": "multi_modal_projector.norm.weight",
    "sd_norm_layer.bias": "multi_modal_projector.norm.bias",
    "sd_proj_layer.0.weight": "multi_modal_projector.conv.weight",
    "sd_proj_layer.0.bias": "multi_modal_projector.conv.bias",
    "linear.0.weight": "multi_modal_projector.linear_1.weight",
    "linear.0.bias": "multi_modal_projector.linear_1.bias",
    "linear.2.weight": "multi_modal_projector.linear_2.weight",
    "linear.2.bias": "multi_modal_projector.linear_2.bias",
    "vt_pe": "multi_modal_projector.position",
}
POSITIONS = NAMES["clip_pe"]
#: The largest file of settings that is read, in bytes.
LARGEST = 2**24
#: What an adapter may say about its LoRA; anything else that is set is refused, since it would change the weights unseen.
_LORA = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "fan_in_fan_out",
    "use_rslora",
    "bias",
    "rank_pattern",
    "alpha_pattern",
)
_HARMLESS = (
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "revision", "peft_version", "init_lora_weights",
    "auto_mapping",
)  # fmt: skip


@dataclass(frozen=True)
class Release:
    """What an adapter's folder holds.

    Attributes
    ----------
    settings : of its training.
    lora : the arguments of peft's ``LoraConfig``.
    adapted : the LoRA's tensors, by the names that peft gives them.
    loose : the other tensors in single precision, by their names below ``DiffLMMModel``.
    clip, diffusion : folders or hub names of the frozen parts.
    """

    settings: dict[str, Any]
    lora: dict[str, Any]
    adapted: dict[str, Tensor]
    loose: dict[str, Tensor]
    clip: str
    diffusion: str


def read_release(place: Path, *, clip: str | None, diffusion: str | None) -> Release:
    """What the adapter's folder holds; ``clip`` and ``diffusion`` replace the names of parts that its settings give.

    Raises
    ------
    ModelError
        If a file is missing, cannot be read, or says something that a DiffLMM is not.
    """
    settings = _released_settings(place)
    return Release(
        settings=settings,
        lora=_lora_settings(place),
        adapted=_read_tensors(place, "adapter_model"),
        loose=_loose_tensors(place),
        clip=clip or _named(settings, "mm_vision_sd_clip", option="clip"),
        diffusion=diffusion or _named(settings, "mm_vision_tower", option="diffusion"),
    )


def diffusion_settings(released: dict[str, Any]) -> dict[str, int]:
    """The settings of the diffusion side, from the training's; what it does not say is as in the paper."""
    names = {
        "timestep": ("mm_vision_sd_timestep", 100),
        "draws": ("mm_vision_sd_ensemble_size", 1),
        "block": ("mm_vision_select_layer", 1),
        "image_size": ("mm_vision_resolution", 384),
    }
    found = {name: released.get(*given) for name, given in names.items()}
    wrong = [name for name, value in found.items() if not isinstance(value, int)]
    if wrong:
        raise ModelError(
            f"The adapter's config.json says {names[wrong[0]][0]}={found[wrong[0]]!r}; expected a whole number."
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(f"The adapter has no {path.name}: {path} is missing.")
    try:
        require_file(path, largest=LARGEST)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({str(error).splitlines()[0]}).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, expected an object.")
    return found


def _released_settings(place: Path) -> dict[str, Any]:
    """What the training's ``config.json`` says; empty without one. What this model cannot be is refused."""
    if not (place / "config.json").is_file():
        return {}
    found = _read_json(place / "config.json")
    wanted = {
        "mm_projector_type": "SDCLIPBlock",
        "mm_vision_sd_concat_clip": True,
        "mm_vision_sd_implicit_caption": True,
    }
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise ModelError(f"{place / 'config.json'} says {name}={found[name]!r}; a DiffLMM has {value!r}.")
    return {name: value for name, value in found.items() if value is not None}


def _named(released: dict[str, Any], name: str, *, option: str) -> str:
    found = released.get(name)
    if not isinstance(found, str) or not found:
        raise ModelError(
            f"The adapter's config.json does not say which model to take ({name}); name it with {option}=."
        )
    return found


def _lora_settings(place: Path) -> dict[str, Any]:
    """The arguments of peft's ``LoraConfig``, from ``adapter_config.json``."""
    path = place / "adapter_config.json"
    found = _read_json(path)
    if found.get("peft_type") != "LORA":
        raise ModelError(f"{path} is of a {found.get('peft_type')!r} adapter, expected 'LORA'.")
    plain = lora_class()()
    for name, value in found.items():
        usual = getattr(plain, name, None)
        if name not in (*_LORA, *_HARMLESS) and value not in (None, False, {}, [], usual):
            raise ModelError(f"{path} sets {name}={value!r}, which is not understood here; a plain LoRA is expected.")
    settings = {name: found[name] for name in _LORA if found.get(name) is not None}
    if not settings.get("target_modules"):
        raise ModelError(f"{path} names no target_modules, so it cannot be known which weights it changes.")
    return settings


def lora_class() -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ModelError('A LoRA needs the library peft; install it with pip install "groundprobe[train]".') from error
    return LoraConfig


def _read_tensors(place: Path, stem: str) -> dict[str, Tensor]:
    """Name and tensor of everything in ``stem.safetensors`` or ``stem.bin``; nothing in them is run."""
    from safetensors.torch import load_file

    for path in (place / f"{stem}.safetensors", place / f"{stem}.bin"):
        if not path.is_file():
            continue
        try:
            found = load_file(path) if path.suffix == ".safetensors" else _load_bin(path)
        except Exception as error:
            # Each parser of foreign bytes has errors of its own, and some have several.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{path} cannot be read as tensors ({reason[:200]}).") from error
        if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
            raise ModelError(f"{path} holds something other than named tensors.")
        return found
    raise ModelError(f"The adapter has no {stem}.safetensors or {stem}.bin: {place} is not in the released layout.")


def _load_bin(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _loose_tensors(place: Path) -> dict[str, Tensor]:
    """The tensors that are no LoRA, in single precision, under their names here."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, value in _read_tensors(place, "non_lora_trainables").items():
        short = name.partition("mm_projector.")[2]
        if short in NAMES and NAMES[short] not in found:
            found[NAMES[short]] = value.float()
        else:
            unknown.append(name)
    require_names("non_lora_trainables", unknown, [old for old, new in NAMES.items() if new not in found], NAMES)
    return found


def require_names(where: str, unknown: Iterable[str], missing: Iterable[str], known: Iterable[str]) -> None:
    """Nothing, if all tensors are known and there."""
    strange, absent = sorted(unknown), sorted(missing)
    if strange:
        raise ModelError(
            f"{where} holds {len(strange)} tensors that are not known, the first {strange[0]!r}; this is not the layout of a "
            f"released DiffLMM.{did_you_mean(strange[0].rpartition('mm_projector.')[2], known)}"
        )
    if absent:
        raise ModelError(f"{where} lacks {len(absent)} tensors, the first {absent[0]!r}; fetch the adapter again.")
