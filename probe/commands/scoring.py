"""``probe score``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from probe.commands.arguments import lab_note, read_examples
from probe.files import write_beside
from probe.reports import Report, output_folder, peak_table, score_data, score_table, tracked, write_json

__all__ = ["score"]


def score(
    *,
    data: str = "lab",
    model: str = "lab/llava",
    prompt: str = "Describe the image.",
    metric: Sequence[str] = (),
    limit: int | None = None,
    reading: Literal["minus mean", "attention"] = "minus mean",
    out: str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Score how well every layer and head localises the phrases of a data set, with intervals and controls.

    Parameters
    ----------
    data
        "lab" (unseen scenes; also lab:unseen, lab:plain, lab:occlusion, lab:relations, lab:clutter) or a folder in COCO style.
    model
        "lab/llava" (a small model that knows coloured shapes alone), a hub name or a local folder.
    prompt
        What the captions answer.
    metric
        "pointing", "auroc", "lift" or "energy"; by default the first three.
    limit
        At most this many examples; 500 for lab scenes, all of a folder.
    reading
        What a single head's score reads: its map minus its mean over the answer (Eq. 3), or its attention as recorded.
    out
        Folder for scores.parquet and scores.json with the exact settings.
    seed
        For the bootstrap, and for which lab scenes.
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
    examples, total = read_examples(data, limit=limit, seed=seed)
    subject = probe.load_model(model, dtype=dtype, device=device)
    followed = tracked(examples, what="scoring", total=total)
    scores = score_examples(subject, followed, prompt=prompt, metric=metrics, reading=reading, seed=seed)
    used = {"metric": metrics, "limit": total, "dtype": str(subject.model.dtype), "device": str(subject.model.device)}
    result = score_data(scores) | {"settings": settings | used | {"groundprobe": probe.__version__}}
    written: list[str] = []
    if target is not None:
        frame = scores.to_frame()
        write_beside(target / "scores.parquet", lambda path: frame.to_parquet(path, index=False))
        write_json(target / "scores.json", result)
        written = [f"table        {target / name}" for name in ("scores.parquet", "scores.json")]
    tables = [score_table(scores, one) for one in scores.metrics]
    return Report(result, [*tables, peak_table(scores), *written, *lab_note(model, data)])
