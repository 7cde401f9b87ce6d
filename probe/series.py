"""Comparisons along an axis: how much noise there is, which draw of it, or how long the models have been trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.comparing import compare_examples
from probe.errors import InputError, ModelError
from probe.lab.storage import MODELS, TWIN_TABLES, TWINS
from probe.seeds import seed_of

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.examples import Example
    from probe.models import Subject

__all__ = ["TRAINING", "noise_series", "training_series"]

#: Beside the weights of a lab model: what it was measured to be while it was trained. That of the twins is of all seeds.
TRAINING = "training.csv"


def noise_series(
    subjects: Sequence[Subject],
    examples: Iterable[Example],
    *,
    over: Literal["timestep", "draw"],
    values: Sequence[int],
    on_value: Callable[[int], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Readings and paired differences at each timestep or draw of the noise, of the same images at each.

    Columns: over, at, then those of ``Comparison.to_frame``, of its kinds "reading" and "difference". Models without a diffusion
    encoder are the same at every value; a DiffLMM is read away from the timestep that it was trained at, which it never met.

    Parameters
    ----------
    over : "timestep", numbers of the scheduler; or "draw", of which each has noise of its own, at the timestep as it is.
    values : which; at least one, none twice.
    on_value : called with the number of values done, to show progress.
    options : as for ``probe.comparing.compare_examples``, less its timesteps.

    Raises
    ------
    InputError
        If none of the models has noise, a value is negative or given twice, or as ``compare_examples`` does.
    ModelError
        If a timestep lies outside a schedule.
    """
    import pandas as pd

    if not any(has_noise(one) for one in subjects):
        raise InputError(f"None of these models puts noise on the image, so nothing changes over {over}s.")
    if not values or len(set(values)) < len(values) or min(values) < 0:
        raise InputError(f"{over}s must be different numbers of 0 or more, found {list(values)}.")
    kept, frames = list(examples), []
    for number, value in enumerate(values, start=1):
        with ExitStack() as stack:
            for one in subjects:
                stack.enter_context(_at(one, over, value))
            moved = {"timesteps": (value,)} if over == "timestep" else {"noise_seed": value}
            found = compare_examples(subjects, kept, **moved, **options).to_frame()
        frames.append(found[found["kind"].isin(["reading", "difference"])].assign(over=over, at=value))
        if on_value is not None:
            on_value(number)
    table = pd.concat(frames, ignore_index=True)
    return table[["over", "at", *(one for one in table.columns if one not in ("over", "at"))]]


def has_noise(subject: Subject) -> bool:
    """True if the model puts noise on the image before it looks at it."""
    return subject.family.kind == "diffusion" or hasattr(getattr(subject.model, "config", None), "diffusion_config")


@contextmanager
def _at(subject: Subject, over: str, value: int) -> Iterator[None]:
    """A DiffLMM with that timestep or draw, as it was afterwards; a pipeline is told with each image."""
    settings = getattr(getattr(subject.model, "config", None), "diffusion_config", None)
    if settings is None:
        yield
        return
    name = "timestep" if over == "timestep" else "first_draw"
    before = getattr(settings, name)
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, before)


def training_series(names: Sequence[str]) -> pd.DataFrame:
    """What these models were measured to be while they were trained, for every seed that is known.

    Columns: system, seed, step, images, phrases, and for each name in ``probe.measurements.MEASURED`` its value, _low and _high.

    Parameters
    ----------
    names : of lab models that describe scenes, or folders that ``probe lab train`` wrote.

    Raises
    ------
    InputError
        If a model has no such table.
    ModelError
        If a table is none.
    """
    import pandas as pd

    return pd.concat([_training_of(name) for name in names], ignore_index=True)


def _training_of(name: str) -> pd.DataFrame:
    import pandas as pd

    place = TWIN_TABLES / TRAINING if name in TWINS else MODELS.get(name, Path(name)) / TRAINING
    if not place.is_file():
        raise InputError(
            f"{name!r} has no measurements of its training ({place} is missing); give models that describe scenes and that "
            "`probe lab train` made."
        )
    try:
        table = pd.read_csv(place)
        if name in TWINS:
            table = table[table["arm"] == TWINS[name]].drop(columns="arm")
        if "seed" not in table:
            table.insert(0, "seed", seed_of(name))
        table.insert(0, "system", name)
        return table
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{place} is no table of a training ({error}); train again, or install the package again."
        ) from error
