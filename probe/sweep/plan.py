"""What a sweep is told: one frozen plan, checked when it is made, the same in Python, in a YAML file and at the shell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from probe.errors import InputError, did_you_mean
from probe.settings_files import read_settings

if TYPE_CHECKING:
    from probe.sweep.ablations import Ablation

__all__ = ["KINDS", "MAY_CHANGE", "SweepPlan", "parse_numbers", "read_plan"]

#: What can be taken away, one after another: every head, every layer, what some positions see of others in a layer, and what they
#: see through a single head.
KINDS = ("heads", "layers", "edges", "head edges")

#: How the work is done, which changes no result beyond rounding: a sweep may go on with other values.
MAY_CHANGE = ("batch", "device")

#: Names separated by commas, or a list of them; numbers and ranges such as "0-7, 12".
Words = str | int | list[str | int]

_LISTS = ("kinds", "how", "edges", "effects", "layers", "heads")


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep: ablations of one model, each over every example of a data set.

    >>> SweepPlan(model="lab/llava", data="lab", limit=100, kinds="heads", layers="0-3", how="zero, mean")

    Lists are kept as text in a fixed spelling, so that two plans that ask for the same are equal.

    Parameters
    ----------
    model
        "lab/..." for a model that ships with the package, a hub name, or a local folder.
    data
        A lab data set, a folder, or a folder with its format before it, as for probe score.
    limit
        At most so many examples.
    seed
        Of lab scenes.
    prompt
        What the captions of the data answer.
    dtype
        Number type of the model; "auto" takes the checkpoint's own.
    kinds
        What is taken away: heads, layers, edges (what some positions see of others, in a whole layer) or head edges (through
        one head); several with commas between them.
    layers
        Numbers and ranges such as "0-7, 12", or "all".
    heads
        The same, of heads and head edges.
    how
        What stands in the place of heads and layers: zero, mean, uniform or other image; several with commas between them.
    edges
        Who may no longer look at what, for edges and head edges: such as "answer to image, text to image".
    effects
        What is measured of each phrase: log_probability, caption_log_probability, exact_match, pointing, auroc.
    reference
        Data set whose heads' means and pictures replace others, for how=mean and how=other image; by default the sweep's own.
    reference_limit
        How many of its examples.
    chunk
        Examples that are computed and stored together; after a kill at most so many are computed again.
    batch
        Ablations that are computed at a time; halved by itself where memory is short.
    device
        Such as "cuda"; by default a GPU if there is one.

    Raises
    ------
    InputError
        If a value is impossible, a name unknown, or two contradict each other.
    """

    model: str = "lab/llava"
    data: str = "lab"
    limit: int | None = None
    seed: int = 0
    prompt: str = "Describe the image."
    dtype: str = "auto"
    kinds: Words = "heads"
    layers: Words = "all"
    heads: Words = "all"
    how: Words = "zero"
    edges: Words = ""
    effects: Words = "log_probability, caption_log_probability"
    reference: str | None = None
    reference_limit: int = 32
    chunk: int = 8
    batch: int = 16
    device: str | None = None

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _spelled(name, getattr(self, name)))
        for name in ("model", "data", "prompt"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{name} must be a text that is not empty, found {value!r}.")
        for name, low in (("limit", 1), ("seed", 0), ("reference_limit", 1), ("chunk", 1), ("batch", 1)):
            value = getattr(self, name)
            if name == "limit" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise InputError(f"{name} must be a whole number of {low} or more, found {value!r}.")
        for name in ("layers", "heads"):
            parse_numbers(name, getattr(self, name))
        self._require_names()

    def _require_names(self) -> None:
        from probe.capture.ablation import WAYS
        from probe.capture.edges import EDGES
        from probe.sweep.engine import EFFECTS

        for name, known in (("kinds", KINDS), ("how", WAYS), ("edges", EDGES), ("effects", EFFECTS)):
            for one in self.names(name):
                if one not in known:
                    raise InputError(
                        f"{name}: there is no {one!r}; there are {', '.join(known)}.{did_you_mean(one, known)}"
                    )
        for name in ("kinds", "effects"):
            if not self.names(name):
                raise InputError(f"{name} is empty; name at least one.")
        cut = [one for one in self.names("kinds") if "edges" in one]
        if bool(cut) != bool(self.names("edges")):
            raise InputError(
                f"kinds={self.kinds!r} needs edges, such as 'answer to image'."
                if cut
                else f"edges={self.edges!r} is for kinds 'edges' or 'head edges', found kinds={self.kinds!r}."
            )
        if len(cut) < len(self.names("kinds")) and not self.names("how"):
            raise InputError("how is empty; say what stands in the place of heads and layers, such as 'zero'.")
        if self.reference is not None and not {"mean", "other image"} & set(self.names("how")):
            raise InputError(f"reference is for how=mean and how=other image, found how={self.how!r}.")

    def names(self, field: str) -> list[str]:
        """The single names in one of the fields that are lists."""
        return [one.strip() for one in str(getattr(self, field)).split(",") if one.strip()]

    def numbers(self, *, layers: int, heads: int) -> tuple[list[int], list[int]]:
        """The numbers of the layers and of the heads, in a model of so many.

        Raises
        ------
        InputError
            If the model has none of that number.
        """
        found = []
        for name, count in (("layers", layers), ("heads", heads)):
            numbers = parse_numbers(name, getattr(self, name))
            numbers = list(range(count)) if numbers is None else numbers
            if numbers[-1] >= count:
                raise InputError(
                    f"{name}={getattr(self, name)!r} asks for {numbers[-1]}: {self.model} has {name} 0 to {count - 1}."
                )
            found.append(numbers)
        return found[0], found[1]

    def ablations(self, *, layers: int, heads: int) -> list[Ablation]:
        """Every ablation, in the order of the table, in a model of so many layers and heads.

        Raises
        ------
        InputError
            If the model has no layer or head of a number that is asked for.
        """
        from probe.sweep.ablations import CUT, Ablation

        some_layers, some_heads = self.numbers(layers=layers, heads=heads)
        found = []
        for kind in self.names("kinds"):
            single: Sequence[int | None] = some_heads if "head" in kind else [None]
            if "edges" in kind:
                ways: list[dict[str, Any]] = [
                    {"kind": "edge", "edge": edge, "how": CUT} for edge in self.names("edges")
                ]
            else:
                ways = [{"kind": kind.removesuffix("s"), "how": how} for how in self.names("how")]
            found += [
                Ablation(layer=layer, head=head, **way) for way in ways for layer in some_layers for head in single
            ]
        return found

    def columns(self) -> list[str]:
        """The columns of the table, in order; ``position`` is the example's number in the data, ``error`` why it has no values."""
        found = ["example", "image", "phrase", "start", "end", "kind", "layer", "head", "edge", "how", "resumed"]
        for effect in self.names("effects"):
            found += [effect, f"{effect}_change"] if "log_probability" in effect else [effect]
        return ["position", *found, "error"]

    def identity(self) -> dict[str, Any]:
        """What tells this plan from another."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}

    def to_yaml(self) -> str:
        """The plan as a YAML file, which ``read_plan`` gives back."""
        import yaml

        return str(yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True))


def read_plan(path: str | os.PathLike[str]) -> SweepPlan:
    """The plan in a YAML file.

    Raises
    ------
    FileError
        If it cannot be read, or is no YAML file of settings.
    InputError
        If a setting does not exist, or its value is impossible.
    """
    settings = read_settings(path)
    known = [one.name for one in fields(SweepPlan)]
    for name in settings:
        if name not in known:
            raise InputError(f"{path} has a setting {name!r}, which does not exist.{did_you_mean(str(name), known)}")
    try:
        return SweepPlan(**settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_numbers(name: str, text: Words) -> list[int] | None:
    """The numbers that a text such as "0-7, 12" names, in order; ``None`` for "all".

    Raises
    ------
    InputError
        If it names none, one twice, or is no list of numbers and ranges.
    """
    if str(text).strip() == "all":
        return None
    found: list[int] = []
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise InputError(
                f"{name}={text!r}: {part.strip()!r} is no number or range; write such as '0-7, 12', or 'all'."
            )
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise InputError(f"{name}={text!r} names {next(one for one in found if found.count(one) > 1)} twice.")
    return sorted(found)


def _spelled(name: str, value: Any) -> str:
    """A list of names or numbers in the one spelling that a plan keeps."""
    parts: Iterable[Any] = [value] if isinstance(value, (str, int)) else value
    if not isinstance(value, (str, int, list, tuple)) or any(
        not isinstance(one, (str, int)) or isinstance(one, bool) for one in parts
    ):
        raise InputError(f"{name} takes names or numbers with commas between them, found {value!r}.")
    words = [" ".join(word.split()) for one in parts for word in str(one).split(",")]
    if name in ("layers", "heads"):
        numbers = parse_numbers(name, ", ".join(words))
        return "all" if numbers is None else _ranges(numbers)
    return ", ".join(dict.fromkeys(word for word in words if word))


def _ranges(numbers: list[int]) -> str:
    """Numbers in rising order as text: [0, 1, 2, 5] is "0-2, 5"."""
    runs: list[list[int]] = []
    for one in numbers:
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
