"""Several models on the same images and phrases: each example is read by all of them before the next."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from typing import TYPE_CHECKING, Any

from probe.errors import InputError
from probe.measurements import Reword, other_prompt
from probe.models import Subject, load_model
from probe.runs import records_of, threads_for

if TYPE_CHECKING:
    from probe.analysis.differences import Comparison
    from probe.analysis.scorer import Reading
    from probe.analysis.systems import SystemRecord
    from probe.evaluation.examples import Example

__all__ = ["compare", "compare_examples"]


def compare(
    models: Sequence[Subject | str | os.PathLike[str]],
    data: str | os.PathLike[str] = "lab",
    *,
    limit: int | None = None,
    metric: str | Sequence[str] = ("pointing", "auroc", "lift"),
    prompt: str = "Describe the image.",
    reading: Reading = "minus mean",
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
) -> Comparison:
    """Which of several models localises phrases better on a data set, with paired tests: a ``Comparison``.

    >>> probe.compare(["lab/clip", "lab/diffusion", "lab/llava"], "lab", limit=200)

    Each kind of model is read by its own named map: of a language model the attention of answer tokens to patches, of CLIP what
    each patch adds to the similarity with each phrase, of a diffusion model the cross-attention of patches to words. See
    ``probe.analysis.comparisons.compare_records`` for what is compared, and what is refused.

    Parameters
    ----------
    models : two or more, by name or folder, or from ``load_model``.
    data : "lab" (also "lab:clutter", ...) or a folder that ``read_data`` of
        ``probe.evaluation.sources`` reads. For examples of your own: ``compare_examples``.
    limit : at most this many examples; 500 for lab scenes, all of a folder.
    metric : one name or several of ``probe.analysis.metrics.METRICS``.
    prompt : what the captions answer, for language models.
    reading : "minus mean" (Eq. 3), or "attention": the maps as recorded, which are of different kinds in different models.
    timesteps : for diffusion models: how much noise is put on the image, (100,) by default; of several the mean is read.
    seed : of lab scenes, noise, bootstrap and sign flips.

    Raises
    ------
    InputError, ModelError
        If there are fewer than two models or two of one name, or as ``load_model``, ``compare_records`` and the readers do.
    """
    from probe.evaluation.lab import reword_scene
    from probe.evaluation.sources import is_lab, read_data

    require_several(models)
    examples, _ = read_data(data, limit=limit, seed=seed)
    subjects = [one if isinstance(one, Subject) else load_model(one) for one in models]
    return compare_examples(
        subjects,
        examples,
        reword=reword_scene if is_lab(data) else None,
        metric=metric,
        prompt=prompt,
        reading=reading,
        timesteps=timesteps,
        seed=seed,
    )


def require_several(models: Sequence[Subject | str | os.PathLike[str]]) -> None:
    """Nothing, if these are two models or more of different names.

    Raises
    ------
    InputError
        If not: a model does not differ from itself, and names tell the results apart.
    """
    if isinstance(models, (str, os.PathLike, Subject)):
        raise InputError('A comparison needs a list of models, for example ["lab/clip", "lab/llava"].')
    names = [one.name if isinstance(one, Subject) else os.fspath(one) for one in models]
    if len(names) < 2:
        raise InputError(f"A comparison needs two models or more, found {', '.join(names) or 'none'}.")
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise InputError(f"{twice[0]!r} is given twice; every model to compare needs a name of its own.")


def compare_examples(
    subjects: Sequence[Subject],
    examples: Iterable[Example],
    *,
    reword: Reword | None = None,
    metric: str | Sequence[str] = ("pointing", "auroc", "lift"),
    prompt: str = "Describe the image.",
    reading: Reading = "minus mean",
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    noise_seed: int | None = None,
) -> Comparison:
    """The same for loaded models and any examples, in memory for one of them.

    Parameters
    ----------
    noise_seed : of the noise that diffusion models put on the image, if it is to differ from ``seed``.
    reword : the same example in other words, such as ``probe.evaluation.lab.reword_scene``. Without it a language model reads the
        same caption as the answer to another question, and other models have no paraphrase floor.
    """
    from probe.analysis.comparisons import compare_records

    require_several(subjects)
    noise = seed if noise_seed is None else noise_seed
    systems = _in_step(subjects, examples, reword=reword, prompt=prompt, timesteps=timesteps, seed=noise)
    with threads_for(*(one.model for one in subjects)):
        return compare_records(systems, metric=metric, reading=reading, seed=seed)


def _in_step(
    subjects: Sequence[Subject],
    examples: Iterable[Example],
    *,
    reword: Reword | None,
    prompt: str,
    timesteps: Sequence[int] | None,
    seed: int,
) -> Iterator[dict[str, SystemRecord]]:
    """For each example, name of the model -> its record of the caption as it is and in other words."""
    from probe.analysis.systems import SystemRecord

    copies = tee(examples, 2 * len(subjects))
    streams: list[tuple[str, Iterator[Any], Iterator[Any] | None]] = []
    for subject, plain, other in zip(subjects, copies[::2], copies[1::2], strict=True):
        kind = subject.family.kind
        options: dict[str, Any] = {"seed": seed}
        if kind == "diffusion":
            options["timesteps"] = timesteps
        asked = {"prompt": prompt} if kind == "language model" else {}
        first = records_of(subject, plain, **(options | asked))
        again: Iterator[Any] | None = None
        if reword is not None:
            again = records_of(subject, map(reword, other), **(options | asked))
        elif kind == "language model":
            again = records_of(subject, other, **options, prompt=other_prompt(prompt))
        streams.append((subject.name, first, again))
    del copies, plain, other  # an unread copy would keep every example
    end: Any = object()
    while True:
        found: dict[str, SystemRecord] = {}
        for name, first, again in streams:
            one = next(first, end)
            if one is end:
                return
            found[name] = SystemRecord(*one, *(next(again) if again is not None else ()))
        yield found
