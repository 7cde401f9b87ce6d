"""``probe segment``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from probe.commands.arguments import kind_note, lab_note
from probe.reports import Report, certificate_data, make_table, output_folder, write_json

if TYPE_CHECKING:
    from probe.grounding.segment import Segmentation

__all__ = ["segment"]


def segment(
    image: str,
    prompt: str,
    *,
    model: str = "lab/llava",
    answer: str | None = None,
    phrase: Sequence[str] = (),
    refiner: str = "threshold",
    combine: Literal["mean", "first", "max"] = "mean",
    reduction: Literal["all-heads", "as-first-released"] = "all-heads",
    point: Literal["bicubic", "patch centre"] = "bicubic",
    out: str = "probe-segment",
    max_new_tokens: int = 128,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Find the region of the image that each phrase of a model's answer looks at, as a point and a mask.

    Parameters
    ----------
    image
        The picture's file.
    prompt
        What to ask.
    model
        "lab/llava", a hub name or a local folder.
    answer
        Read this text instead of generating one.
    phrase
        A phrase of the answer, each time it is said; by default the answer's noun phrases.
    refiner
        What makes a mask of a point: "threshold" cuts the map itself, "superpixels" the image. A SAM has learned to: lab/sam, or
        sam: or sam-hq: and a hub name or folder, such as sam:facebook/sam-vit-huge; followed by :best or :smallest, it takes
        another of its masks than the last.
    combine
        How the maps of a phrase's tokens become one.
    reduction
        All heads of all layers, or the last head but one of each layer, as the first public code did.
    point
        The largest pixel of the map upsampled as in the paper, or the centre of the best patch.
    out
        Folder for segments.json with points, masks as COCO run lengths and the exact settings, answer.png and .pdf, and
        record.safetensors.
    max_new_tokens
        Where a generated answer is cut off at the latest.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu", for the refiner too; by default a GPU if there is one.
    """
    settings = dict(locals())
    import matplotlib.pyplot as plt

    import probe
    from probe.grounding.refiners import find_refiner
    from probe.plots import save_figure
    from probe.runs import main_view

    target = output_folder(out)
    maker = find_refiner(refiner, device=device)  # an unknown name is said before a model is loaded
    picture = probe.read_image(image)
    subject = probe.load_model(model, dtype=dtype, device=device)
    record = probe.run(subject, picture, prompt, answer=answer, max_new_tokens=max_new_tokens).record
    found = probe.attend_and_segment(
        main_view(record),
        picture,
        phrases=list(dict.fromkeys(phrase)) or None,
        combine=combine,
        reduction=reduction,
        point=point,
        refiner=maker,
    )
    # Nothing is written before everything that can be refused is computed.
    figure = probe.plots.answer(found, picture).get_figure(root=True)
    assert figure is not None  # for the type checker: these Axes were just made
    kept = probe.save(record, target / "record.safetensors")
    figures = [str(path) for path in save_figure(figure, target / "answer")]
    plt.close(figure)
    data = found.to_json() | {
        "record": str(kept),
        "figures": figures,
        "certificate": certificate_data(record),
        "settings": settings,
    }
    write_json(target / "segments.json", data)
    name = "answer" if subject.family.kind == "language model" else "text"
    lines: list[Any] = [f"{name:13}{found.text}", *_regions(found), f"segments     {target / 'segments.json'}"]
    return Report(
        data,
        [*lines, *(f"picture      {one}" for one in figures), *kind_note(subject, record.quantity), *lab_note(model)],
    )


def _regions(found: Segmentation) -> list[Any]:
    """The table of phrases, or the line that says why there are none, or fewer."""
    parts: list[Any] = []
    if found.phrases:
        title = f"{found.refiner}, {found.reduction}, {found.combine} over tokens; points as (row, col)"
        table = make_table(title, "phrase", "characters", "bicubic", "patch centre", "mask, share of image", "note")
        for one in found.phrases:
            places = [
                "-" if each is None else f"({each[0]}, {each[1]})" for each in (one.bicubic_point, one.patch_point)
            ]
            table.add_row(one.text, f"{one.span[0]}-{one.span[1]}", *places, f"{one.mask.mean():.3f}", one.note)
        parts.append(table)
    return [*parts, f"note         {found.note}"] if found.note else parts
