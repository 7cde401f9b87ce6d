"""``probe sweep``: ablations over a data set, stored as they are computed."""

from __future__ import annotations

import sys
from typing import Any

from probe.quoting import terminal_text
from probe.reports import Report, make_table, output_folder, plain, progress, show_interval
from probe.sweep.plan import SweepPlan

__all__ = ["sweep_export", "sweep_heads", "sweep_run", "sweep_status"]


def sweep_run(
    plan: SweepPlan,
    *,
    out: str = "runs/sweep",
    shard: str | None = None,
    dry_run: bool = False,
) -> Report:
    """Take heads, layers or edges away, one after another, over a data set, and store what each changes.

    A sweep that was stopped goes on where it was when the same command is given again: probe sweep PLAN --out DIR. With several
    processes: torchrun --nproc-per-node 8 -m probe.cli sweep PLAN --out DIR.

    Parameters
    ----------
    out
        Folder that the sweep is stored in.
    shard
        The share of this process, such as 0/4 for the first of four; by default what torchrun says.
    dry_run
        Count the cells, time a few of them, say what all will take, and stop.
    """
    target = output_folder(out)
    if dry_run:
        return _estimate(plan)
    from probe.lab.storage import without_progress_bars
    from probe.sweep.runner import Progress, run_sweep

    with without_progress_bars(), progress("sweep", plan.limit) as advance:

        def follow(now: Progress) -> None:
            rate = f" ({now.rate:.2f} examples a second)" if now.computed else ""
            advance(now.done, what=f"sweep{rate}", total=now.total)

        store = run_sweep(plan, out=target, shard=shard, on_progress=follow, on_note=_note)
    return _status(store)


def sweep_status(folder: str) -> Report:
    """Say how far a sweep is, after a look at every stored byte; the exit code is 1 if something is damaged.

    Parameters
    ----------
    folder
        What probe sweep was given as --out.
    """
    from probe.sweep.store import Store

    return _status(Store.open(folder))


def sweep_export(folder: str, *, out: str = "sweep.parquet", partial: bool = False) -> Report:
    """Write the rows of a sweep into one parquet or CSV file, the same bytes whatever order they were computed in.

    Parameters
    ----------
    folder
        What probe sweep was given as --out.
    out
        The file; its ending, .parquet or .csv, says what it is.
    partial
        Also if examples are still missing.
    """
    from probe.sweep.exports import export_table
    from probe.sweep.store import Store

    rows = export_table(Store.open(folder), out, partial=partial)
    return Report({"out": out, "rows": rows}, [f"rows         {rows:,}", f"results      {out}"])


def sweep_heads(
    folder: str,
    *,
    effect: str = "log_probability",
    how: str = "",
    top: int = 10,
    partial: bool = False,
) -> Report:
    """Which heads are used: what taking each away changes, the largest loss first, with intervals over images.

    Parameters
    ----------
    folder
        What probe sweep was given as --out.
    effect
        What changes: log_probability, caption_log_probability, exact_match, pointing or auroc, as far as it was swept.
    how
        What stood in the heads' place; by default the first of the plan.
    top
        So many heads are printed; --json gives all of them.
    partial
        Also if examples are still missing.
    """
    from probe.analysis.usage import head_effects
    from probe.errors import InputError
    from probe.sweep.exports import require_complete
    from probe.sweep.store import Store

    if top < 1:
        raise InputError(f"--top is a number of heads, 1 or more; found {top}.")
    store = Store.open(folder)
    if not partial:
        require_complete(store)
    way = how or str(store.manifest["plan"]["how"]).partition(",")[0]
    found = head_effects((one.to_pandas() for one in store.tables()), effect=effect, how=way)
    ordered = found.sort_values("change", kind="stable").to_dict("records")
    title = f"{effect} without each head, replaced by {way}: the largest losses"
    shown = make_table(title, "layer", "head", "change", "images", "phrases")
    for row in ordered[:top]:
        change = show_interval(row | {"change_low": row["low"], "change_high": row["high"]}, "change")
        shown.add_row(
            *(str(row[one]) for one in ("layer", "head")), change, f"{row['images']:,}", f"{row['phrases']:,}"
        )
    before = found["before"].iloc[0]
    data = {"effect": effect, "how": way, "before": before, "heads": ordered}
    return Report(plain(data), [shown, f"with all     {before:.3f}, {len(found)} heads taken away one by one"])


def _note(text: str) -> None:
    print(f"probe: {terminal_text(text)}", file=sys.stderr)


def _status(store: Any) -> Report:
    status = store.status()
    data = {
        "out": str(store.folder), "key": store.key, "complete": status.complete, "chunks": status.chunks,
        "examples": status.examples, "wanted": status.wanted, "ablations": store.ablations, "failed": status.failed,
        "rows": status.rows, "bytes": status.size, "damaged": list(status.damaged),
    }  # fmt: skip
    wanted = "an unknown number" if status.wanted is None else f"{status.wanted:,}"
    lines = [
        f"examples     {status.examples:,} of {wanted}, {status.failed:,} of them failed",
        f"ablations    {store.ablations:,} of each example",
        f"rows         {status.rows:,} in {status.chunks:,} shards, {status.size / 1e6:,.1f} MB",
        *(f"damaged      {one}" for one in status.damaged),
        f"state        {'complete' if status.complete else 'not complete; give the same command again to go on'}",
        f"results      {store.folder}",
    ]
    return Report(data, lines, exit_code=1 if status.damaged else 0)


def _estimate(plan: SweepPlan) -> Report:
    from probe.lab.storage import without_progress_bars
    from probe.sweep.estimates import estimate_sweep

    with without_progress_bars():
        found = estimate_sweep(plan)
    data = {
        "dry_run": True, "ablations": found.ablations, "examples": found.examples, "cells": found.cells, "timed": found.timed,
        "seconds_per_cell": found.seconds_per_cell, "seconds_per_example": found.seconds_per_example, "seconds": found.seconds,
    }  # fmt: skip
    examples = (
        "a number of examples that the data does not say" if found.examples is None else f"{found.examples:,} examples"
    )
    cells = "" if found.cells is None else f" = {found.cells:,} cells"
    total = "not known" if found.seconds is None else f"{found.seconds / 3600:,.2f} hours of one process"
    lines = [
        f"cells        {found.ablations:,} ablations x {examples}{cells}",
        f"timed        {found.seconds_per_cell:.4f} seconds a cell and {found.seconds_per_example:.4f} an example besides, from "
        f"{found.timed} ablations",
        f"estimate     {total}",
        "dry run      nothing was stored",
    ]
    return Report(data, lines)
