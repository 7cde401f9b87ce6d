"""check(): is this model recorded truthfully, and left as it was?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.geometry import preparation_of
from probe.capture.hooks import hook_tables
from probe.capture.passes import generate_and_record, generate_ids, inputs_with_answer, read_and_record
from probe.capture.recorder import Recorder
from probe.capture.sequence import image_token_id, patch_size
from probe.errors import CaptureError, ProbeError
from probe.images import read_image

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["CheckReport", "CheckResult", "check"]

#: Largest difference of one attention weight from an eager reference, by the model's number type. The reference rounds, not the
#: recorder: the library's eager attention keeps scores in that type, and takes its softmax in float32 also for float64.
PARITY = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}
#: The same between cached generation and one pass over the whole text, which round differently on their way; some layers
#: (RMSNorm) compute in float32 whatever the model's number type.
CACHE_PARITY = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}

_PROMPT = "Describe the image."
_CELLS = 12  # patches that are painted, one at a time, to see which visual token moves
_OFF = 0.5  # pixels of the processed picture; rounding grey levels moves the middle of a change by far less


@dataclass(frozen=True)
class CheckResult:
    """One question about a model: what was found, and what is allowed."""

    name: str
    passed: bool
    found: str
    allowed: str


@dataclass(frozen=True)
class CheckReport:
    """The answers to all questions about one model."""

    model: str
    family: str
    kernel: str
    dtype: str
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return all(one.passed for one in self.results)

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types, for JSON."""
        return asdict(self) | {"passed": self.passed}


def check(subject: Subject, *, image: Any = None, max_new_tokens: int = 8) -> CheckReport:
    """A report on whether the recorder tells the truth about this model and leaves it alone.

    Asks: does the certificate hold for every row; do weights equal those of the library's eager attention in the same pass; is
    the output bit-identical with and without recording; is the model's state the same afterwards; does painting one patch of the
    image move the visual token that the grid names; does generation with a cache give the weights of one pass over the text.

    The eager reference switches the language model to eager attention for one pass and back; recording never does.

    Parameters
    ----------
    image : any picture; by default a smooth random one of 300 x 400 pixels (height x width).

    Raises
    ------
    ProbeError
        If the model cannot be run at all; a question that fails is reported, not raised.
    """
    picture = read_image(_smooth_picture() if image is None else image)
    # transformers installs hooks of its own at a model's first pass and leaves them, so a plain pass goes before.
    generate_ids(subject, picture, _PROMPT, max_new_tokens=max_new_tokens)
    # Before the first recording: whatever it leaves is still there after the second.
    before = _state(subject.model)
    try:
        # Unverified: a certificate that fails is one of the answers, and must not keep the others from being found.
        generated = generate_and_record(subject, picture, _PROMPT, max_new_tokens=max_new_tokens, verify="off")
    except CaptureError as error:
        refused = CheckResult("recording", False, str(error), "no error")
        kernel = str(subject.model.get_decoder().config._attn_implementation)
        return CheckReport(subject.name, subject.family.name, kernel, _dtype_name(subject), (refused,))
    # A model may say the placeholder of a patch, which cannot be read again as text.
    ids = list(takewhile(lambda one: one != image_token_id(subject.model), generated.token_ids))
    if not ids:
        raise CaptureError(
            f"The model answers with the image placeholder alone, which cannot be checked: {generated.tokens}."
        )

    questions: tuple[tuple[str, Callable[[], tuple[bool, str, str]]], ...] = (
        ("state restored", lambda: _restored(subject, before)),
        ("certificate", lambda: _certificate(subject, picture, max_new_tokens)),
        ("eager parity", lambda: _eager_parity(subject, picture, ids)),
        ("bit-identical output", lambda: _identical(subject, picture, ids)),
        ("geometry", lambda: _geometry(subject, picture)),
        ("generate equals one pass", lambda: _cache_parity(subject, picture, generated, ids)),
    )
    results = tuple(_ask(name, question) for name, question in questions)
    return CheckReport(subject.name, subject.family.name, generated.source.kernel, _dtype_name(subject), results)


