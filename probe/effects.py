"""What taking heads away changes: the words' probabilities and where the remaining heads look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from probe.analysis.metrics import score
from probe.analysis.stats import PoissonBootstrap
from probe.analysis.targets import Target
from probe.attention import AttentionRecord
from probe.capture.ablation import HeadMeans, ablate
from probe.capture.passes import inputs_with_answer
from probe.capture.recorder import Recorder
from probe.errors import InputError
from probe.images import read_image
from probe.models import Subject

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.examples import Example

__all__ = ["EFFECTS", "ablation_effects"]

#: What is measured for each phrase, with and without the heads: its natural log-probability given everything before it, and
#: whether the best patch of the subtracted mean map (Eq. 3) lies in its mask.
EFFECTS = ("log-probability", "pointing")


def ablation_effects(
    subject: Subject,
    examples: Iterable[Example],
    ablations: Mapping[str, Sequence[tuple[int, int]]],
    *,
    how: Literal["zero", "mean", "uniform"] = "zero",
    reference: HeadMeans | None = None,
    prompt: str = "Describe the image.",
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """A table with one row for each ablation and effect: the mean change over phrases with its interval over images.

    >>> ablation_effects(subject, examples, {"best head": [(1, 4)], "layer 2": [(2, head) for head in range(8)]})

    Columns: ablation, heads (how many), how, effect, before, change, low, high, images, phrases. Each example is read whole, once
    as it is and once for each ablation, so that changes are paired; ``low`` and ``high`` are the 95 % interval of the change.

    Parameters
    ----------
    ablations : name -> (layer, head) of each head that is taken away together.
    how, reference : see ``probe.ablate``.

    Raises
    ------
    InputError
        If there is no example or no ablation, or as ``probe.ablate`` does.
    """
    import pandas as pd

    if not ablations:
        raise InputError("There is nothing to take away: give at least one ablation, name -> [(layer, head), ...].")
    bootstrap = PoissonBootstrap(cells=(1 + len(ablations)) * len(EFFECTS), replicates=replicates, seed=seed)
    index = -1
    for index, example in enumerate(examples):
        clean = _phrase_values(subject, example, prompt, nullcontext())
        rows = [clean]
        for heads in ablations.values():
            missing = ablate(subject, heads=heads, how=how, reference=reference)
            rows.append(_phrase_values(subject, example, prompt, missing) - clean)
        cells = np.stack(rows)  # (1 + ablation, effect, phrase)
        known = np.isfinite(cells)
        bootstrap.add(index, np.where(known, cells, 0).sum(-1).ravel(), known.sum(-1).ravel())
    if index < 0:
        raise InputError("There is no example to read: the data set is empty.")
    found = bootstrap.intervals()
    table = []
    for number, (name, heads) in enumerate(ablations.items(), start=1):
        for place, effect in enumerate(EFFECTS):
            before, change = found[place], found[number * len(EFFECTS) + place]
            counts = {"images": change.images, "phrases": change.phrases}
            row = {"ablation": name, "heads": len(heads), "how": how, "effect": effect, "before": before.value}
            table.append(row | {"change": change.value, "low": change.low, "high": change.high} | counts)
    return pd.DataFrame(table)


def _phrase_values(subject: Subject, example: Example, prompt: str, context: Any) -> np.ndarray:
    """(effect, phrase) values of one example read inside a context."""
    picture = read_image(example.image)
    inputs, start = inputs_with_answer(subject, picture, prompt, example.text)
    recorder = Recorder(subject.model, subject.processor, answer_start=start)
    with torch.inference_mode(), context, recorder:
        logits = subject.model(**inputs, use_cache=False).logits
    record = recorder.result(image=picture)
    spans = [(one.start, one.end) for one in example.phrases]
    chances = torch.log_softmax(logits[0, start - 1 : -1].double(), dim=-1)
    taken = chances.gather(1, inputs["input_ids"][0, start:, None])[:, 0].cpu()
    return np.stack([_sums(record, taken, spans), _pointing(record, example)])


def _sums(record: AttentionRecord, taken: torch.Tensor, spans: list[tuple[int, int]]) -> np.ndarray:
    """(phrase,) sum of the tokens' log-probabilities."""
    return np.array([float(taken[list(record.tokens_of(*span))].sum()) for span in spans])


def _pointing(record: AttentionRecord, example: Example) -> np.ndarray:
    """(phrase,) pointing accuracy of the map of all heads minus its mean over the answer."""
    whole = record.minus_mean().mean("layer", "head").layers[0].values[0, 0]
    spans = [(one.start, one.end) for one in example.phrases]
    maps = torch.stack([whole[list(record.tokens_of(*span))].mean(0) for span in spans])
    target = Target.from_masks(record.layers[0].grid, np.stack([one.mask for one in example.phrases]))
    return score(["pointing"], maps.cpu(), target)["pointing"].numpy()
