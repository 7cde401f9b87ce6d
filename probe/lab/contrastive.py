"""Training ``lab/clip`` from scratch: which of a batch's captions belongs to which of its scenes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probe.lab.captions import Captions, pixels
from probe.lab.clip import ClipSettings, build_clip, make_clip_processor, save_clip
from probe.lab.scenes import Scene
from probe.lab.trainers import Course, OnSnapshot, OnStep, fit

__all__ = ["Pairs", "in_batch_accuracy", "train_clip"]

STEPS = 1500


class Pairs:
    """A batch as CLIP takes it: each scene with its caption, padded on the right.

    Two scenes may by chance have the same caption, which happens in about one batch of 128 in thirteen. The loss takes
    each for a wrong answer to the other, as CLIP's own does.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, examples: Sequence[Scene]) -> dict[str, torch.Tensor]:
        words = self.processor.tokenizer([example.caption for example in examples], padding=True, return_tensors="pt")
        return {
            "input_ids": words["input_ids"],
            "attention_mask": words["attention_mask"],
            "pixel_values": pixels(self.processor, [example.image for example in examples]),
        }


class ContrastiveLoss(nn.Module):
    """CLIP with its loss and the in-batch accuracy as its output."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> dict[str, Any]:
        """The loss (), and the accuracy as a plain number."""
        output = self.clip(
            input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, return_loss=True
        )
        return {"loss": output.loss, "accuracy": in_batch_accuracy(output.logits_per_image)}


def in_batch_accuracy(logits_per_image: torch.Tensor) -> float:
    """The share of pictures whose own caption, of all in the batch, fits best; logits are (picture, caption)."""
    return float((logits_per_image.argmax(dim=1) == torch.arange(len(logits_per_image))).float().mean())


def train_clip(
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = 128,
    on_snapshot: OnSnapshot | None = None,
    on_step: OnStep | None = None,
    resume: bool = True,
    save_every: int = 100,
    settings: ClipSettings | None = None,
) -> Path:
    """The folder `out`, with the trained model in the Hugging Face layout and the curve ``loss.csv``.

    >>> train_clip("runs/clip", on_step=lambda step, loss: print(step, loss))  # doctest: +SKIP

    Beside the loss the curve has the in-batch accuracy: the share of a batch's scenes whose own caption, of all the
    captions in the batch, fits best; by chance 1 / `batch_size`. Seeds, killed runs and ``OMP_WAIT_POLICY`` are as in
    `train_llava`.

    Parameters
    ----------
    on_snapshot : Called with the step, the model in eval mode, the processor and the loss of that step's batch, at
        the steps of `snapshot_steps` that this call passes.
    on_step : Called with the step and its loss after every step, to show progress.
    resume : Go on from a checkpoint in `out`; otherwise start again.
    save_every : Steps between two checkpoints.
    settings : Another size of model, for tests.

    Raises
    ------
    InputError
        No steps or an empty batch, or `out` holds a run with other settings.

    References
    ----------
    Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision, Figure 3.
    """
    settings = settings or ClipSettings()
    out = Path(out)

    def make() -> tuple[Any, Any]:
        processor = make_clip_processor(settings)
        return ContrastiveLoss(build_clip(processor, settings=settings, seed=seed)), processor

    return fit(
        out,
        Course(steps=steps, seed=seed, batch_size=batch_size, save_every=save_every, measures=("accuracy",)),
        plan={"steps": steps, "seed": seed, "batch_size": batch_size, "model": asdict(settings)},
        make=make,
        examples=lambda start: Captions(size=settings.image, seed=seed, start=start),
        collator=Pairs,
        save=lambda model, processor: save_clip(out, model.clip, processor),
        on_snapshot=on_snapshot and (lambda step, model, *rest: on_snapshot(step, model.clip, *rest)),
        on_step=on_step,
        resume=resume,
    )
