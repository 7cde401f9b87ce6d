"""Stage 1: a model's answers about the examples and where it looked, reduced to one map a token and kept on disk.

A file stands for work that is done: it is written beside and renamed, carries the key of all that it depends on, and is read whole
before it is trusted. What is missing or broken is done again; what was made for another key is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from probe.analysis.grids import mean_of_layers
from probe.attention import AttentionRecord
from probe.errors import CertificateError, FileError, InputError, ModelError, ProbeError
from probe.evaluation.examples import Example
from probe.files import load_with_notes, save
from probe.grounding.choices import Reduction
from probe.models import Subject
from probe.ordinary_files import require_file
from probe.protocols.identity import picture_digest
from probe.protocols.plans import EvaluationPlan, Protocol, Shard
from probe.protocols.questions import Question, questions_of
from probe.runs import main_view, run, threads_for
from probe.text import shorten
from probe.writing import write_beside

__all__ = ["Failure", "MapStore", "make_maps", "reduced_record", "reduction_of"]

#: The largest file of a key or a reason that is read, in bytes.
LARGEST = 2**20
#: The number of each reduction among the heads of a reduced record: the mean of all, and the last but one of each layer.
HEADS: dict[Reduction, int] = {"all-heads": -1, "as-first-released": -2}


@dataclass(frozen=True)
class Failure:
    """Why there is no map."""

    reason: str


def reduced_record(record: AttentionRecord) -> AttentionRecord:
    """The record with its layers and heads averaged in both ways that ``attend_and_segment`` knows: one layer of two "heads".

    All tokens stay, with the mean over the whole answer. Where a layer has a single head there is no last but one, and the
    mean of all stands alone.
    """
    parts = [mean_of_layers(record.mean("timestep", "head"))]
    if all(len(one.heads) > 1 for one in record.layers):
        parts.insert(0, mean_of_layers(record.select(heads=-2).mean("timestep", "head")))
    layers = [one.layers[0] for one in parts]
    both: dict[str, Any] = {
        name: torch.cat([getattr(one, name) for one in layers], dim=1).cpu()
        for name in ("values", "token_mean", "rest")
    }
    heads = tuple(HEADS.values())[::-1] if len(parts) == 2 else (HEADS["all-heads"],)
    return replace(parts[-1], layers=(replace(layers[-1], heads=heads, **both),))


def reduction_of(record: AttentionRecord, reduction: Reduction) -> AttentionRecord:
    """The part of a reduced record that this reduction made.

    Raises
    ------
    InputError
        If it is not there, since the model has a single head.
    """
    heads = record.layers[0].heads
    if HEADS[reduction] not in heads:
        raise InputError(
            f"reduction={reduction!r} takes the last head but one of every layer, and this model has a single one."
        )
    return record.select(heads=heads.index(HEADS[reduction]))


class MapStore:
    """A folder of reduced records, one for each question about each example.

    Parameters
    ----------
    folder : the ``maps`` of an ``--out``.
    common : what all of them depend on, by name.

    Raises
    ------
    InputError
        If the folder's maps depend on something else, with the difference.
    FileError
        If its key cannot be read or written.
    """

    def __init__(self, folder: Path, common: Mapping[str, Any]) -> None:
        self.folder, self.common = folder, dict(common)
        path = folder / "key.json"
        if path.exists():
            self._require_same(_read_json(path), self.common, str(folder))
        else:
            write_beside(
                path, lambda beside: beside.write_text(json.dumps(self.common, indent=2) + "\n", encoding="utf-8")
            )

    def path(self, index: int, number: int) -> Path:
        """The file of a question about the example of this index."""
        return self.folder / f"{index:06d}-{number}.safetensors"

    def key(self, example: Example, question: Question) -> dict[str, Any]:
        """What one file depends on."""
        own = {"prompt": question.prompt, "answer": question.answer, "rows": question.query_row}
        return {"example": example.name, "picture": picture_digest(example), **own, **self.common}

    def done(self, path: Path, key: Mapping[str, Any]) -> bool:
        """True if the file, or the reason why there is none, is there, whole, and made for this key.

        Raises
        ------
        InputError
            If it was made for another key.
        """
        failed = path.with_suffix(".json")
        if failed.exists():
            try:
                if _read_json(failed).get("key") == dict(key):
                    return True
            except FileError:
                pass
            failed.unlink(missing_ok=True)  # what failed with another key may succeed with this one
        if not path.exists():
            return False
        try:
            notes = load_with_notes(path)[1]
        except FileError:
            return False
        self._require_same(notes.get("key", {}), dict(key), path.name)
        return True

    def read(self, index: int, number: int) -> AttentionRecord | Failure:
        """The reduced record, or why there is none.

        Raises
        ------
        FileError
            If neither is there, or the file is broken.
        """
        reason = self.failure(index, number)
        return Failure(reason) if reason else load_with_notes(self.path(index, number))[0]

    def failure(self, index: int, number: int) -> str:
        """Why there is no map; empty where there is one."""
        failed = self.path(index, number).with_suffix(".json")
        return str(_read_json(failed).get("reason", "")) if failed.exists() else ""

    def exists(self, index: int, number: int) -> bool:
        """True if there is a file, or a reason why there is none."""
        path = self.path(index, number)
        return path.exists() or path.with_suffix(".json").exists()

    def write(self, path: Path, key: Mapping[str, Any], found: AttentionRecord | Failure) -> None:
        """Nothing; the file is then there, or the reason beside its place."""
        if isinstance(found, Failure):
            text = json.dumps({"reason": found.reason, "key": dict(key)}, indent=2) + "\n"
            write_beside(path.with_suffix(".json"), lambda beside: beside.write_text(text, encoding="utf-8"))
        else:
            save(found, path, notes={"key": dict(key)})

    def _require_same(self, there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
        different = [one for one in dict.fromkeys([*here, *there]) if there.get(one) != here.get(one)]
        if different:
            told = ", ".join(f"{one} {_shown(there.get(one))} and not {_shown(here.get(one))}" for one in different[:4])
            raise InputError(
                f"{what} was made with {told}: give another --out, or delete {str(self.folder)!r} to start again."
            )


def _shown(value: Any) -> str:
    return repr(shorten(value, 40)) if isinstance(value, str) else repr(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        require_file(path, largest=LARGEST)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())[:100]}); delete it.") from error
    if not isinstance(found, dict):
        raise FileError(f"{str(path)!r} is no object; delete it.")
    return found


def make_maps(
    subject: Subject,
    examples: Iterable[Example],
    store: MapStore,
    *,
    protocol: Protocol,
    plan: EvaluationPlan,
    shard: Shard,
) -> list[int]:
    """For each example the number of questions about it; this shard's are then in the store.

    A picture that cannot be read or recorded is a ``Failure`` there and stops nothing; a record that does not prove itself true
    does.
    """
    counts = []
    with threads_for(subject.model):
        for index, example in enumerate(examples):
            questions = questions_of(example, protocol, plan)
            counts.append(len(questions))
            if not shard.has(index):
                continue
            for number, question in enumerate(questions):
                path = store.path(index, number)
                try:
                    key = store.key(example, question)
                except FileError as error:
                    store.write(path, {}, Failure(str(error)))
                    continue
                if not store.done(path, key):
                    store.write(path, key, _asked(subject, example, question, plan))
    return counts


def _asked(subject: Subject, example: Example, question: Question, plan: EvaluationPlan) -> AttentionRecord | Failure:
    try:
        found = run(
            subject,
            example.image,
            question.prompt,
            answer=question.answer,
            max_new_tokens=plan.max_new_tokens,
            query_row=question.query_row,
        )
        return reduced_record(main_view(found.record))
    except (ModelError, CertificateError):
        raise
    except ProbeError as error:
        return Failure(" ".join(str(error).split()))
