"""What a training will be, before anything is loaded: records checked, a table of what is trained, the number of steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probe.errors import InputError
from probe.training.assembly import read_parts
from probe.training.batches import check_lengths
from probe.training.blueprints import Blueprint, draw_up
from probe.training.conversations import BadRecords, Conversation, read_conversations
from probe.training.plans import Kind, TrainingPlan
from probe.training.stages import ModuleRow, prepare
from probe.training.texts import Encoder

__all__ = ["Outlook", "Tracked", "look_ahead", "processes"]

#: Passes items through and shows how far it is: given what is done, and the items.
Tracked = Callable[[str, list[Any]], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Outlook:
    """A training that could start.

    Attributes
    ----------
    conversations : the records that are trained on, in the order of the file.
    left_out : reason -> names of the records that are not.
    longer : how many records are longer than ``max_length``; ``None`` where no tokenizer was there to tell.
    steps, accumulation, processes : how often weights change, from how many batches of each process, on how many processes.
    table : what is trained.
    data_sha256 : of the file of records.
    """

    kind: Kind
    plan: TrainingPlan
    blueprint: Blueprint
    conversations: list[Conversation]
    left_out: dict[str, list[str]]
    longer: int | None
    steps: int
    accumulation: int
    processes: int
    table: list[ModuleRow]
    data_sha256: str

    def encoder(self) -> Encoder:
        """What makes token ids of the conversations."""
        return Encoder(self.blueprint.processor, prompt=self.plan.prompt, max_length=self.plan.max_length)

    def data(self) -> dict[str, Any]:
        """The same in plain types, without the records."""
        return {
            "model": self.kind,
            "stage": self.plan.stage,
            "records": len(self.conversations),
            "with_image": sum(one.image is not None for one in self.conversations),
            "left_out": {reason: len(names) for reason, names in self.left_out.items()},
            "longer_than_max_length": self.longer,
            "steps": self.steps,
            "batch_size": self.plan.batch_size,
            "device_batch_size": self.plan.device_batch_size,
            "accumulation": self.accumulation,
            "processes": self.processes,
            "rounds": self.steps * self.plan.batch_size / len(self.conversations),
            "trainable": [asdict(row) for row in self.table],
        }


def look_ahead(
    kind: Kind, plan: TrainingPlan, *, offline: bool = False, tracked: Tracked = lambda _, items: items
) -> Outlook:
    """Everything that can be known of a training without its weights; every record is checked.

    Parameters
    ----------
    offline : take nothing from the network; lengths are then not checked if the tokenizer is not on this machine.
    tracked : shows how far the two passes over all records are.

    Raises
    ------
    InputError
        If the plan contradicts itself, or records cannot be used and are not to be skipped: counted and named.
    FileError
        If the file of records cannot be read.
    ModelError
        If a part of the model cannot be had.
    """
    plan.require_kind(kind)
    together = processes()
    accumulation = plan.accumulation(together)
    found, bad = read_conversations(
        plan.data, plan.images, prompt=plan.prompt, tracked=lambda items: tracked("checking records", items)
    )
    if plan.bad_records == "refuse" and not found:
        bad.refuse("None is left.")
    if plan.projector and not offline:
        read_parts(plan.projector)  # said before anything large is loaded
    blueprint = draw_up(kind, plan, offline=offline)
    longer: int | None = None
    names: list[str] = []
    if blueprint.processor is not None and found:
        encoder = Encoder(blueprint.processor, prompt=plan.prompt, max_length=plan.max_length)
        found, names = check_lengths(
            found,
            encoder,
            bad,
            long_texts=plan.long_texts,
            tracked=lambda items: tracked("checking lengths", list(items)),
        )
        longer = len(names)
    _decide(plan, found, bad)
    skipped = (
        {f"a text of more than max_length={plan.max_length} tokens": names}
        if longer and plan.long_texts == "skip"
        else {}
    )
    return Outlook(
        kind=kind,
        plan=plan,
        blueprint=blueprint,
        conversations=found,
        left_out=bad.found | skipped,
        longer=longer,
        steps=plan.count_steps(len(found)),
        accumulation=accumulation,
        processes=together,
        table=prepare(blueprint.on_meta(), plan).table(),
        data_sha256=_digest(plan.data),
    )


def _decide(plan: TrainingPlan, found: list[Conversation], bad: BadRecords) -> None:
    """Nothing, if the training may start with what was found."""
    long = any("more than max_length" in reason for reason in bad.found)
    if plan.bad_records == "refuse":
        bad.refuse(
            "Correct them, or train without them: bad_records=skip"
            + (", and for long texts long_texts=truncate or skip." if long else ".")
        )
    elif long:
        only = BadRecords(
            bad.file, bad.total, {one: names for one, names in bad.found.items() if "more than max_length" in one}
        )
        only.refuse("Give long_texts=truncate or skip, or a larger max_length.")
    if not found:
        raise InputError(f"{plan.data!r}: none of {bad.total} records is left to train on: {bad.summary()}.")


def processes() -> int:
    """On how many processes this training runs, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
