"""SAM and SAM-HQ as refiners: a point, a box or a coarse map of a phrase becomes a mask of what is there.

>>> refiner = SamRefiner("facebook/sam-vit-huge")
>>> masks, scores = refiner.encode(image).prompt(points=[(120, 88), (40, 200)])      # one encoding, one call of the decoder
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from probe.errors import InputError, ModelError, did_you_mean
from probe.grounding.refiners import (
    Refined,
    ThresholdRefiner,
    bounding_box,
    read_prompts,
    require_maps,
    require_one_of,
    stack,
)
from probe.loading import locate, number_type, quiet, require_complete, typed, usable_device

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SamImage", "SamRefiner", "find_sam"]

MaskChoice = Literal["last", "best", "smallest"]
PromptKind = Literal["point", "box", "box and mask"]
Masks = NDArray[np.bool_]

#: The library's model_type -> its class, and what names of refiners call it.
KINDS = {"sam": ("SamModel", "sam"), "sam_hq": ("SamHQModel", "sam-hq")}
AT_ONCE = 32  # prompts in one call of the decoder, which holds a copy of the image's embedding for each of them
# What SAM takes as a mask prompt are the logits of an earlier mask; the sigmoid of 10 differs from 1 by less than 1e-4.
LOGIT = 10.0
CELLS = 4  # height and width in cells of a patch in mask prompts, and in the masks that the decoder makes


class SamRefiner:
    """A SAM or SAM-HQ of the transformers library.

    Parameters
    ----------
    model : a hub name such as "facebook/sam-vit-huge", a folder that such a model was saved in, or "lab/sam". Loaded at once.
    mask : which of the candidates is taken. "last" is SAM's third and mostly largest, as attend-and-segment takes it; "best" has
        the highest predicted IoU; "smallest" is the smallest that is not empty. By default "last", and "best" for a SAM-HQ, which
        sorts its candidates by predicted IoU, so that its last is its worst and "last" is refused.
    prompt : "point" asks with the phrase's point; "box" with the box round the part of the phrase's map that holds the point, cut
        as ``ThresholdRefiner`` does; "box and mask" with that box and the map itself as a mask prompt.
    holding_point : of the candidates only those that contain the point compete, or all where none does.
    device : such as "cuda"; by default a GPU if there is one.
    dtype : such as "float16"; "auto" takes the checkpoint's own. Masks are resized in float32 whatever it is.

    The score is the IoU with the true mask that the model predicts.

    Raises
    ------
    InputError
        If an option is unknown, or "last" is asked of a SAM-HQ.
    ModelError
        If the model cannot be found or loaded, or is no SAM.

    References
    ----------
    Kirillov et al. (2023), Segment Anything; Ke et al. (2023), Segment Anything in High Quality.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        mask: MaskChoice | None = None,
        prompt: PromptKind = "point",
        holding_point: bool = False,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        if mask is not None:
            require_one_of("mask", mask, get_args(MaskChoice))
        require_one_of("prompt", prompt, get_args(PromptKind))
        name = os.fspath(model)
        self.model, self.pictures, self.kind = _load(name, device=device, dtype=dtype)
        if self.kind == "sam-hq" and mask == "last":
            raise InputError(
                f"{name!r} is a SAM-HQ, which sorts its candidates by predicted IoU, so its last is its worst and not its largest; "
                "give mask='best' or 'smallest'."
            )
        self.mask = mask or ("best" if self.kind == "sam-hq" else "last")
        self.prompt, self.holding_point = prompt, holding_point
        settings = [name, self.mask, *([prompt] if prompt != "point" else []), *["holding the point"] * holding_point]
        self.name = f"{self.kind} ({', '.join(settings)})"

    def encode(self, image: Image) -> SamImage:
        """The image, seen once by the vision encoder.

        Raises
        ------
        InputError
            If it is so narrow that nothing of its shorter side is left at the model's size.
        """
        longest = self.pictures.size["longest_edge"]
        if min(image.size) * longest < 0.5 * max(image.size):
            raise InputError(
                f"An image of {image.height} x {image.width} (height x width) pixels has nothing left of its shorter side when "
                f"its longer one is {longest}, as {self.name} sees it; crop it."
            )
        inputs = self.pictures(image.convert("RGB"), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            found = self.model.get_image_embeddings(pixels)
        seen = {"image_embeddings": found} if self.kind == "sam" else _high_quality(found)
        return SamImage(self, seen, (image.height, image.width), tuple(inputs["reshaped_input_sizes"][0].tolist()))


class SamImage:
    """An image that a SAM has seen.

    Attributes
    ----------
    size : (height, width) of the original image.
    resized : (height, width) that it has in the square that the model sees, at the upper left; the rest is padding.
    """

    def __init__(
        self, refiner: SamRefiner, seen: dict[str, Any], size: tuple[int, int], resized: tuple[int, int]
    ) -> None:
        self.refiner, self.size, self.resized = refiner, size, resized
        self._seen = seen

    def prompt(self, *, points: Any = None, boxes: Any = None, maps: Any = None) -> Refined:
        """(prompt, height, width) bool masks and their predicted IoUs (prompt,), in original pixels; see ``EncodedImage``.

        Boxes that are given are taken as they are. Maps are read where the refiner's prompt is "box" (of points) or "box and mask".

        Raises
        ------
        InputError
            As ``EncodedImage.prompt`` says.
        """
        found = []
        for where, masks, scores in self._each(points, boxes, maps):
            chosen = self._choose(masks, scores, where)
            # A copy: a view would keep the other candidates in memory too.
            found.append((masks[chosen].copy(), float(scores[chosen])))
        return stack(found, self.size)

    def candidates(
        self, *, points: Any = None, boxes: Any = None, maps: Any = None
    ) -> tuple[Masks, NDArray[np.float64]]:
        """All masks (prompt, candidate, height, width) and their predicted IoUs (prompt, candidate), in the model's own order.

        For those who know the truth: the candidate with the best IoU is what a perfect choice would reach.

        Raises
        ------
        InputError
            As ``prompt`` does.
        """
        found = [(masks, scores) for _, masks, scores in self._each(points, boxes, maps)]
        if not found:
            count = self.refiner.model.config.mask_decoder_config.num_multimask_outputs
            return np.zeros((0, count, *self.size), dtype=bool), np.zeros((0, count))
        return np.stack([masks for masks, _ in found]), np.stack([scores for _, scores in found])

    def _each(self, points: Any, boxes: Any, maps: Any) -> Iterator[tuple[tuple[int, ...], Masks, NDArray[np.float64]]]:
        """For each prompt: itself, the masks (candidate, height, width) and their predicted IoUs (candidate,)."""
        asked = read_prompts(points, boxes, self.size)
        kind = self.refiner.prompt
        if kind == "box and mask" or (kind == "box" and boxes is None):
            require_maps(maps, (len(asked), *self.size), f"{self.refiner.name} with prompt={kind!r}")
        for start in range(0, len(asked), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(asked)))
            logits, scores = self._decode([self._prompt(asked[one], maps, one) for one in numbers])
            for one, low, predicted in zip(numbers, logits, scores, strict=True):
                # Each on its own: at the image's own size they are large.
                [masks] = self.refiner.pictures.post_process_masks(
                    [low[None]], [self.size], [self.resized], mask_threshold=0.0, binarize=True
                )
                yield asked[one], masks[0].cpu().numpy(), predicted

    def _prompt(self, where: tuple[int, ...], maps: Any, number: int) -> tuple[tuple[int, ...], Tensor | None]:
        """The point or box that the model is asked with, and the mask prompt (row, col) if there is to be one."""
        kind = self.refiner.prompt
        if kind == "point" or (kind == "box" and len(where) == 4):
            return where, None
        values = np.asarray(maps[number], dtype=np.float64)
        if not np.isfinite(values).any():
            raise InputError(
                f"Map {number} is unseen everywhere, so it shows nothing to ask with; leave this prompt out."
            )
        if len(where) == 2:
            where = bounding_box(ThresholdRefiner().cut(values, where))
        return where, self._mask_prompt(values) if kind == "box and mask" else None

    def _mask_prompt(self, values: NDArray[np.float64]) -> Tensor:
        """Logits (row, col) in the model's frame: 0 at Otsu's threshold, `LOGIT` at the peak, minus that at nothing and unseen."""
        positive = np.maximum(values, 0)  # NaN stays NaN
        level, peak = ThresholdRefiner().level(positive[np.isfinite(positive)]), float(np.nanmax(positive))
        # A map that is the same everywhere says nothing: neither mask nor not.
        logits = np.interp(positive, [0, level, peak], [-LOGIT, 0, LOGIT]) if peak > level else 0 * positive
        logits = np.nan_to_num(logits, nan=-LOGIT)
        large = functional.interpolate(
            torch.from_numpy(logits).float()[None, None], self.resized, mode="bilinear", antialias=True
        )
        config = self.refiner.model.config.prompt_encoder_config
        side = config.image_size
        bottom, right = side - self.resized[0], side - self.resized[1]
        padded = functional.pad(large, (0, right, 0, bottom), value=-LOGIT)
        return functional.avg_pool2d(padded, config.patch_size // CELLS)[0, 0]

    def _decode(self, asked: list[tuple[tuple[int, ...], Tensor | None]]) -> tuple[Tensor, NDArray[np.float64]]:
        """float32 logits (prompt, candidate, row, col) in the model's own frame and predicted IoUs, by one call of the decoder."""
        model = self.refiner.model
        places = torch.tensor([self._placed(where) for where, _ in asked], device=model.device)  # (prompt, corner, 2)
        masks = [mask for _, mask in asked if mask is not None]
        seen, (images, objects) = self._seen, (1, len(asked))
        if masks:
            # The library adds a mask prompt to a whole image, so here each prompt has an image of its own.
            images, objects = objects, images
            seen = seen | {"image_embeddings": seen["image_embeddings"].expand(images, -1, -1, -1)}
        if places.shape[1] == 2:
            inputs = {"input_boxes": places.reshape(images, objects, 4)}
        else:
            labels = torch.ones((images, objects, 1), dtype=torch.long, device=model.device)
            inputs = {"input_points": places.reshape(images, objects, 1, 2), "input_labels": labels}
        if masks:
            inputs["input_masks"] = torch.stack(masks)[:, None].to(model.device, model.dtype)
        with torch.inference_mode():
            output = model(**seen, **inputs, multimask_output=True)
        logits, scores = (one.float().flatten(0, 1) for one in (output.pred_masks, output.iou_scores))
        return logits, scores.cpu().double().numpy()

    def _placed(self, where: tuple[int, ...]) -> list[list[float]]:
        """Each (row, col) of a point or of a box's two corners as SAM takes it: (x, y) in the square that it sees."""
        rows, cols = (new / old for new, old in zip(self.resized, self.size, strict=True))
        return [[col * cols, row * rows] for row, col in np.reshape(where, (-1, 2)).tolist()]

    def _choose(self, masks: Masks, scores: NDArray[np.float64], where: tuple[int, ...]) -> int:
        """The number of the candidate that is taken."""
        allowed = np.ones(len(masks), dtype=bool)
        if self.refiner.holding_point and len(where) == 2 and masks[:, *where].any():
            allowed = masks[:, *where]
        numbers = np.flatnonzero(allowed)
        if self.refiner.mask == "last":
            return int(numbers[-1])
        if self.refiner.mask == "best":
            return int(numbers[np.argmax(scores[numbers])])
        areas = masks.sum((1, 2), dtype=np.int64)[numbers]
        return int(numbers[np.argmin(np.where(areas > 0, areas, masks[0].size + 1))])


def find_sam(name: str, *, device: str | None = None) -> SamRefiner:
    """The SAM of a name such as "lab/sam", "sam:facebook/sam-vit-huge" or "sam-hq:FOLDER:smallest".

    Raises
    ------
    InputError
        If no model is named, or what follows it is no choice among its masks.
    ModelError
        If it cannot be loaded, or is a SAM-HQ where a SAM is asked for, or the other way round.
    """
    kind, _, rest = name.partition(":")
    model, mask = (rest, "") if Path(rest).is_dir() else _split(rest)
    if kind == "lab/sam":
        model, mask = (kind, rest)
    if not model:
        raise InputError(f"The refiner {name!r} names no model; write {kind}: and a hub name or a folder.")
    if mask and mask not in get_args(MaskChoice):
        known = get_args(MaskChoice)
        raise InputError(
            f"What follows the model in the refiner {name!r} says which mask is taken: {', '.join(known)}; found {mask!r}."
            f"{did_you_mean(mask, known)}"
        )
    found = SamRefiner(model, mask=mask or None, device=device)  # type: ignore[arg-type]
    if kind in ("sam", "sam-hq") and found.kind != kind:
        raise ModelError(f"{model!r} is a {found.kind} model; write {found.kind}:{model}.")
    return found


def _split(rest: str) -> tuple[str, str]:
    """The model and what follows its last colon."""
    model, _, mask = rest.rpartition(":")
    return (model, mask) if model else (rest, "")


def _high_quality(found: Any) -> dict[str, Any]:
    """What SAM-HQ's decoder reads: the image's embedding, and what the first layer that sees all of the image made of it."""
    return {"image_embeddings": found[0], "intermediate_embeddings": found[1]}


def _load(name: str, *, device: str | None, dtype: str) -> tuple[Any, Any, str]:
    """The model in evaluation mode, its image processor, and whether it is a "sam" or a "sam-hq"."""
    folder, dtype = locate(name, dtype=dtype, example="lab/sam")
    wanted, target = number_type(dtype), usable_device(device)
    bars = folder == name and (not Path(name).is_dir() or sys.stderr.isatty())
    with typed(name), quiet(bars=bars):
        import transformers
        from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

        settings, _ = transformers.PretrainedConfig.get_config_dict(folder)
        if settings.get("model_type") not in KINDS:
            raise ModelError(
                f"it is a model of type {settings.get('model_type')!r}, not a SAM or a SAM-HQ; "
                "try 'facebook/sam-vit-huge' or 'lab/sam'."
            )
        class_name, kind = KINDS[settings["model_type"]]
        model, found = getattr(transformers, class_name).from_pretrained(
            folder, dtype=wanted, output_loading_info=True, ignore_mismatched_sizes=True
        )
        require_complete(found)
        pictures = SamImageProcessorPil.from_pretrained(folder)
        made, seen = (pictures.pad_size["height"], pictures.pad_size["width"]), model.config.vision_config.image_size
        if made != (seen, seen) or pictures.size["longest_edge"] != seen:
            raise ModelError(
                f"its processor makes pictures of {made} (height, width) pixels and its model sees {seen} x {seen}."
            )
        model = model.to(target).eval()
    return model, pictures, kind
