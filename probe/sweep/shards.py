"""One shard: the rows of a few examples as a parquet file, with what it should hash to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import FileError, InputError
from probe.sweep.disk import beside, commit_folder, read_checked, with_checksum, write_durably

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["FAILED", "SHARD", "TABLE", "Shard", "commit_shard", "encode_table", "read_shard", "read_table", "schema_of"]

TABLE, SHARD = "table.parquet", "shard.json"

#: The ``kind`` of the one row of an example that could not be computed.
FAILED = "failed"

_TEXT = ("example", "image", "phrase", "kind", "edge", "how", "error")
_WHOLE = ("position", "start", "end", "layer", "head")
_TRUTH = ("resumed",)

# Rows of a shard are in this order, whatever order they were computed in.
_ORDER = ("position", "start", "end", "phrase", "kind", "edge", "how", "layer", "head")


@dataclass(frozen=True)
class Shard:
    """What is known of a shard without reading its table.

    Attributes
    ----------
    chunk : number of the examples' group.
    key : of the sweep and these examples.
    examples, failed, rows : how many; failed are examples.
    table : SHA-256 of the parquet file.
    size : its bytes.
    """

    chunk: int
    key: str
    examples: int
    failed: int
    rows: int
    table: str
    size: int


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """The types of a table's columns: texts, whole numbers, truth values, and double precision for the rest."""
    import pyarrow as pa

    kinds: dict[str, Any] = dict.fromkeys(_TEXT, pa.string())
    kinds |= dict.fromkeys(_WHOLE, pa.int64()) | dict.fromkeys(_TRUTH, pa.bool_())
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in columns])


def encode_table(frame: pd.DataFrame, columns: Sequence[str]) -> bytes:
    """The rows as a parquet file, in one order and with these columns.

    Raises
    ------
    InputError
        If the columns are others, or a value does not fit its column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if list(frame.columns) != list(columns):
        raise InputError(f"The table has the columns {list(frame.columns)}; wanted {list(columns)}.")
    ordered = frame.sort_values(list(_ORDER), kind="stable", na_position="first", ignore_index=True)
    try:
        table = pa.Table.from_pandas(ordered, schema_of(columns), preserve_index=False, safe=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The table cannot be stored: {reason}.") from error
    sink = pa.BufferOutputStream()
    # What pandas notes about itself would change with its version.
    pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
    return bytes(sink.getvalue())


def commit_shard(target: Path, data: bytes, *, chunk: int, key: str, examples: int, failed: int, rows: int) -> bool:
    """True if the shard now stands in its place; false if one stands there already, which is left as it is.

    Raises
    ------
    FileError
        If it cannot be written; nothing of it is left then.
    """
    digest = hashlib.sha256(data).hexdigest()
    shard = Shard(chunk, key, examples, failed, rows, digest, len(data))
    with beside(target) as made:
        write_durably(made / TABLE, data)
        write_durably(made / SHARD, with_checksum(asdict(shard)))
        return commit_folder(made, target)


def read_shard(folder: Path, *, chunk: int, whole: bool = True) -> Shard:
    """What the shard in this folder holds, its table compared with its checksum if ``whole``.

    Raises
    ------
    FileError
        If it is damaged.
    """
    values = read_checked(folder / SHARD)
    try:
        shard = Shard(**values)
    except TypeError as error:
        raise FileError(f"{folder / SHARD} is damaged: it does not describe a shard.") from error
    if shard.chunk != chunk:
        raise FileError(f"{folder} is damaged: it holds chunk {shard.chunk} and stands in the place of {chunk}.")
    path = folder / TABLE
    try:
        if os.stat(path).st_size != shard.size:
            raise FileError(f"{path} is damaged: it has {os.stat(path).st_size:,} of {shard.size:,} bytes.")
        if whole:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.table:
                    raise FileError(f"{path} is damaged: it is not what was written.")
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} cannot be read ({error.strerror or error}).") from error
    return shard


def read_table(folder: Path, *, chunk: int) -> pa.Table:
    """The rows of a shard, from the very bytes that were compared with its checksum.

    Raises
    ------
    FileError
        If it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = read_shard(folder, chunk=chunk, whole=False)
    try:
        data = (folder / TABLE).read_bytes()
    except OSError as error:
        raise FileError(f"{folder / TABLE} cannot be read ({error.strerror or error}).") from error
    if hashlib.sha256(data).hexdigest() != shard.table:
        raise FileError(f"{folder / TABLE} is damaged: it is not what was written.")
    return pq.read_table(pa.BufferReader(data))
