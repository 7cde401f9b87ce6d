"""What a training is told: one frozen plan, checked when it is made, the same in Python, in a YAML file and at the shell."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from probe.errors import InputError

__all__ = ["Kind", "TrainingPlan"]

Kind = Literal["llava", "difflmm"]

#: Where files lie and how the work is cut up: a run may go on with other values, and ends with the same numbers up to rounding.
MAY_CHANGE = ("images", "device_batch_size", "save_every", "workers", "device")


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training of one stage.

    >>> TrainingPlan(data="pairs.json", images="images", language_model="lmsys/vicuna-7b-v1.5", clip="openai/...")

    Parameters
    ----------
    data
        Conversations as LLaVA writes them: a JSON list of {"id", "image", "conversations": [{"from": "human", "value"}, ...]}.
    images
        The folder that image names are below; not needed where no record has an image.
    stage
        1 trains the projector side alone; 2 trains it with a learning rate of its own and the language model through LoRA.
    model
        A whole model with its processor to start from: a folder, a hub name or lab/llava; instead of parts.
    language_model
        The part that talks, with its tokenizer: a folder or a hub name.
    clip
        The part that sees: a folder, a hub name or lab/clip.
    diffusion
        For difflmm: Stable Diffusion, a folder, a hub name or lab/diffusion.
    projector
        The folder of a finished stage 1, whose trained projector side is put into the model.
    prompt
        "plain" is the image and then the answer, as LLaVA's stage 1; "conversation" is the model's own chat template.
    max_length
        Longest text in tokens, those of the image among them.
    long_texts
        What becomes of a longer text: "refuse" stops before any step, "truncate" cuts its end off, "skip" leaves it out.
    bad_records
        What becomes of a record that cannot be used: "refuse" stops before any step, "skip" leaves it out and counts it.
    batch_size
        Examples a step over all processes; gradients are accumulated to reach it.
    device_batch_size
        Examples that one process computes at a time.
    epochs
        How often every record is seen.
    steps
        How many; instead of epochs.
    learning_rate
        The highest, of the LoRA in stage 2 and of the projector side in stage 1.
    projector_learning_rate
        The highest of the projector side in stage 2; by default learning_rate.
    warmup
        Share of all steps in which the learning rate rises from 0.
    schedule
        How the learning rate falls after that.
    weight_decay
        Of everything that is trained.
    lora_rank
        Of the LoRA in stage 2.
    lora_alpha
        Its scale is lora_alpha / lora_rank.
    lora_dropout
        Probability that an input of the LoRA is dropped.
    lora_targets
        Regular expression for the names of modules below the language model that get a LoRA; never anything outside it.
    dtype
        Number type of what is frozen, and of the computation; what is trained is kept in float32.
    gradient_checkpointing
        Compute activations a second time instead of keeping them: less memory, more time.
    seed
        Of new weights, of the order of the records and of dropout.
    save_every
        Steps between two checkpoints.
    workers
        Processes that read images, for each process that trains.
    device
        "auto" is a GPU if there is one.
    whole_model
        Write the whole model after stage 1 too, not the trained weights alone.

    Raises
    ------
    InputError
        If a value is impossible, or two contradict each other.
    """

    data: str
    images: str | None = None
    stage: Literal[1, 2] = 1
    model: str | None = None
    language_model: str | None = None
    clip: str | None = None
    diffusion: str | None = None
    projector: str | None = None
    prompt: Literal["plain", "conversation"] = "conversation"
    max_length: int = 2048
    long_texts: Literal["refuse", "truncate", "skip"] = "refuse"
    bad_records: Literal["refuse", "skip"] = "refuse"
    batch_size: int = 128
    device_batch_size: int = 16
    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float = 2e-4
    projector_learning_rate: float | None = None
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    lora_rank: int = 128
    lora_alpha: float = 256.0
    lora_dropout: float = 0.05
    lora_targets: str = r".*\.(q|k|v|o|gate|up|down)_proj"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = True
    seed: int = 0
    save_every: int = 500
    workers: int = 4
    device: Literal["auto", "cpu"] = "auto"
    whole_model: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data is empty; give the JSON file of conversations to train on.")
        self._require_choices()
        self._require_numbers()
        self._require_parts()

    def _require_choices(self) -> None:
        allowed: dict[str, tuple[Any, ...]] = {
            "stage": (1, 2),
            "prompt": ("plain", "conversation"),
            "long_texts": ("refuse", "truncate", "skip"),
            "bad_records": ("refuse", "skip"),
            "schedule": ("cosine", "linear", "constant"),
            "dtype": ("bfloat16", "float32"),
            "device": ("auto", "cpu"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be {' or '.join(map(repr, choices))}, found {getattr(self, name)!r}.")
        try:
            re.compile(self.lora_targets)
        except re.error as error:
            raise InputError(f"lora_targets={self.lora_targets!r} is not a regular expression ({error}).") from error

    def _require_numbers(self) -> None:
        least = {
            "max_length": 2,
            "batch_size": 1,
            "device_batch_size": 1,
            "lora_rank": 1,
            "save_every": 1,
            "workers": 0,
            "seed": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} must be {low} or more, found {getattr(self, name)}.")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps must be 1 or more, found {self.steps}.")
        for name in ("epochs", "learning_rate", "projector_learning_rate", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be above 0 and finite, found {value}.")
        for name in ("warmup", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is a share, from 0 to below 1; found {getattr(self, name)}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be 0 or more and finite, found {self.weight_decay}.")

    def _require_parts(self) -> None:
        parts = [name for name in ("language_model", "clip", "diffusion") if getattr(self, name)]
        if self.model and parts:
            raise InputError(f"model is a whole model and {parts[0]} a part of one; give either, not both.")
        if not self.model and not (self.language_model and self.clip):
            raise InputError("A model is needed: give model, or its parts language_model and clip.")
        if self.stage == 1 and self.projector_learning_rate is not None:
            raise InputError("projector_learning_rate is for stage 2; in stage 1 learning_rate is the projector's own.")

    def require_kind(self, kind: Kind) -> None:
        """Nothing, if the parts are those of this kind of model.

        Raises
        ------
        InputError
            If one is missing, or would not be used.
        """
        if kind == "difflmm" and not self.model and not self.diffusion:
            raise InputError("A DiffLMM needs diffusion too: a folder or hub name of Stable Diffusion.")
        if kind == "llava" and self.diffusion:
            raise InputError("diffusion is a part of a DiffLMM; a LLaVA has none. Leave it out, or train difflmm.")

    def accumulation(self, processes: int) -> int:
        """How many batches each of so many processes computes a step.

        Raises
        ------
        InputError
            If the batch cannot be cut that way.
        """
        together = self.device_batch_size * processes
        if self.batch_size % together:
            raise InputError(
                f"batch_size={self.batch_size} cannot be cut into device_batch_size={self.device_batch_size} on {processes} "
                f"process{'es' if processes > 1 else ''}: it must be a multiple of {together}."
            )
        return self.batch_size // together

    def count_steps(self, records: int) -> int:
        """How many steps so many records make; the last batch is filled up from the next round."""
        return self.steps or math.ceil(records * self.epochs / self.batch_size)

    def identity(self) -> dict[str, Any]:
        """What tells this training from another."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}
