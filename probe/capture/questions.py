"""What a check of a model is made of: questions, their answers, and the state that recording must leave as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from probe.capture.hooks import hook_tables
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = [
    "PARITY",
    "Answer",
    "CheckReport",
    "CheckResult",
    "Question",
    "ask",
    "dtype_name",
    "model_state",
    "restored",
    "smooth_picture",
    "without_warnings",
]

#: Largest difference of one attention weight from an eager reference, by the model's number type. The reference rounds, not the
#: recorder: the library's eager attention keeps scores in that type, and takes its softmax in float32 also for float64.
PARITY = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}

#: Whether the answer is right, what was found, what is allowed, and what was found as a number where it is one.
Answer = tuple[bool, str, str] | tuple[bool, str, str, float]
Question = Callable[[], Answer]

#: What the number of each question measures, by the question's name; the same for all kinds of models.
_MEASURES = {
    "certificate": "certificate",
    "eager parity": "parity",
    "parity with the plain processor": "parity",
    "parity with plain attention": "parity",
    "state restored": "state_differences",
    "geometry": "geometry_wrong_cells",
}


@dataclass(frozen=True)
class CheckResult:
    """One question about a model: what was found, what is allowed, and the found as a number where it is one."""

    name: str
    passed: bool
    found: str
    allowed: str
    number: float | None = None


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

    @property
    def numbers(self) -> dict[str, float]:
        """What was measured, by a name that is the same for every kind of model: "parity", "certificate", "state_differences" and
        "geometry_wrong_cells"; only those that were asked and answered with a number."""
        return {
            _MEASURES[one.name]: one.number for one in self.results if one.name in _MEASURES and one.number is not None
        }

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types, for JSON."""
        return asdict(self) | {"passed": self.passed}


def ask(name: str, question: Question) -> CheckResult:
    """The answer to one question; what is refused meanwhile is a failed answer."""
    try:
        return CheckResult(name, *question())
    except ProbeError as error:
        return CheckResult(name, False, str(error), "no error")


def dtype_name(subject: Subject) -> str:
    return str(subject.model.dtype).removeprefix("torch.")


def model_state(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What recording could have changed in these modules, by name, and in the libraries that run them."""
    from transformers.modeling_utils import AttentionInterface

    inner = [(f"{prefix} {name}", one) for prefix, part in modules.items() for name, one in part.named_modules()]
    return {
        "hooks": {prefix: hook_tables(part) for prefix, part in modules.items()},
        "attributes": {name: sorted(vars(one)) for name, one in inner},
        "modes": {name: one.training for name, one in inner},
        "configuration": {prefix: _plain_configuration(part) for prefix, part in modules.items()},
        "attention": [getattr(getattr(one, "config", None), "_attn_implementation", None) for _, one in inner],
        "processors": [type(getattr(one, "processor", None)) for _, one in inner],
        "look-up": AttentionInterface.get_interface,
        "registered": dict(AttentionInterface._global_mapping),
        "torch's attention": torch.nn.functional.scaled_dot_product_attention,
    }


def _plain_configuration(part: nn.Module) -> Any:
    config: Any = getattr(part, "config", None)
    return config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else str(config)


def restored(before: dict[str, Any], after: dict[str, Any]) -> Answer:
    """Whether the recordings between two states left the model as it was."""
    changed = [name for name in before if before[name] != after[name]]
    found = f"changed: {', '.join(changed)}" if changed else "nothing changed"
    return not changed, found, "nothing changed", len(changed)


@contextmanager
def without_warnings() -> Iterator[None]:
    """The library says nothing but errors: it warns of kernels without weights, where only some parts were to give weights."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def smooth_picture() -> Any:
    """A picture with structure at every place, the same every time: 300 x 400 pixels of coloured noise, made smooth."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC)
