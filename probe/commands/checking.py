"""``probe check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probe.commands.arguments import OptionalWord
from probe.errors import InputError
from probe.reports import Report, make_table, progress

if TYPE_CHECKING:
    from probe.capture.questions import CheckReport
    from probe.family_checks import FamilyReport

__all__ = ["check"]


def check(
    model: OptionalWord = None,
    *,
    family: str | None = None,
    all: bool = False,
    image: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Prove that the recorder tells the truth about a model and leaves it as it was; exit code 1 if anything fails.

    Parameters
    ----------
    model
        "lab/llava", "lab/clip", "lab/diffusion", a hub name or a local folder.
    family
        Instead of a model: a tiny random model of this family, such as "qwen2_vl", made on the spot and without a network.
    all
        Instead of a model: a tiny random model of every family there is.
    image
        Any picture; by default one that is made up.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own, and float32 for a tiny one.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    import probe

    if sum(bool(one) for one in (model, family, all)) != 1:
        raise InputError("Give one of these: a MODEL, --family NAME for a tiny random model of it, or --all.")
    if model is None:
        if image is not None:
            raise InputError("--image is for a MODEL of your own, not for --family or --all.")
        return _families([family] if family else None, "float32" if dtype == "auto" else dtype, device)
    report = probe.check(probe.load_model(model, dtype=dtype, device=device), image=image)
    return Report(report.to_dict(), [_questions(report)], 0 if report.passed else 1)


def _questions(report: CheckReport) -> Any:
    table = make_table(
        f"{report.model}: family {report.family}, kernel {report.kernel}, {report.dtype}",
        "",
        "question",
        "found",
        "allowed",
    )
    for one in report.results:
        table.add_row("ok" if one.passed else "FAILED", one.name, one.found, one.allowed)
    return table


def _families(names: list[str] | None, dtype: str, device: str | None) -> Report:
    """The checks of these families, or of all, on tiny random models."""
    from probe.family_checks import check_family
    from probe.loading import usable_device
    from probe.tiny import TINY

    target = usable_device(device)
    chosen, found = list(TINY) if names is None else names, []
    with progress("checking", len(chosen)) as tell:
        for number, name in enumerate(chosen):
            tell(number, f"checking {name}")
            found.append(check_family(name, dtype=dtype, device=target))
    families, passed = [one.to_dict() for one in found], all(one.passed for one in found)
    data = {"families": families, "dtype": dtype, "device": target, "passed": passed}
    parts = [_summary(found, f"tiny random models in {dtype} on {target}")]
    parts += [_questions(one.report) for one in found if one.report is not None and (names or not one.passed)]
    return Report(data, parts, 0 if passed else 1)


def _summary(found: list[FamilyReport], what: str) -> Any:
    columns = ("", "family", "parity", "in float64", "certificate", "state differences", "wrong cells", "why")
    table = make_table(f"{what}: recorded weights against the library's eager attention", *columns)
    for one in found:
        numbers = (one.parity, one.parity_float64, one.certificate)
        counts = (one.state_differences, one.geometry_wrong_cells)
        table.add_row(
            "ok" if one.passed else "FAILED",
            one.name,
            *("-" if number is None else f"{number:.1e}" for number in numbers),
            *("-" if count is None else str(count) for count in counts),
            one.why or "",
        )
    return table
