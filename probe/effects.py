"""What taking heads away changes: the words' probabilities, and where the heads of later layers look."""

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
from probe.capture.ablation import HeadMeans, ablate, check_heads
from probe.capture.passes import inputs_with_answer
from probe.capture.recorder import Recorder
from probe.errors import InputError
from probe.images import read_image
from probe.models import Subject
from probe.text import shorten

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.examples import Example

__all__ = ["EFFECTS", "ablation_effects", "removal_curves"]

#: What is measured for each phrase, with and without the heads: its natural log-probability given everything before it, and
#: whether the best patch of the map of all layers and heads minus its mean (Eq. 3) lies in its mask. That map counts where the
#: silenced heads look too, so it changes only through the layers after them: no ablation of the last layer can change it.
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
    For heads that were chosen by their score, give other examples than those that they were chosen on.

    Parameters
    ----------
    ablations : name -> (layer, head) of each head that is taken away together.
    how, reference : see ``probe.ablate``.

    Raises
    ------
    InputError
        If there is no ablation, no example with a phrase, an example's text does not survive the tokenizer, or as ``probe.ablate``
        does; every list of heads is looked at before the first example is read.
    """
    import pandas as pd

    plan = _plan(subject, ablations)
    bootstrap = PoissonBootstrap(cells=(1 + len(plan)) * len(EFFECTS), replicates=replicates, seed=seed)
    images = 0
    for index, example in enumerate(examples):
        if not example.phrases:
            continue
        images += 1
        clean = _phrase_values(subject, example, prompt, nullcontext())
        rows = [clean]
        for heads in plan.values():
            missing = ablate(subject, heads=heads, how=how, reference=reference)
            rows.append(_phrase_values(subject, example, prompt, missing) - clean)
        cells = np.stack(rows)  # (1 + ablation, effect, phrase)
        known = np.isfinite(cells)
        bootstrap.add(index, np.where(known, cells, 0).sum(-1).ravel(), known.sum(-1).ravel())
    if not images:
        raise InputError("There is no example to read: the data set is empty, or none of its examples has a phrase.")
    found = bootstrap.intervals()
    table = []
    for number, (name, heads) in enumerate(plan.items(), start=1):
        for place, effect in enumerate(EFFECTS):
            before, change = found[place], found[number * len(EFFECTS) + place]
            counts = {"images": change.images, "phrases": change.phrases}
            row = {"ablation": name, "heads": len(heads), "how": how, "effect": effect, "before": before.value}
            table.append(row | {"change": change.value, "low": change.low, "high": change.high} | counts)
    return pd.DataFrame(table)


def removal_curves(
    subject: Subject,
    examples: Iterable[Example],
    orders: Mapping[str, Sequence[tuple[int, int]]],
    *,
    counts: Sequence[int] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """A table with one row for each order, number of heads and effect: what losing the first so many heads of an order changes.

    >>> removal_curves(subject, examples, {"best first": best, "worst first": best[::-1]}, counts=(1, 2, 4, 8), how="mean")

    Columns: order, then those of ``ablation_effects``; none of an order taken away is a change of 0 and has no row.

    Parameters
    ----------
    orders : name -> (layer, head) in the order in which they go. For heads in the order of a score, give other examples than those
        that they were scored on.
    counts : how many heads are taken away together; by default every number up to the longest order.
    options : as for ``ablation_effects``.

    Raises
    ------
    InputError
        If there is no order, one is shorter than a count, or as ``ablation_effects`` does.
    """
    if isinstance(orders, Mapping):
        orders = {name: list(heads) for name, heads in orders.items()}
    _plan(subject, orders)  # it sorts the heads, so that it is here for its look at every one of them alone
    wanted = tuple(range(1, max(map(len, orders.values())) + 1)) if counts is None else tuple(dict.fromkeys(counts))
    if not wanted or min(wanted) < 1:
        raise InputError(f"counts are numbers of heads, 1 or more; found {list(wanted)}.")
    cells: dict[str, Sequence[tuple[int, int]]] = {}
    names = {}
    for name, heads in orders.items():
        for number in wanted:
            if number > len(heads):
                raise InputError(f"Order {name!r} has {len(heads)} heads, and {number} are to be taken away.")
            cell = f"{name}, {number}"
            cells[cell], names[cell] = heads[:number], name
    table = ablation_effects(subject, examples, cells, **options)
    table.insert(0, "order", table["ablation"].map(names))
    return table.drop(columns="ablation")


def _plan(subject: Subject, ablations: Any) -> dict[str, tuple[tuple[int, int], ...]]:
    """Name -> heads of each ablation, all of them checked, and lists that could be read once only kept."""
    if not isinstance(ablations, Mapping):
        raise InputError(
            f"ablations={shorten(repr(ablations), 70)} has no names; give name -> [(layer, head), ...] for each ablation."
        )
    if not ablations:
        raise InputError("There is nothing to take away: give at least one ablation, name -> [(layer, head), ...].")
    plan = {}
    for name, heads in ablations.items():
        try:
            plan[name] = check_heads(subject, heads)
        except InputError as error:
            raise InputError(f"Ablation {name!r}: {error}") from None
    return plan


def _phrase_values(subject: Subject, example: Example, prompt: str, context: Any) -> np.ndarray:
    """(effect, phrase) values of one example read inside a context."""
    picture = read_image(example.image)
    inputs, start = inputs_with_answer(subject, picture, prompt, example.text)
    recorder = Recorder(subject.model, subject.processor, answer_start=start)
    with torch.inference_mode(), context, recorder:
        logits = subject.model(**inputs, use_cache=False).logits
    record = recorder.result(image=picture)
    if record.text != example.text.strip():
        raise InputError(
            f"{example.name}: the tokenizer gives the text back as {record.text!r} instead of {example.text!r}, so the phrases' "
            "places in it are lost."
        )
    cut = len(example.text) - len(example.text.lstrip())
    spans = [(one.start - cut, one.end - cut) for one in example.phrases]
    chances = torch.log_softmax(logits[0, start - 1 : -1].double(), dim=-1)
    taken = chances.gather(1, inputs["input_ids"][0, start:, None])[:, 0].cpu()
    masks = np.stack([one.mask for one in example.phrases])
    return np.stack([_sums(record, taken, spans), _pointing(record, masks, spans)])


def _sums(record: AttentionRecord, taken: torch.Tensor, spans: list[tuple[int, int]]) -> np.ndarray:
    """(phrase,) sum of the tokens' log-probabilities."""
    return np.array([float(taken[list(record.tokens_of(*span))].sum()) for span in spans])


def _pointing(record: AttentionRecord, masks: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """(phrase,) pointing accuracy of the map of all heads minus its mean over the answer."""
    whole = record.minus_mean().mean("layer", "head").layers[0].values[0, 0]
    maps = torch.stack([whole[list(record.tokens_of(*span))].mean(0) for span in spans])
    target = Target.from_masks(record.layers[0].grid, masks)
    return score(["pointing"], maps.cpu(), target)["pointing"].numpy()
