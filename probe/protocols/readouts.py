"""Stage 2: saved maps become masks and predictions; no model is run, and what was made once is read again."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from probe.errors import FileError, InputError, did_you_mean
from probe.evaluation.examples import Example
from probe.evaluation.predictions import Prediction, read_predictions, write_predictions
from probe.evaluation.truths import Truth, encode_example
from probe.grounding.choices import Combine, PointKind, Reduction
from probe.grounding.refiners import EncodedImage, Refiner, find_refiner, require_one_of
from probe.images import read_image
from probe.ordinary_files import require_file
from probe.protocols.identity import weights_digest
from probe.protocols.maps import MapStore
from probe.protocols.plans import EvaluationPlan, Protocol, ReadOut
from probe.protocols.predictors import Predictor
from probe.writing import write_beside

__all__ = ["Predicted", "Refiners", "predict_examples", "read_outs"]

#: Examples whose predictions are kept in one file: what an interruption loses at most.
PART = 50
VARIED: dict[str, tuple[str, ...]] = {
    "combine": get_args(Combine),
    "reduction": get_args(Reduction),
    "point": get_args(PointKind),
    "refiner": (),
}


def read_outs(plan: EvaluationPlan, vary: Sequence[str]) -> list[ReadOut]:
    """The plan's own read-out, or every combination of ``["combine=mean,first", "refiner=threshold,superpixels"]``.

    Raises
    ------
    InputError
        If something is varied that is no part of a read-out, twice, or has no such value.
    """
    own = ReadOut(plan.combine, plan.reduction, plan.point, plan.refiner)
    given: dict[str, list[str]] = {}
    for one in vary:
        name, _, values = one.partition("=")
        if name not in VARIED or not values:
            raise InputError(
                f"--vary takes NAME=VALUE,VALUE with a name of {', '.join(VARIED)}, found {one!r}.{did_you_mean(name, VARIED)}"
            )
        if name in given:
            raise InputError(f"--vary names {name} twice; give all its values at once, with commas between them.")
        given[name] = list(dict.fromkeys(filter(None, (part.strip() for part in values.split(",")))))
        for value in given[name]:
            if VARIED[name]:
                require_one_of(name, value, VARIED[name])
    choices: list[dict[str, Any]] = [
        dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())
    ]
    return [replace(own, **one) for one in choices]


class _Remembered:
    """A refiner that sees each picture once, however many read-outs ask about it."""

    def __init__(self, refiner: Refiner) -> None:
        self.refiner, self.name = refiner, refiner.name
        self._seen: EncodedImage | None = None

    def encode(self, image: Image.Image) -> EncodedImage:
        if self._seen is None:
            self._seen = self.refiner.encode(image)
        return self._seen

    def forget(self) -> None:
        """The next picture is another one."""
        self._seen = None


class Refiners:
    """The refiners of several read-outs, each found once.

    Raises
    ------
    InputError, ModelError
        As ``find_refiner`` does.
    """

    def __init__(self, read: Iterable[ReadOut], *, device: str | None = None) -> None:
        self._by_name = {
            one: _Remembered(find_refiner(one, device=device)) for one in dict.fromkeys(r.refiner for r in read)
        }

    def __getitem__(self, name: str) -> _Remembered:
        return self._by_name[name]

    def forget(self) -> None:
        """The next picture is another one, for all of them."""
        for one in self._by_name.values():
            one.forget()

    def identity(self, name: str) -> dict[str, str]:
        """Its name with its settings, and a hash of its weights where it has any."""
        one = self._by_name[name].refiner
        model = getattr(one, "model", None)
        return {"refiner": one.name, "refiner's weights": weights_digest(model) if model is not None else ""}


@dataclass
class Predicted:
    """All truths, each read-out's predictions, and why examples have none, by name."""

    truths: list[Truth] = field(default_factory=list)
    predictions: dict[ReadOut, list[Prediction]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def predict_examples(
    examples: Iterable[Example],
    store: MapStore,
    read: Sequence[ReadOut],
    refiners: Refiners,
    *,
    protocol: Protocol,
    plan: EvaluationPlan,
    folder: Path,
    advance: Callable[[int], object] = lambda done: None,
) -> Predicted:
    """What the saved maps predict, for each read-out; parts that ``folder`` holds already are read from there.

    Raises
    ------
    FileError
        If a map is missing or broken, or a part cannot be written.
    """
    caches = {one: _Cache(folder, _identity(one, refiners, store, protocol)) for one in read}
    makers = {one: Predictor(protocol, plan, one, refiners[one.refiner]) for one in read}
    found = Predicted(predictions={one: [] for one in read})
    index = 0
    remaining = iter(examples)
    while part := [(encode_example(one), one.image) for one in itertools.islice(remaining, PART)]:
        answered = []
        for number, (truth, image) in enumerate(part, start=index):
            found.truths.append(truth)
            count = len(truth.phrases) if protocol.name == "res" else 1
            reasons = [reason for place in range(count) if (reason := store.failure(number, place))]
            if reasons:
                found.failures[truth.name] = reasons[0]
            if len(reasons) < count:
                answered.append((number, count, truth, image))
        kept = {one: caches[one].read(index, [truth.name for _, _, truth, _ in answered]) for one in read}
        missing = [one for one in read if kept[one] is None]
        made: dict[ReadOut, list[Prediction]] = {one: [] for one in missing}
        for number, count, truth, image in answered if missing else ():
            refiners.forget()
            records, picture = [store.read(number, place) for place in range(count)], read_image(image)
            for one in missing:
                made[one].append(makers[one].predict(truth, picture, records))
        for one in missing:
            caches[one].write(index, made[one])
        for one in read:
            found.predictions[one] += made.get(one) or kept[one] or []
        index += len(part)
        advance(index)
    return found


def _identity(read: ReadOut, refiners: Refiners, store: MapStore, protocol: Protocol) -> dict[str, Any]:
    """What a read-out's predictions depend on."""
    own = {"chunker": protocol.chunker} if protocol.name in ("gcg", "pacc") else {}
    return asdict(read) | refiners.identity(read.refiner) | own | {"maps": store.common}


class _Cache:
    """The predictions of one read-out, in parts of ``PART`` examples."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        text = json.dumps(identity, indent=2, sort_keys=True)
        words = (identity["refiner"], identity["combine"], identity["reduction"], identity["point"])
        name = re.sub(r"[^a-z0-9]+", "-", " ".join(words).casefold()).strip("-")[:80]
        self.folder = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._settings = text + "\n"

    def read(self, index: int, names: Sequence[str]) -> list[Prediction] | None:
        """The predictions of these examples, or None where the part is not there, broken or of others."""
        path = self._part(index)
        try:
            require_file(path)
            # A changed digit would still be a prediction, so that the bytes are compared before they are read.
            if path.with_suffix(".sha256").read_text(encoding="ascii") != _digest(path):
                return None
            found = list(read_predictions(path))
        except (FileError, InputError, OSError, ValueError):
            return None
        return found if [one.name for one in found] == list(names) else None

    def write(self, index: int, predictions: Sequence[Prediction]) -> None:
        """Nothing; the part is then there."""
        write_beside(self.folder / "settings.json", lambda beside: beside.write_text(self._settings, encoding="utf-8"))
        path = self._part(index)
        write_predictions(path, predictions)
        text = _digest(path)
        write_beside(path.with_suffix(".sha256"), lambda beside: beside.write_text(text, encoding="ascii"))

    def _part(self, index: int) -> Path:
        return self.folder / f"{index:06d}.jsonl"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
