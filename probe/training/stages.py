"""What each stage trains: the projector side alone, or with it the language model through LoRA; and a table that says so."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probe.difflmm.releases import lora_class
from probe.errors import InputError, ModelError
from probe.training.plans import TrainingPlan

__all__ = ["ModuleRow", "Stage", "prepare"]

#: Everything between the frozen encoders and the language model.
PROJECTOR_SIDE = ("model.multi_modal_projector.", "model.diffusion_tower.caption.")
LANGUAGE_MODEL = "model.language_model."
LORA = ".lora_"
#: The modules of the table, in the order in which a picture passes them.
MODULES = (
    "model.vision_tower",
    "model.diffusion_tower.vae",
    "model.diffusion_tower.unet",
    "model.diffusion_tower.caption",
    "model.multi_modal_projector",
    "model.language_model",
    "lm_head",
)


@dataclass(frozen=True)
class ModuleRow:
    """How much of a module is trained, and how fast at most; 0 for what is frozen."""

    module: str
    parameters: int
    trained: int
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Stage:
    """A model made ready for a stage.

    Attributes
    ----------
    model : the model itself; with LoRA its linear layers are peft's.
    adapted : peft's wrapper around it, which can merge the LoRA; ``None`` without one.
    plan : what was asked for.
    """

    model: Any
    adapted: Any
    plan: TrainingPlan

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: one for name, one in self.model.named_parameters() if one.requires_grad}

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of an optimiser: the LoRA if there is one, then the projector side."""
        trained = self.trained()
        parts = [[one for name, one in trained.items() if (LORA in name) is lora] for lora in (True, False)]
        rates = (self.plan.learning_rate, self._projector_rate())
        return [
            {"params": some, "lr": rate, "weight_decay": self.plan.weight_decay}
            for some, rate in zip(parts, rates, strict=True)
            if some
        ]

    def table(self) -> list[ModuleRow]:
        """A row for each module, LoRA in a row of its own; every parameter is in one of them."""
        numbers: dict[str, list[int]] = {}
        for name, one in self.model.named_parameters():
            module = next((part for part in MODULES if name.startswith(part + ".")), name)
            row = numbers.setdefault(module + (" (LoRA)" if LORA in name else ""), [0, 0])
            row[0] += one.numel()
            row[1] += one.numel() * one.requires_grad
        places = {module: place for place, module in enumerate(MODULES)}
        ordered = sorted(numbers, key=lambda name: (places.get(name.removesuffix(" (LoRA)"), len(MODULES)), name))
        return [
            ModuleRow(name, all_, some, self._rate(name) if some else 0.0)
            for name in ordered
            for all_, some in [numbers[name]]
        ]

    def finish(self) -> Any:
        """The model as anybody loads it: the LoRA merged, every number of the plan's type but a VAE's.

        Raises
        ------
        ModelError
            If the merged weights are not finite.
        """
        model = self.model
        if self.adapted is not None:
            try:
                model = self.adapted.merge_and_unload(safe_merge=True)
            except ValueError as error:
                raise ModelError(f"The LoRA cannot be merged: {str(error).splitlines()[0]}") from error
        kind = getattr(torch, self.plan.dtype)
        for name, module in model.named_modules():
            if any((name + ".").startswith(part) for part in (*PROJECTOR_SIDE, LANGUAGE_MODEL)):
                module.to(kind)
        return model.eval()

    def _projector_rate(self) -> float:
        return (
            self.plan.learning_rate if self.plan.projector_learning_rate is None else self.plan.projector_learning_rate
        )

    def _rate(self, module: str) -> float:
        return self.plan.learning_rate if module.endswith("(LoRA)") else self._projector_rate()


def prepare(model: Any, plan: TrainingPlan) -> Stage:
    """The same model with what the stage trains unfrozen, in float32, and everything else frozen.

    Raises
    ------
    InputError
        If the LoRA's regular expression names nothing that can have one.
    """
    model.requires_grad_(False)
    adapted = _with_lora(model, plan) if plan.stage == 2 else None
    for name, one in model.named_parameters():
        if name.startswith(PROJECTOR_SIDE) or LORA in name:
            # In half precision small steps would be lost in rounding.
            one.data = one.data.float()
            one.requires_grad_(True)
    return Stage(model, adapted, plan)


def _with_lora(model: Any, plan: TrainingPlan) -> Any:
    """peft's wrapper around the model, whose layers it has replaced.

    The regular expression is anchored below the language model: suffixes alone, such as q_proj, are names in CLIP too.
    """
    settings = lora_class()(
        r=plan.lora_rank,
        lora_alpha=plan.lora_alpha,  # peft divides it by the rank: any number will do
        lora_dropout=plan.lora_dropout,
        target_modules=rf"{LANGUAGE_MODEL.replace('.', chr(92) + '.')}(?:{plan.lora_targets})",
        bias="none",
    )
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks the model by a name that newer releases call old
            adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise InputError(
            f"lora_targets={plan.lora_targets!r} cannot be used ({str(error).splitlines()[0][:200]}); it must name linear layers "
            f"below {LANGUAGE_MODEL.rstrip('.')}, such as 'layers.0.self_attn.q_proj'."
        ) from error
    outside = [name for name, _ in model.named_parameters() if LORA in name and not name.startswith(LANGUAGE_MODEL)]
    if outside:
        raise InputError(f"lora_targets={plan.lora_targets!r} reaches {outside[0]!r}, outside the language model.")
    return adapted
