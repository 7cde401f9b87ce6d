"""Is every family recorded truthfully? The checks of ``probe check`` on a tiny random model, in two number types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch

from probe.capture.checks import CheckReport, check
from probe.capture.questions import without_warnings
from probe.errors import ProbeError
from probe.loading import number_type, usable_device
from probe.models import Subject
from probe.runs import threads_for
from probe.tiny import tiny_model

__all__ = ["FamilyReport", "check_family"]

#: What a float64 model's weights may differ by from the reference's, where both take their softmax in float64.
PARITY_FLOAT64 = 1e-12


@dataclass(frozen=True)
class FamilyReport:
    """What the checks of a family found on its tiny random model.

    Attributes
    ----------
    name : the family.
    parity, parity_float64 : largest difference of one weight from the library's eager reference; ``None`` where there is none.
    why : why there is no reference, or why one is of another model than its users run.
    certificate : largest error of the rebuilt output, relative to it.
    state_differences : what recording left changed on the model, counted.
    geometry_wrong_cells : painted cells whose token did not move most; ``None`` where the patches are the latent's own.
    passed : True if every question was answered well in the first number type, and parity in float64.
    report : all questions and answers in the first number type.
    """

    name: str
    parity: float | None
    parity_float64: float | None
    certificate: float | None
    state_differences: int | None
    geometry_wrong_cells: int | None
    passed: bool
    why: str | None
    report: CheckReport | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The numbers in plain types, for JSON."""
        names = (
            "name",
            "parity",
            "parity_float64",
            "certificate",
            "state_differences",
            "geometry_wrong_cells",
            "passed",
            "why",
        )
        return {name: getattr(self, name) for name in names}


def check_family(name: str, *, dtype: str = "auto", device: str | None = None) -> FamilyReport:
    """The report on one family of ``probe.tiny.TINY``; what is refused is a report that did not pass, with the reason.

    Parameters
    ----------
    dtype : number type of the first of the two passes, or "auto" for float32; the second is in float64.
    device : such as "cuda"; by default a GPU if torch sees one, and the CPU otherwise. Kernels differ from device to device.

    Raises
    ------
    InputError
        If there is no such family.
    ModelError
        If the number type or the device cannot be used here.
    """
    wanted, target = torch.float32 if dtype == "auto" else number_type(dtype), usable_device(device)
    with without_warnings():  # of image processors that are slower without torchvision
        subject = _cast(tiny_model(name), wanted, target)
    with threads_for(subject.model):
        try:
            single = check(subject)
            with _exact_softmax():
                double = check(_cast(subject, torch.float64, target))
        except ProbeError as error:
            return FamilyReport(name, None, None, None, None, None, False, str(error))
    parity, exact = (_number(one, "parity") for one in (single, double))
    why = None if parity is not None else _answer(single, "parity") or "the library has no eager reference for it"
    if "another model" in _answer(single, "parity"):
        why = _answer(single, "parity").split("; ", 1)[1]
    states, cells = _number(single, "state"), _number(single, "geometry")
    return FamilyReport(
        name,
        parity,
        exact,
        _number(single, "certificate"),
        None if states is None else int(states),
        None if cells is None else int(cells),
        single.passed and (exact is None or exact <= PARITY_FLOAT64),
        why,
        single,
    )


def _cast(subject: Subject, dtype: torch.dtype, device: str) -> Subject:
    """The same model in a number type on a device; a pipeline's parts one by one."""
    model = subject.model
    parts = [model] if isinstance(model, torch.nn.Module) else list(model.components.values())
    for part in parts:
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, device, dtype)  # diffusers' own warns of parts that it would keep in float32
    return replace(subject, model=model)


@contextmanager
def _exact_softmax() -> Iterator[None]:
    """The library's eager attention takes its softmax in float32 whatever the model's number type; here it keeps float64."""
    plain = torch.nn.functional.softmax

    def softmax(values: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
        return plain(values, dim=dim, dtype=None if values.dtype == torch.float64 else dtype)

    with mock.patch("torch.nn.functional.softmax", softmax):
        yield


def _number(report: CheckReport, question: str) -> float | None:
    found = [one for one in report.results if question in one.name]
    return found[0].number if found else None


def _answer(report: CheckReport, question: str) -> str:
    return next((one.found for one in report.results if question in one.name), "")
