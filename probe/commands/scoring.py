"""``probe score``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from probe.commands.arguments import kind_note, lab_note, read_examples, whole_numbers
from probe.reports import (
    Report,
    head_tables,
    output_folder,
    peak_table,
    score_data,
    score_table,
    tracked,
    write_json,
)
from probe.writing import write_beside

__all__ = ["score"]


def score(
    *,
    data: str = "lab",
    model: str = "lab/llava",
    prompt: str = "Describe the image.",
    metric: Sequence[str] = (),
    limit: int | None = None,
    reading: Literal["minus mean", "attention"] | None = None,
    quantity: Literal["contribution", "attention"] | None = None,
    timestep: Sequence[str] = (),
    out: str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Score how well every layer and head localises the phrases of a data set, with intervals and controls.

    Parameters
    ----------
    data
        "lab" (unseen scenes; also lab:unseen, lab:plain, lab:occlusion, lab:relations, lab:clutter), or a folder in a
        published format, with the format and the split before it where they are not plain: coco, instances, panoptic, captions,
        grandf, refcoco, png, folder, as in refcoco/testA:FOLDER.
    model
        "lab/llava", "lab/clip" or "lab/diffusion" (small models that know coloured shapes alone), a hub name or a local folder.
    prompt
        What the captions answer, for a language model.
    metric
        "pointing", "auroc", "lift" or "energy"; by default the first three.
    limit
        At most this many examples; 500 for lab scenes, all of a folder.
    reading
        What a single head's score reads: its map "minus mean" over the answer (Eq. 3), or its "attention" (or contribution) as
        recorded. By default the first, where there is a mean.
    quantity
        For CLIP: the "contribution" of patches to the similarity with each phrase (the default), or the "attention" of its class
        token, which is the same for every phrase.
    timestep
        For a diffusion model: how much noise is put on the image; 100 by default. With several each has its own rows.
    out
        Folder for scores.parquet and scores.json with the exact settings.
    seed
        For the bootstrap, for which lab scenes, and for a diffusion model's noise.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    settings = dict(locals())
    import probe
    from probe.analysis.metrics import find_metric
    from probe.runs import score_examples

    target = None if out is None else output_folder(out)
    metrics = list(metric) or ["pointing", "auroc", "lift"]
    for one in metrics:
        find_metric(one)
    timesteps = whole_numbers("--timestep", timestep)
    examples, total = read_examples(data, limit=limit, seed=seed)
    subject = probe.load_model(model, dtype=dtype, device=device)
    followed = tracked(examples, what="scoring", total=total)
    scores = score_examples(
        subject,
        followed,
        prompt=prompt,
        metric=metrics,
        reading=reading,
        quantity=quantity,
        timesteps=timesteps,
        seed=seed,
    )
    used: dict[str, Any] = {
        "metric": metrics,
        "limit": total,
        "dtype": str(subject.model.dtype),
        "device": str(subject.model.device),
    }
    used |= {"reading": scores.settings.reading, "quantity": scores.quantity, "timestep": timesteps}
    result = score_data(scores) | {"settings": settings | used | {"groundprobe": probe.__version__}}
    written: list[str] = []
    if target is not None:
        frame = scores.to_frame()
        write_beside(target / "scores.parquet", lambda path: frame.to_parquet(path, index=False))
        write_json(target / "scores.json", result)
        written = [f"table        {target / name}" for name in ("scores.parquet", "scores.json")]
    tables = [*(score_table(scores, one) for one in scores.metrics), peak_table(scores)]
    if subject.family.kind != "language model":
        tables += head_tables(scores, scores.metrics[0])
    return Report(result, [*tables, *kind_note(subject, scores.quantity), *written, *lab_note(model, data)])
