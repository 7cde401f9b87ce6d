"""``probe demo``: the shipped model on scenes that it has never seen, scored, controlled and drawn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.commands.arguments import at_least
from probe.reports import (
    Report,
    certificate_data,
    output_folder,
    peak_table,
    score_data,
    score_table,
    tracked,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probe.analysis.heads import HeadScores
    from probe.models import Subject

__all__ = ["demo"]

_PROMPT = "Describe the image."
_DRAWN = 3  # scenes whose phrases are drawn, beside the two pictures of the scores
_LOOKED_AT = 50  # after so many scenes any is drawn


def demo(*, out: str = "probe-demo", scenes: int = 500, seed: int = 0) -> Report:
    """Show the whole tool on the shipped model: scores, controls and pictures of scenes it has never seen.

    Parameters
    ----------
    out
        Folder for the pictures, the table and a record.
    scenes
        How many unseen scenes are scored.
    seed
        Which scenes; another number gives others.
    """
    at_least("--scenes", scenes, 2)  # a best head is chosen on one half and reported on the other
    return _run(output_folder(out), scenes=scenes, seed=seed)


def _run(out: Path, *, scenes: int, seed: int) -> Report:
    """A report with scores, controls, certificate and the paths of at least four pictures, all written into ``out``."""
    from probe.evaluation.lab import read_lab
    from probe.files import save
    from probe.models import load_model
    from probe.quoting import spreadsheet_frame
    from probe.runs import score_examples
    from probe.writing import write_beside

    began = time.perf_counter()
    subject = load_model("lab/llava")
    pictures, record, answers, looked_at = _draw_scenes(subject, out, seed=seed)
    kept = save(record, out / "record.safetensors")
    examples = tracked(read_lab(limit=scenes, seed=seed), what="scoring unseen scenes", total=scenes)
    scores = score_examples(subject, examples, prompt=_PROMPT, seed=seed)
    frame = spreadsheet_frame(scores.to_frame())
    write_beside(out / "scores.csv", lambda path: frame.to_csv(path, index=False, lineterminator="\n"))
    pictures += _draw_scores(scores, out)
    data: dict[str, Any] = score_data(scores) | {
        "model": "lab/llava",
        "answers": answers,
        "scenes_looked_at_for_pictures": looked_at,
        "certificate": certificate_data(record),
        "record": str(kept),
        "table": str(out / "scores.csv"),
        "figures": [str(path) for path in pictures],
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(out / "demo.json", data)
    tables = [*(score_table(scores, one) for one in scores.metrics), peak_table(scores)]
    lines: list[Any] = [f"lab/llava says  {answers[0]}", *tables]
    lines += [
        "Captions are the true ones, read word by word. What the subtraction of Eq. 3 changes, paired phrase by phrase:",
        *(_difference(scores, metric) for metric in scores.metrics),
        f"certificate     largest error {record.certificate.max_error:.1e} of the output in {record.certificate.rows} rows",
        *(f"picture         {path}" for path in pictures),
        f"                (scenes: the first {_DRAWN} of {looked_at} in which it names at least two objects exactly right)",
        f"record, table   {kept}, {out / 'scores.csv'}",
        f"seconds         {data['seconds']}",
    ]
    return Report(data, lines)


def _difference(scores: HeadScores, metric: str) -> str:
    """One line: how far minus_mean lies from mean_map, with the interval of the paired difference."""
    from probe.analysis.metrics import METRICS

    found = scores.reading("minus_mean - mean_map", metric)
    if not METRICS[metric].offset_invariant:
        verdict = "no verdict: subtracting anything changes it"
    else:
        verdict = "better" if found.low > 0 else "worse" if found.high < 0 else "no difference shown"
    return f"  {metric:<10} {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]  {verdict}"


def _draw_scenes(subject: Subject, out: Path, *, seed: int) -> tuple[list[Path], Any, list[str], int]:
    """Pictures of what the model looks at while it describes a few scenes in its own words; the first record; its answers; scenes
    looked at until as many were found in which it names two objects right."""
    from probe.lab.scenes import scene
    from probe.plots import phrases, style
    from probe.runs import run
    from probe.text import find_phrase

    pictures: list[Path] = []
    answers: list[str] = []
    first, index = None, 0
    with style():
        while len(pictures) < _DRAWN:
            example = scene(index, split="test", seed=seed)
            index += 1
            found = run(subject, example.image, _PROMPT)
            # Only what the model really said can be drawn; a phrase that it got wrong has no words to look up.
            said = [one for one in example.phrases if len(find_phrase(found.text, one.text)) == 1]
            if len(said) < 2 and index < _LOOKED_AT:
                continue
            wanted: list[str | tuple[str, int]] = [one.text for one in said] or [(found.text.split()[0], 0)]
            masks = [one.mask for one in said] if said else None
            axes = phrases(found.record, wanted, example.image, masks=masks)
            pictures.append(_saved(axes[0], out / f"scene-{len(pictures) + 1}"))
            answers.append(found.text)
            first = first or found.record
    return pictures, first, answers, index


def _draw_scores(scores: HeadScores, out: Path) -> list[Path]:
    from probe.plots import heads, readings

    return [
        _saved(heads(scores, metric="pointing"), out / "heads"),
        _saved(readings(scores, metric="pointing"), out / "readings"),
    ]


def _saved(ax: Axes, path: Path) -> Path:
    """The PNG of the figure that these Axes are part of."""
    import matplotlib.pyplot as plt

    from probe.plots import save_figure

    figure = ax.get_figure(root=True)
    assert figure is not None  # for the type checker: these Axes were just made
    drawn = save_figure(figure, path)[1]
    plt.close(figure)
    return drawn
