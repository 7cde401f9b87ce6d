"""run_sweep(): every example under every ablation, stored as it goes, from where it stopped."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import FileError, InputError
from probe.sweep.assembly import SweepEngine, identity_of, load_engine
from probe.sweep.identity import example_digest, outline_of
from probe.sweep.plan import SweepPlan, read_plan
from probe.sweep.shards import FAILED
from probe.sweep.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.examples import Example

__all__ = ["Progress", "parse_share", "run_sweep"]


@dataclass(frozen=True)
class Progress:
    """How far one process is.

    Attributes
    ----------
    done : examples behind it, those that were stored before among them.
    total : examples of the whole data; ``None`` where that is not known.
    computed : examples that it computed itself.
    seconds : that these took.
    """

    done: int
    total: int | None
    computed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Examples a second of this process; NaN before the first."""
        return self.computed / self.seconds if self.computed else float("nan")


def run_sweep(
    plan: SweepPlan | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    shard: str | None = None,
    engine: SweepEngine | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Store:
    """The store of a sweep in the folder ``out``, with every example of this process's share computed.

    >>> store = probe.run_sweep("sweep.yaml", out="runs/heads")

    What is stored already is not computed again, whatever number of processes computed it; a shard that is damaged is. An example
    that cannot be read becomes a row of kind "failed" with its reason. Where memory is short, ``batch`` is halved.

    Parameters
    ----------
    plan : a plan, or the YAML file of one.
    shard : "0/4" takes every fourth chunk of examples from the first on; by default what torchrun says, and else all.
    engine : what computes the rows, instead of the plan's own model.
    on_progress : called after each chunk.
    on_note : called with one line on whatever is worth knowing.

    Raises
    ------
    InputError
        If the plan asks for what the model has not, ``out`` holds something else, or the data changed since.
    ModelError
        If the model cannot be loaded.
    FileError
        If something cannot be read or written; what is stored stays readable, and the same call goes on.
    """
    from probe.evaluation.sources import read_data

    own = plan if isinstance(plan, SweepPlan) else read_plan(plan)
    index, processes = parse_share(shard)
    outline = outline_of(own.model)
    ablations = own.ablations(layers=outline.layers, heads=outline.heads)
    examples, total = read_data(
        own.data, limit=own.limit, seed=own.seed
    )  # an unknown name is said before a model is loaded
    working = engine or load_engine(own, outline, ablations=ablations)
    identity = identity_of(own, outline, working)
    store = Store.create(Path(out), own, identity, columns=own.columns(), ablations=len(ablations))
    work = _Work(store, working, on_note)
    done = 0
    for chunk, some in _chunks(examples, own.chunk):
        if chunk % processes == index:
            work.take(chunk, some, first=done)
        done += len(some)
        on_progress(Progress(done, total, work.computed, work.seconds))
    if not done:
        raise InputError(f"data={own.data!r} has no example; there is nothing to sweep over.")
    store.finish(done)
    for note in getattr(working, "notes", ()):
        on_note(str(note))
    return store


def parse_share(shard: str | None) -> tuple[int, int]:
    """Which process this is and of how many: from "0/4", from torchrun, or the only one.

    Raises
    ------
    InputError
        If there is no such share.
    """
    text, name = shard, "shard"
    if text is None:
        text, name = f"{os.environ.get('RANK', '0')}/{os.environ.get('WORLD_SIZE', '1')}", "RANK/WORLD_SIZE"
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(
            f"{name} is 'INDEX/COUNT' with an index from 0 to below the count, such as '0/4'; found {text!r}."
        )
    return int(match[1]), int(match[2])


def _chunks(examples: Iterable[Example], size: int) -> Iterator[tuple[int, list[Example]]]:
    """(number, examples) of one chunk after another."""
    stream = iter(examples)
    for chunk in count():
        if not (some := list(islice(stream, size))):
            return
        yield chunk, some


class _Work:
    """What one process does with a chunk."""

    def __init__(self, store: Store, engine: SweepEngine, note: Callable[[str], None]) -> None:
        self.store, self.engine, self.note = store, engine, note
        self.computed, self.seconds = 0, 0.0

    def take(self, chunk: int, examples: list[Example], *, first: int) -> None:
        """Nothing; the chunk's shard stands in the store."""
        key = self.store.chunk_key([example_digest(one) for one in examples])
        if self._stands(chunk, key):
            return
        begin = time.perf_counter()
        table = self._rows(examples, first=first)
        self.store.commit(chunk, table, key=key, examples=len(examples))
        self.computed += len(examples)
        self.seconds += time.perf_counter() - begin

    def _stands(self, chunk: int, key: str) -> bool:
        """Whether the chunk is done; what is damaged is put aside."""
        try:
            shard = self.store.find(chunk)
        except FileError as error:
            self.note(f"{error} It is computed again.")
            self.store.set_aside(chunk, key=key)
            return False
        if shard is None or shard.key == key:
            return shard is not None
        if shard.failed:
            self.note(f"chunk {chunk} had {shard.failed} examples that failed and changed since; it is computed again.")
            self.store.set_aside(chunk, key=key)
            return False
        raise InputError(
            f"{self.store.place(chunk)} was computed from other pictures, captions or masks than the data now has; give another "
            "folder for --out."
        )

    def _rows(self, examples: list[Example], *, first: int) -> pd.DataFrame:
        """The table of these examples, a row with the reason for each that cannot be read."""
        import pandas as pd

        try:
            parts = [self._placed(self._computed(examples), examples, first)]
        except (InputError, FileError):
            # One of them is at fault; alone, the others are not.
            parts = [self._alone(one, first + place) for place, one in enumerate(examples)]
        return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)[self.store.columns]

    def _alone(self, example: Example, position: int) -> pd.DataFrame:
        import pandas as pd

        try:
            return self._placed(self._computed([example]), [example], position)
        except (InputError, FileError) as error:
            reason = " ".join(str(error).split())
            self.note(f"{example.name} failed: {reason}")
            image = str(example.image) if isinstance(example.image, Path) else ""
            row = {"position": position, "example": example.name, "image": image, "kind": FAILED, "error": reason}
            row |= dict.fromkeys(("phrase", "edge", "how"), "")
            return pd.DataFrame([row], columns=self.store.columns).astype({"position": "int64"})

    def _placed(self, table: pd.DataFrame, examples: Sequence[Example], first: int) -> pd.DataFrame:
        """The engine's table with each example's number in the data, and no error."""
        numbers = {one.name: first + place for place, one in enumerate(examples)}
        if len(numbers) < len(examples):
            raise InputError("Two examples of one chunk have the same name; names must be unique in a data set.")
        positions = table["example"].map(numbers)
        if positions.isna().any():
            raise InputError(
                f"The engine gave rows of {table['example'][positions.isna()].iloc[0]!r}, which it was not given."
            )
        return table.assign(position=positions.astype("int64"), error="")[
            ["position", *[one for one in table.columns if one not in ("position", "error")], "error"]
        ]

    def _computed(self, examples: list[Example]) -> pd.DataFrame:
        """The engine's table, from smaller batches where memory does not suffice."""
        while True:
            try:
                return self.engine(examples)
            except Exception as error:
                if not _is_out_of_memory(error) or self.engine.batch <= 1:
                    raise
            # Outside of the except clause, so that what its traceback holds is free again.
            self.engine.batch //= 2
            _release_memory()
            self.note(f"memory did not suffice; from here on {self.engine.batch} ablations at a time")


def _is_out_of_memory(error: Exception) -> bool:
    # By name, so that torch need not be loaded for an engine without it.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _release_memory() -> None:
    import gc

    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
