"""``probe check``."""

from __future__ import annotations

from probe.reports import Report, make_table

__all__ = ["check"]


def check(model: str, *, image: str | None = None, dtype: str = "auto", device: str | None = None) -> Report:
    """Prove that the recorder tells the truth about a model and leaves it as it was; exit code 1 if anything fails.

    Parameters
    ----------
    model
        "lab/llava", "lab/clip", "lab/diffusion", a hub name or a local folder.
    image
        Any picture; by default one that is made up.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    import probe

    report = probe.check(probe.load_model(model, dtype=dtype, device=device), image=image)
    table = make_table(
        f"{report.model}: family {report.family}, kernel {report.kernel}, {report.dtype}",
        "",
        "question",
        "found",
        "allowed",
    )
    for one in report.results:
        table.add_row("ok" if one.passed else "FAILED", one.name, one.found, one.allowed)
    return Report(report.to_dict(), [table], 0 if report.passed else 1)
