"""Lab scenes as a data set: endless, exact, and never seen in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from probe.errors import InputError, did_you_mean
from probe.evaluation.examples import Example, ExamplePhrase
from probe.lab.grammar import reworded
from probe.lab.scenes import SceneSettings, scenes

__all__ = ["LAB_SETS", "lab_settings", "read_lab", "reword_scene"]

#: Names of the lab's data sets, and what their scenes are like. The plain name is what the models were trained on.
LAB_SETS = {
    "lab": SceneSettings(),
    "lab:unseen": SceneSettings(combinations="unseen"),
    "lab:plain": SceneSettings(texture=False),
    "lab:occlusion": SceneSettings(occlusion=True),
    "lab:relations": SceneSettings(relations=True),
    "lab:clutter": SceneSettings(clutter=True),
}


def read_lab(name: str = "lab", *, limit: int = 500, seed: int = 0) -> Iterator[Example]:
    """The first ``limit`` test scenes of one of ``LAB_SETS``, as examples whose phrases have exact masks.

    Raises
    ------
    InputError
        If there is no lab data set of that name.
    """
    settings = lab_settings(name)
    if limit < 1:
        raise InputError(f"limit must be 1 or more scenes, found {limit}.")
    for one in scenes(limit, split="test", seed=seed, settings=settings):
        phrases = tuple(
            ExamplePhrase(part.text, part.start, part.end, part.mask, item.shape, thing=True, plural=False)
            for part, item in zip(one.phrases, one.objects, strict=True)
        )
        yield Example(f"{name} {one.index}", one.image, one.caption, phrases)


def lab_settings(name: str) -> SceneSettings:
    """What the scenes of a lab data set are like.

    Raises
    ------
    InputError
        If there is no lab data set of that name.
    """
    if name not in LAB_SETS:
        raise InputError(
            f"There is no data set {name!r}; the lab has {', '.join(LAB_SETS)}.{did_you_mean(name, LAB_SETS)}"
        )
    return LAB_SETS[name]


def reword_scene(example: Example) -> Example:
    """The same lab scene with its caption in other words and the same phrases: what the paraphrase floor is measured with."""
    text, spans = reworded(example.text, [(one.start, one.end) for one in example.phrases])
    moved = zip(example.phrases, spans, strict=True)
    phrases = tuple(replace(one, start=start, end=end) for one, (start, end) in moved)
    return Example(f"{example.name} reworded", example.image, text, phrases)
