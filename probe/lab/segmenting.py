"""Training ``lab/sam`` from scratch: an object's mask from a point in it, a box round it, or a box and a coarse mask.

Alone of the lab's trainings this one is told masks, as SAM's was; it is told no word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from probe.lab.captions import Captions
from probe.lab.sam import SamSettings, build_sam, make_sam_processor, save_sam
from probe.lab.scenes import Scene
from probe.lab.trainers import Course, OnSnapshot, OnStep, fit

__all__ = ["MaskLoss", "Prompts", "train_sam"]

STEPS = 4000
BATCH = 8
OBJECTS = 3  # asked about in each scene; where it has two, one of them twice
# What one batch after the other is asked with: as many as a row of the curve averages over, so that rows can be compared.
KINDS = ("point", "point", "point", "box", "box and mask")
JITTER = 0.1  # of a box's side: standard deviation by which its edges are off
COARSE = (
    8  # height and width in cells of the masks that are given as a prompt: about what attention over patches can tell
)
LOGIT = 10.0  # of what is certainly mask: the sigmoid differs from 1 by less than 1e-4
# Weights of focal, dice and mean squared error as in the paper. Beside the best of the three masks the mean of all counts a little:
# with nothing but the best, two of the three would never learn a scene's objects, which are hardly ambiguous.
FOCAL, DICE, ALL = 20.0, 1.0, 0.1


class Prompts:
    """A batch: pictures, the true masks of `OBJECTS` objects in each, and what the model is asked with for each of them.

    Points are uniform over the pixels of an object, boxes off by a little, and mask prompts as coarse as patches. All is drawn from
    the seed and the scene's number.
    """

    def __init__(self, processor: Any, *, seed: int, batch_size: int) -> None:
        pictures = processor.image_processor
        self.cells = pictures.mask_pad_size["height"]
        self.mean, self.std = np.asarray(pictures.image_mean), np.asarray(pictures.image_std)
        self.seed, self.batch_size = seed, batch_size

    def __call__(self, examples: Sequence[Scene]) -> dict[str, torch.Tensor]:
        kind = KINDS[examples[0].index // self.batch_size % len(KINDS)]
        asked = [self._ask(example, kind) for example in examples]
        return {
            "pixel_values": self._pixels(examples),
            **{name: torch.from_numpy(np.stack([one[name] for one in asked])) for name in asked[0]},
        }

    def _pixels(self, examples: Sequence[Scene]) -> torch.Tensor:
        """What SAM's processor makes of square pictures of the model's own size: (picture, channel, row, col), float32."""
        stack = np.stack([np.asarray(example.image) for example in examples]) / 255.0
        stack = (stack - self.mean) / self.std
        return torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2), dtype=np.float32))

    def _ask(self, example: Scene, kind: str) -> dict[str, NDArray[np.float32]]:
        """Masks (object, row, col), and points (object, 1, 2) or boxes (object, 4), x before y, and coarse masks."""
        rng = np.random.default_rng([self.seed, example.index])
        order = np.resize(rng.permutation(len(example.phrases)), OBJECTS)
        masks = np.stack([example.phrases[number].mask for number in order])
        found: dict[str, Any] = {"masks": masks}
        if kind == "point":
            places = [np.argwhere(mask) for mask in masks]
            found["input_points"] = np.stack([each[rng.integers(len(each))][None, ::-1] for each in places])
        else:
            found["input_boxes"] = np.stack([_box(mask, rng) for mask in masks])
        if kind == "box and mask":
            found["input_masks"] = np.stack([self._coarse(mask) for mask in masks])
        return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in found.items()}

    def _coarse(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Logits (row, col) of the mask as `COARSE` x `COARSE` cells tell it; half covered is 0."""
        share = functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], COARSE)
        share = share / share.max()
        logits = LOGIT * (2 * share - 1)
        smooth = functional.interpolate(logits, (self.cells, self.cells), mode="bilinear", align_corners=False)
        return smooth[0, 0].numpy()


