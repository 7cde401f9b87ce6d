"""A model with its weights, from what a plan names; and the trained weights of a stage, written and put back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from probe.difflmm.parts import (
    add_image_token,
    combine,
    load_clip,
    load_diffusion,
    load_language_model,
    loading,
    make_new,
)
from probe.errors import ModelError
from probe.ordinary_files import require_file
from probe.training.blueprints import Blueprint, located
from probe.training.plans import Kind, TrainingPlan

__all__ = ["RECORD", "TRAINED", "build", "fingerprints", "put_in", "read_parts", "read_trained", "write_trained"]

TRAINED = "trained.safetensors"
RECORD = "training.json"
#: Parts that are frozen in stage 1: their trained projector side is of use with these very weights alone.
FROZEN = ("vision_tower", "language_model", "diffusion_tower.unet", "diffusion_tower.vae")


def build(kind: Kind, plan: TrainingPlan, blueprint: Blueprint) -> Any:
    """The model that a plan asks for, on the CPU, with new weights where nothing is given for them.

    Raises
    ------
    ModelError
        If a part cannot be loaded or does not fit, or the projector was trained with other parts.
    """
    model = _whole(plan, blueprint) if plan.model else _of_parts(kind, plan, blueprint)
    if plan.projector:
        _require_same_parts(plan.projector, read_parts(plan.projector), fingerprints(model))
        put_in(model, read_trained(Path(plan.projector) / TRAINED), of=plan.projector)
    return model


def _whole(plan: TrainingPlan, blueprint: Blueprint) -> Any:
    from transformers import AutoModelForImageTextToText

    assert plan.model is not None  # for the type checker
    with loading("The model", plan.model):
        model, found = AutoModelForImageTextToText.from_pretrained(
            located(plan.model),
            config=blueprint.config,
            dtype=getattr(torch, plan.dtype),
            output_loading_info=True,
            trust_remote_code=False,
        )
        missing = sorted(found["missing_keys"])
        if missing:  # the library fills them with random numbers and goes on
            raise ModelError(f"its checkpoint has no {missing[0]!r}")
    return model


def _of_parts(kind: Kind, plan: TrainingPlan, blueprint: Blueprint) -> Any:
    assert plan.language_model is not None  # for the type checker: the plan was checked
    assert plan.clip is not None
    language_model, tokenizer = load_language_model(located(plan.language_model), dtype=plan.dtype)
    token = add_image_token(language_model, tokenizer)
    clip = load_clip(located(plan.clip))
    if kind == "llava":
        return _combine_llava(language_model, clip, blueprint, seed=plan.seed)
    assert plan.diffusion is not None
    config = blueprint.config
    return combine(
        language_model,
        clip,
        load_diffusion(located(plan.diffusion)),
        image_token=token,
        settings={
            "image_mean": config.image_mean,
            "image_std": config.image_std,
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        diffusion_settings={"image_size": config.diffusion_config.image_size},
        seed=plan.seed,
    )


def _combine_llava(language_model: Any, clip: Any, blueprint: Blueprint, *, seed: int) -> Any:
    """A LLaVA of these very modules with a new projector; see ``probe.difflmm.parts.combine``."""
    from transformers import LlavaForConditionalGeneration

    config, kind = blueprint.config, language_model.dtype
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    inner = model.model
    inner.vision_tower = clip.to(kind)
    inner.language_model, model.lm_head = language_model.base_model, language_model.get_output_embeddings()
    make_new(model, (inner.multi_modal_projector,), kind, seed)
    model.generation_config = language_model.generation_config
    return model.eval()


def fingerprints(model: Any) -> dict[str, str]:
    """For each part that stage 1 freezes, a hash of its tensors' names, shapes and first numbers: other weights give another.

    The numbers are hashed as bfloat16, so that the number type in which a part was loaded makes no difference.
    """
    found = {}
    for name in FROZEN:
        try:
            part = model.model.get_submodule(name)
        except AttributeError:
            continue
        digest = hashlib.sha256()
        for key, value in sorted(part.state_dict().items()):
            first = value.flatten()[:64].to("cpu", torch.bfloat16).view(torch.int16)
            digest.update(f"{key} {tuple(value.shape)} ".encode() + first.numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


def write_trained(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Nothing; the file then holds the tensors, all of it or what it held before."""
    from safetensors.torch import save_file

    from probe.writing import write_beside

    plain = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}

    write_beside(path, lambda beside: save_file(plain, beside, metadata={"format": "pt"}))


def read_trained(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file of trained weights.

    Raises
    ------
    ModelError
        If there is none, or it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        require_file(path)
        return load_file(path)
    except (OSError, SafetensorError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The trained weights {str(path)!r} cannot be read ({reason[:200]}); give the folder of a finished stage 1."
        ) from error


def put_in(model: Any, tensors: dict[str, torch.Tensor], *, of: str) -> None:
    """Nothing; the model's parameters of these names then hold these numbers.

    Raises
    ------
    ModelError
        If the model has no such parameter, or one of another shape.
    """
    own = dict(model.named_parameters())
    for name, value in tensors.items():
        if name not in own:
            raise ModelError(f"{of}: the model has no {name!r}, so these weights are of another kind of model.")
        if own[name].shape != value.shape:
            raise ModelError(f"{of}: {name!r} has shape {tuple(value.shape)}, the model's {tuple(own[name].shape)}.")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def read_parts(projector: str) -> dict[str, str]:
    """The fingerprints of the parts that a finished stage 1 trained its projector side with.

    Raises
    ------
    ModelError
        If the folder is none of a stage 1, or it is not finished.
    """
    path = Path(projector) / RECORD
    try:
        require_file(path, largest=2**24)
        record = json.loads(path.read_text(encoding="utf-8"))
        finished, known = record["finished"], dict(record["parts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"projector={projector!r} is no folder of a finished stage 1 ({path.name}: {type(error).__name__}); give the folder "
            "that one was trained in."
        ) from error
    if not finished:
        raise ModelError(
            f"projector={projector!r}: that stage 1 is not finished; give its command again and it goes on."
        )
    return known


def _require_same_parts(projector: str, known: dict[str, str], found: dict[str, str]) -> None:
    """Nothing, if a projector was trained with the parts that the model has."""
    if found.keys() != known.keys():
        raise ModelError(
            f"projector={projector!r} was trained for parts {sorted(known)}, the model has {sorted(found)}."
        )
    other = [name for name in found if known[name] != found[name]]
    if other:
        raise ModelError(
            f"projector={projector!r} was trained with another {other[0]} than this plan's; give the same parts as in stage 1."
        )
