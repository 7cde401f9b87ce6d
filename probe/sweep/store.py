"""The folder of a sweep: a plan, and shards that are there whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import FileError, InputError
from probe.sweep.disk import beside, commit_file, read_checked, remove_leftovers, with_checksum
from probe.sweep.identity import describe_differences, digest_of
from probe.sweep.shards import FAILED, Shard, commit_shard, encode_table, read_shard, read_table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from probe.sweep.plan import SweepPlan

__all__ = ["END", "MANIFEST", "SHARDS", "Status", "Store"]

MANIFEST, END, SHARDS = "manifest.json", "end.json", "shards"


@dataclass(frozen=True)
class Status:
    """How far a store is.

    Attributes
    ----------
    chunks, examples, failed, rows, size : of the whole shards; failed are examples, size is in bytes.
    wanted : how many examples there are in all; ``None`` until the end of the data was reached.
    damaged : one line for each shard that is not what was written.
    """

    chunks: int
    examples: int
    failed: int
    rows: int
    size: int
    wanted: int | None
    damaged: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.examples == self.wanted and not self.damaged


class Store:
    """A sweep's folder: ``manifest.json``, ``shards/000000/``, ..., and ``end.json`` once the data's end is known.

    Each shard holds the rows of one chunk of examples. It is written beside its place, synced and renamed, so that it is whole
    wherever it stands; a shard that stands is done, and never written again. Several processes may write into one store.

    Attributes
    ----------
    identity : what every row depends on but the pictures.
    key : its digest.
    columns : of the tables.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.manifest = folder, dict(manifest)
        self.identity: dict[str, Any] = self.manifest["identity"]
        self.key: str = self.manifest["key"]
        self.columns: list[str] = self.manifest["columns"]
        self.ablations: int = self.manifest["ablations"]

    @classmethod
    def create(
        cls, folder: Path, plan: SweepPlan, identity: Mapping[str, Any], *, columns: Sequence[str], ablations: int
    ) -> Store:
        """The store of this sweep in this folder, made if there is none.

        Raises
        ------
        InputError
            If the folder is a file, holds something else, or the sweep of another plan, model or version.
        FileError
            If it cannot be written, or its manifest is damaged.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder to keep the sweep in.")
        if not (folder / MANIFEST).exists():
            if folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
                # Another process may have made it since the first look.
                if not (folder / MANIFEST).exists():
                    raise InputError(f"{folder} holds something that is no sweep; give a new folder.")
            else:
                values = {
                    "key": digest_of(identity), "identity": dict(identity), "columns": list(columns), "ablations": ablations,
                    "plan": asdict(plan),
                }  # fmt: skip
                commit_file(folder / MANIFEST, with_checksum(values))
        store = cls.open(folder)
        differences = describe_differences(store.identity, identity)
        if differences:
            raise InputError(
                f"{folder} holds another sweep: {differences}. Give another folder, or the same settings to go on."
            )
        for one in (folder, folder / SHARDS):
            remove_leftovers(one)
        return store

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """The store in this folder.

        Raises
        ------
        InputError
            If there is none.
        FileError
            If its manifest is damaged.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise InputError(
                f"{os.fspath(folder)!r} holds no sweep: there is no {MANIFEST}; make one with probe sweep."
            )
        manifest = read_checked(path)
        if not {"key", "identity", "columns", "ablations"} <= manifest.keys():
            raise FileError(f"{path} is not the manifest of a sweep; give the folder that probe sweep wrote.")
        return cls(Path(folder), manifest)

    def place(self, chunk: int) -> Path:
        """The folder of a chunk's shard, whether it is there or not."""
        return self.folder / SHARDS / f"{chunk:06d}"

    def chunks(self) -> list[int]:
        """The numbers of the chunks whose shards stand, damaged ones among them, in order."""
        names = [one.name for one in (self.folder / SHARDS).glob("*")]
        return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{6,}", name))

    def chunk_key(self, digests: Sequence[str]) -> str:
        """The key of the shard of examples with these digests."""
        return digest_of({"sweep": self.key, "examples": list(digests)})

    def find(self, chunk: int) -> Shard | None:
        """The shard of a chunk, compared with its checksum; ``None`` if it is not there.

        Raises
        ------
        FileError
            If it is damaged.
        """
        place = self.place(chunk)
        # An empty folder is what is left where a disk was mended; it does not stand in the way of a new shard.
        if not place.is_dir() or not any(place.iterdir()):
            return None
        return read_shard(place, chunk=chunk)

    def commit(self, chunk: int, frame: pd.DataFrame, *, key: str, examples: int) -> bool:
        """True if these rows are now the chunk's shard; false if another process was first, whose shard is left as it is.

        Raises
        ------
        InputError
            If the table has not the store's columns.
        FileError
            If it cannot be written; nothing of it is left then.
        """
        data = encode_table(frame, self.columns)
        failed = int((frame["kind"] == FAILED).sum())
        return commit_shard(
            self.place(chunk), data, chunk=chunk, key=key, examples=examples, failed=failed, rows=len(frame)
        )

    def set_aside(self, chunk: int, *, key: str) -> None:
        """Nothing; the chunk's shard is gone if it is damaged or of another key.

        Raises
        ------
        FileError
            If it cannot be moved.
        """
        place = self.place(chunk)
        with beside(place) as made:
            try:
                os.rename(place, made / "old")
            except FileNotFoundError:
                return  # another process was first
            try:
                shard: Shard | None = read_shard(made / "old", chunk=chunk)
            except FileError:
                shard = None
            # Another process may have mended it between the look and the move.
            if shard is not None and shard.key == key and not place.exists():
                os.rename(made / "old", place)

    def finish(self, examples: int) -> None:
        """Nothing; the store then knows how many examples there are in all.

        Raises
        ------
        FileError
            If it cannot be written.
        InputError
            If it was another number before.
        """
        try:
            known = self.wanted()
        except FileError:
            (self.folder / END).unlink(missing_ok=True)
            known = None
        if known is None:
            commit_file(self.folder / END, with_checksum({"examples": examples}))
            known = self.wanted()
        if known != examples:
            raise InputError(
                f"{self.folder} holds a sweep over {known} examples, and the data now has {examples}; give another folder."
            )

    def wanted(self) -> int | None:
        """How many examples there are in all; ``None`` if the end of the data was never reached.

        Raises
        ------
        FileError
            If what says so is damaged.
        """
        path = self.folder / END
        return int(read_checked(path)["examples"]) if path.is_file() else None

    def status(self) -> Status:
        """How far the store is, every shard compared with its checksum."""
        shards, damaged = [], []
        for chunk in self.chunks():
            try:
                shard = self.find(chunk)
            except FileError as error:
                damaged.append(str(error))
            else:
                shards += [shard] if shard else []
        try:
            wanted = self.wanted()
        except FileError as error:
            wanted = None
            damaged.append(str(error))
        sums = {name: sum(getattr(one, name) for one in shards) for name in ("examples", "failed", "rows", "size")}
        return Status(len(shards), **sums, wanted=wanted, damaged=tuple(damaged))

    def tables(self) -> Iterator[pa.Table]:
        """The rows of one shard after another, in the order of the data.

        Raises
        ------
        FileError
            If a shard is damaged.
        """
        for chunk in self.chunks():
            yield read_table(self.place(chunk), chunk=chunk)