def _ask(name: str, question: Callable[[], tuple[bool, str, str]]) -> CheckResult:
    try:
        return CheckResult(name, *question())
    except ProbeError as error:
        return CheckResult(name, False, str(error), "no error")


def _dtype_name(subject: Subject) -> str:
    return str(subject.model.dtype).removeprefix("torch.")


def _certificate(subject: Subject, picture: Any, max_new_tokens: int) -> tuple[bool, str, str]:
    certificate = generate_and_record(
        subject, picture, _PROMPT, max_new_tokens=max_new_tokens, verify="all"
    ).certificate
    found = f"{certificate.max_error:.1e} of the output over {certificate.rows} rows in {certificate.layers} layers"
    return certificate.passed, found, f"{certificate.tolerance:.0e}"


def _eager_parity(subject: Subject, picture: Any, ids: list[int]) -> tuple[bool, str, str]:
    """Recorded weights against the eager attentions of the very same pass, so that only the recorder can differ."""
    model = subject.model
    inputs, start = inputs_with_answer(subject, picture, _PROMPT, ids)
    used = model.get_decoder().config._attn_implementation
    try:
        model.set_attn_implementation({"text_config": "eager"})
        with torch.inference_mode(), Recorder(model, subject.processor, answer_start=start, verify="off") as recorder:
            attentions = model(**inputs, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation({"text_config": used})
    if not attentions or attentions[0] is None:
        raise CaptureError("The library's eager attention gave no weights for this model, so there is no reference.")
    columns = (inputs["input_ids"][0] == image_token_id(model)).nonzero()[:, 0]
    off = 0.0
    for layer, reference in zip(recorder.result(image=picture).layers, attentions, strict=True):
        rows = reference[0, :, start - 1 : start - 1 + len(ids)]
        patches = rows[..., columns[-layer.values[0, 0, 0].numel() :].to(rows.device)]
        off = max(off, float((layer.values[0].flatten(-2) - patches.to(layer.values)).abs().max()))
    allowed = PARITY.get(model.dtype, 1e-6)
    return off <= allowed, f"{off:.1e}", f"{allowed:.0e}"


def _identical(subject: Subject, picture: Any, ids: list[int]) -> tuple[bool, str, str]:
    inputs, _ = inputs_with_answer(subject, picture, _PROMPT, ids)
    with torch.inference_mode():
        plain = subject.model(**inputs, use_cache=False).logits
        with Recorder(subject.model, subject.processor):
            watched = subject.model(**inputs, use_cache=False).logits
    same = torch.equal(plain, watched)
    return same, "identical" if same else f"{float((plain - watched).abs().max()):.1e} apart", "identical"


def _geometry(subject: Subject, picture: Any) -> tuple[bool, str, str]:
    """Paint one patch's box in the original image: does the visual token that the grid names move most, and do the changed
    pixels of the processed picture lie in its middle?"""
    patch = patch_size(subject.model)
    picture = _enlarged(subject, picture)
    grid = preparation_of(subject.processor, (picture.height, picture.width), family=subject.family).grid(patch)
    cells = np.argwhere(grid.weight > 0.99)
    if not len(cells):
        raise CaptureError(
            f"No patch lies wholly inside this picture of {picture.height} x {picture.width} pixels (height x width), so none can "
            "be painted; give another image."
        )
    generator = np.random.default_rng(0)
    cells = cells[generator.permutation(len(cells))[:_CELLS]]
    pixels = np.asarray(picture)
    plain, wrong = _visual_tokens(subject, pixels), []
    for row, col in cells:
        edges = grid.boxes[row, col]
        top, left, bottom, right = np.round(edges).astype(int)
        box = (slice(top, bottom), slice(left, right))
        painted = pixels.copy()
        painted[box] = generator.integers(0, 256, painted[box].shape)
        moved = (_visual_tokens(subject, painted) - plain).norm(dim=-1)
        found = divmod(int(moved.argmax()), grid.shape[1])
        if found != (row, col):
            wrong.append(f"painted ({row}, {col}), moved {found}")
        elif (
            0 < row < grid.shape[0] - 1 and 0 < col < grid.shape[1] - 1
        ):  # at the border a part of the change is cut off
            middle = np.array([top + bottom, left + right]) / 2
            expected = ((middle - edges[:2]) / (edges[2:] - edges[:2]) + (row, col)) * patch
            off = float(np.abs(_changed_middle(subject, pixels.shape, box) - expected).max())
            if off > _OFF:
                wrong.append(f"({row}, {col}) is off by {off:.1f} pixels of the processed picture")
    detail = f"; {wrong[0]}" if wrong else ""
    return not wrong, f"{len(wrong)} of {len(cells)} patches wrong{detail}", "0 wrong"


def _enlarged(subject: Subject, picture: Any) -> Any:
    """The picture, so large that a patch is several of its pixels wide: boxes can only be painted in whole pixels."""
    grid = preparation_of(subject.processor, (picture.height, picture.width), family=subject.family)
    smallest = min(patch_size(subject.model) / one for one in grid.scale)
    factor = max(1, math.ceil(8 / smallest))
    return picture.resize((picture.width * factor, picture.height * factor)) if factor > 1 else picture


def _changed_middle(subject: Subject, shape: tuple[int, ...], box: tuple[slice, slice]) -> np.ndarray:
    """(row, col): the middle of what changes in the processed picture when a box of a grey image becomes lighter."""
    # Greys far from 0 and 255, so that no overshoot of the resampling is cut off.
    grey = np.full(shape, 96, dtype=np.uint8)
    light = grey.copy()
    light[box] = 160
    before, after = (
        subject.processor.image_processor(images=one, return_tensors="np")["pixel_values"][0] for one in (grey, light)
    )
    change = np.asarray(after - before, dtype=np.float64).sum(axis=0)
    # Pixel i covers i to i + 1.
    return (
        np.array([(change.sum(axis=1 - axis) * (np.arange(change.shape[axis]) + 0.5)).sum() for axis in (0, 1)])
        / change.sum()
    )


def _visual_tokens(subject: Subject, pixels: np.ndarray) -> Tensor:
    """(patch, channel) patch embeddings of a picture, row by row: the visual tokens before they attend to each other."""
    model = subject.model
    tower = model.get_encoder(modality="image")
    size = patch_size(model)
    embeddings = [
        one for one in tower.modules() if isinstance(one, nn.Conv2d) and one.kernel_size == one.stride == (size, size)
    ]
    if len(embeddings) != 1:
        raise CaptureError(f"{len(embeddings)} patch embeddings were found in {type(tower).__name__}; expected one.")
    inputs = subject.processor.image_processor(images=pixels, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return embeddings[0](inputs.to(model.device, model.dtype))[0].flatten(1).T.float()


def _cache_parity(subject: Subject, picture: Any, generated: AttentionRecord, ids: list[int]) -> tuple[bool, str, str]:
    whole = read_and_record(subject, picture, _PROMPT, answer=ids, verify="off").stack()
    off = float((whole - generated.select(tokens=range(len(ids))).stack()).abs().max())
    allowed = CACHE_PARITY.get(subject.model.dtype, 1e-4)
    return off <= allowed, f"{off:.1e}", f"{allowed:.0e}"


def _state(model: Any) -> dict[str, Any]:
    """What recording could have changed: hooks, attributes, modes, configuration and the library's look-up."""
    from transformers.modeling_utils import AttentionInterface

    return {
        "hooks": hook_tables(model),
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "configuration": model.config.to_json_string(use_diff=False),
        "attention": [one.config._attn_implementation for one in model.modules() if hasattr(one, "config")],
        "look-up": AttentionInterface.get_interface,
        "registered": dict(AttentionInterface._global_mapping),
    }


def _restored(subject: Subject, before: dict[str, Any]) -> tuple[bool, str, str]:
    """Whether the recordings so far left the model as it was."""
    after = _state(subject.model)
    changed = [name for name in before if before[name] != after[name]]
    return not changed, f"changed: {', '.join(changed)}" if changed else "nothing changed", "nothing changed"


def _smooth_picture() -> Any:
    """A picture with structure at every place, the same every time: 300 x 400 pixels of coloured noise, made smooth."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC)
