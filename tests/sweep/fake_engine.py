"""A stand-in for the engine that needs no model: rows that are a plain function of the example and the ablation."""

from __future__ import annotations

import os
import time
import zlib

import pandas as pd

from probe.sweep.exports import export_table
from probe.sweep.plan import SweepPlan
from probe.sweep.store import Store

EFFECTS = "log_probability"


def plan_of(**given) -> SweepPlan:
    """A plan over a few lab scenes, two heads of one layer."""
    settings = {"limit": 7, "chunk": 2, "layers": 1, "heads": "0-1", "effects": EFFECTS}
    return SweepPlan(**settings | given)


class FakeEngine:
    """Counts its calls; ``fails`` names examples that cannot be read, ``fits`` how large a batch memory holds."""

    def __init__(self, *, batch=16, fits=16, fails=(), error=None, seconds=0.0):
        self.batch, self.fits, self.fails, self.error, self.seconds = batch, fits, set(fails), error, seconds
        self.seen = []

    def __call__(self, examples):
        if self.batch > self.fits:
            raise MemoryError("no more")
        rows = []
        for one in examples:
            if one.name in self.fails:
                raise self.error(f"{one.name}: no picture")
            time.sleep(self.seconds)
            self.seen.append(one.name)
            for phrase in one.phrases:
                for kind, layer, head in (("none", None, None), ("head", 1, 0), ("head", 1, 1)):
                    value = zlib.crc32(f"{one.name} {phrase.text} {head}".encode()) / 2**32
                    rows.append({
                        "example": one.name, "image": one.name, "phrase": phrase.text, "start": phrase.start, "end": phrase.end,
                        "kind": kind, "layer": layer, "head": head, "edge": "", "how": "" if kind == "none" else "zero",
                        "resumed": False, "log_probability": value, "log_probability_change": -value,
                    })  # fmt: skip
        names = [one for one in plan_of().columns() if one not in ("position", "error")]
        return pd.DataFrame(rows, columns=names).astype({"layer": "Int64", "head": "Int64"})


def exported(folder, tmp_path):
    """The bytes of the store's table."""
    export_table(Store.open(folder), tmp_path / "again.parquet")
    return (tmp_path / "again.parquet").read_bytes()


def in_child(action):
    """The process number of a fork that does this and ends, 0 if all went well."""
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    except BaseException:
        os._exit(1)