def _box(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Left, top, right and bottom round the mask, each off by a little."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    edges = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1], dtype=float)
    sides = np.tile(edges[2:] - edges[:2], 2)
    return np.clip(edges + JITTER * sides * rng.standard_normal(4), 0, mask.shape[0])


class MaskLoss(nn.Module):
    """SAM with its loss as its output, and the IoU of the best mask, of the one it takes for the best, and of the last.

    References
    ----------
    Kirillov et al. (2023), Segment Anything, section 3 and appendix A: focal and dice loss of the best of three masks, and the
    squared error of the IoU that the model predicts for each.
    """

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam
        # The library ties the frequencies of prompts to those of pictures, and checkpoints hold no tensor twice. They are never
        # trained, so that a copy stays equal until both are tied again.
        prompts = sam.prompt_encoder.shared_embedding
        prompts.positional_embedding = nn.Parameter(prompts.positional_embedding.detach().clone(), requires_grad=False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        masks: torch.Tensor,
        input_points: torch.Tensor | None = None,
        input_boxes: torch.Tensor | None = None,
        input_masks: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """The loss (), and the measures as plain numbers."""
        count = masks.shape[1]
        embeddings = self.sam.vision_encoder(pixel_values).last_hidden_state
        if input_masks is not None and input_boxes is not None:
            # The library adds mask prompts to whole pictures, so here each object has a picture of its own.
            embeddings = embeddings.repeat_interleave(count, 0)
            input_boxes, input_masks = input_boxes.flatten(0, 1)[:, None], input_masks.flatten(0, 1)[:, None]
        output = self.sam(
            image_embeddings=embeddings, input_points=input_points, input_boxes=input_boxes, input_masks=input_masks
        )
        logits = output.pred_masks.flatten(0, 1)  # (object of all pictures, candidate, row, col)
        large = functional.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)
        return scored(large, output.iou_scores.flatten(0, 1), masks.flatten(0, 1))


def scored(logits: torch.Tensor, predicted: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
    """The loss and measures of masks as logits (object, candidate, row, col), IoUs predicted for them, and true masks."""
    target = truth[:, None].expand_as(logits)
    outlines = FOCAL * focal_loss(logits, target) + DICE * dice_loss(logits, target)
    with torch.no_grad():
        taken, true = logits > 0, target > 0.5
        iou = (taken & true).sum((-2, -1)) / (taken | true).sum((-2, -1))
        chosen = iou.gather(1, predicted.argmax(1, keepdim=True))
    loss = (1 - ALL) * outlines.amin(1).mean() + ALL * outlines.mean() + functional.mse_loss(predicted, iou)
    measures = {"iou_best": iou.amax(1), "iou_chosen": chosen, "iou_last": iou[:, -1]}
    return {"loss": loss} | {name: float(value.mean()) for name, value in measures.items()}


def focal_loss(logits: torch.Tensor, target: torch.Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """(...) focal loss of masks (..., row, col), mean over pixels (Lin et al. 2017, Eq. 5)."""
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = (logits.sigmoid() - target).abs()
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * missed**gamma * entropy).mean((-2, -1))


def dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(...) one minus the Dice coefficient of masks (..., row, col) (Milletari et al. 2016), 1 added to both of its sums."""
    values = logits.sigmoid()
    both = (values * target).sum((-2, -1))
    return 1 - (2 * both + 1) / (values.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def train_sam(
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = BATCH,
    on_snapshot: OnSnapshot | None = None,
    on_step: OnStep | None = None,
    resume: bool = True,
    save_every: int = 100,
    settings: SamSettings | None = None,
) -> Path:
    """The folder `out`, with the trained model in the Hugging Face layout and the curve ``loss.csv``.

    >>> train_sam("runs/sam", on_step=lambda step, loss: print(step, loss))  # doctest: +SKIP

    Of the library's four mask tokens the three of ``multimask_output=True`` are trained. Beside the loss the curve has the IoU, on
    scenes in training, of the best of the three masks, of the one with the highest predicted IoU, and of the last. Seeds, killed
    runs and ``OMP_WAIT_POLICY`` are as in `train_llava`.

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
    Kirillov et al. (2023), Segment Anything.
    """
    settings = settings or SamSettings()
    out = Path(out)

    def save(model: MaskLoss, processor: Any) -> None:
        model.sam.tie_weights()
        save_sam(out, model.sam, processor)

    course = Course(
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        save_every=save_every,
        measures=("iou_best", "iou_chosen", "iou_last"),
    )
    return fit(
        out,
        course,
        plan={"steps": steps, "seed": seed, "batch_size": batch_size, "model": asdict(settings)},
        make=lambda: (MaskLoss(build_sam(settings=settings, seed=seed)), make_sam_processor(settings)),
        examples=lambda start: Captions(size=settings.image, seed=seed, start=start),
        collator=lambda processor: Prompts(processor, seed=seed, batch_size=batch_size),
        save=save,
        on_snapshot=on_snapshot and (lambda step, model, *rest: on_snapshot(step, model.sam, *rest)),
        on_step=on_step,
        resume=resume,
    )
