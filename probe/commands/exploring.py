"""``probe html``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from probe.errors import InputError
from probe.reports import Report, progress

__all__ = ["html"]


def html(
    record: list[str],
    *,
    image: str | None = None,
    masks: str | None = None,
    label: Sequence[str] = (),
    out: str = "view.html",
    megabytes: float = 10.0,
) -> Report:
    """Write saved records as one page to click through, for anybody with a browser: no model, no network.

    Parameters
    ----------
    record
        Files that `probe record` or probe.save wrote, all of one image: of checkpoints or models, say, to stand side by side.
    image
        The picture that was recorded; without it, maps stand alone.
    masks
        Folder with the true masks, one PNG for each phrase that is named like it, as in "red ball.png": one colour on black.
    label
        A name for each record, in their order; by default the names of the files.
    out
        The page.
    megabytes
        What the page may take; maps are kept in fewer levels where they would take more, and the page says how many.
    """
    settings = dict(locals())
    import probe
    from probe.evaluation.plain_folders import read_masks
    from probe.widgets.html import write_html

    target = Path(out)
    if target.is_dir():
        raise InputError(f"--out {out} is a folder; give the page's file, such as view.html.")
    if megabytes <= 0:
        raise InputError(f"--megabytes must be above 0, found {megabytes:g}.")
    records = [probe.load(one) for one in record]
    known = read_masks(masks, size=records[0].image_size) if masks is not None else None
    with progress("packing maps", None) as step:
        page = write_html(
            records, target, image=image, masks=known, labels=list(label) or _names(record), megabytes=megabytes,
            on_sheet=lambda done, total: step(done, total=total),
        )  # fmt: skip
    data = {
        "page": str(page.path),
        "megabytes": page.megabytes,
        "kept": asdict(page.kept),
        "said": page.kept.said,
        "settings": settings,
    }
    lines = [f"page         {page.path} ({page.megabytes:.1f} MB)", f"maps         {page.kept.said}"]
    lines += ["note         without --image the maps stand alone"] if image is None else []
    return Report(data, lines)


def _names(paths: Sequence[str]) -> list[str]:
    """The files' names without their ending; where several are alike, with the folder before them."""
    names = [Path(one).stem for one in paths]
    return names if len(set(names)) == len(names) else [str(Path(one).with_suffix("")) for one in paths]
