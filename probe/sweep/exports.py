"""The table of a whole sweep as one file, the same bytes whatever order the work was done in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from probe.errors import InputError, did_you_mean
from probe.quoting import spreadsheet_table
from probe.sweep.shards import schema_of
from probe.sweep.store import Store
from probe.writing import write_beside

__all__ = ["export_table", "require_complete"]

_ENDINGS = (".parquet", ".csv")


def export_table(store: Store, out: str | os.PathLike[str], *, partial: bool = False) -> int:
    """How many rows the file now has: every row of the store, in the order of the data; one shard at a time is in memory.

    Parameters
    ----------
    out : ends in .parquet or .csv. In CSV, texts that a spreadsheet would take for a formula have an apostrophe before them.
    partial : also if examples are still missing.

    Raises
    ------
    InputError
        If the name has another ending, or the store is not complete.
    FileError
        If a shard is damaged, or the file cannot be written; what it held before is kept then.
    """
    target = Path(out)
    if target.suffix not in _ENDINGS:
        hint = did_you_mean(target.suffix, _ENDINGS)
        raise InputError(f"{os.fspath(out)!r} must end in {' or '.join(_ENDINGS)}, found {target.suffix!r}.{hint}")
    if target.is_dir():
        raise InputError(f"{os.fspath(out)!r} is a folder; give the name of a file.")
    if not partial:
        require_complete(store)
    rows = 0

    def write(beside: Path) -> None:
        nonlocal rows
        with _writer(target.suffix, beside, schema_of(store.columns)) as writer:
            for table in store.tables():
                writer.write_table(spreadsheet_table(table) if target.suffix == ".csv" else table)
                rows += table.num_rows

    write_beside(target, write)
    return rows


def require_complete(store: Store) -> None:
    """Nothing, where every example of the plan is there and none is damaged.

    Raises
    ------
    InputError
        If one is missing or damaged.
    """
    status = store.status()
    if status.damaged:
        more = f" and {len(status.damaged) - 1} more" if len(status.damaged) > 1 else ""
        raise InputError(f"{status.damaged[0]}{more} Run the sweep again to compute what is damaged anew.")
    if not status.complete:
        wanted = "an unknown number of" if status.wanted is None else f"{status.wanted:,}"
        raise InputError(
            f"{store.folder} holds {status.examples:,} of {wanted} examples; run the sweep again to go on, or export what "
            "there is with --partial."
        )


def _writer(suffix: str, path: Path, schema: Any) -> Any:
    if suffix == ".csv":
        from pyarrow import csv

        return csv.CSVWriter(str(path), schema)
    import pyarrow.parquet as pq

    return pq.ParquetWriter(str(path), schema, compression="zstd")
