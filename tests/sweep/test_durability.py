"""What a store does with races, damage and leftovers; how it is killed, starved and shared stands in tests/trust."""

from __future__ import annotations

import os
import time

import pandas as pd
import pytest

from probe.errors import InputError
from probe.sweep.exports import export_table
from probe.sweep.runner import run_sweep
from probe.sweep.shards import SHARD, TABLE
from probe.sweep.store import END, MANIFEST, Store
from tests.sweep.fake_engine import FakeEngine, exported, in_child, plan_of


def test_the_loser_of_a_race_leaves_the_winners_shard(drawn, tmp_path):
    store = run_sweep(plan_of(limit=2), out=tmp_path / "store", engine=FakeEngine())
    rows = store.place(0) / TABLE
    before = rows.read_bytes()
    table = pd.read_parquet(rows).assign(log_probability=0.5)
    assert store.commit(0, table, key="another", examples=2) is False
    assert rows.read_bytes() == before
    assert not list((tmp_path / "store").rglob(".*"))


def test_a_damaged_shard_is_said_and_computed_again(unbroken, tmp_path):
    folder = tmp_path / "unbroken"
    store = Store.open(folder)
    for spoil in (
        lambda place: (place / TABLE).write_bytes(b"PAR1"),
        lambda place: (place / TABLE).unlink(),
        lambda place: (place / SHARD).unlink(),
        lambda place: (place / SHARD).write_text("{}"),
        lambda place: [one.unlink() for one in place.iterdir()],
    ):
        spoil(store.place(1))
        assert not store.status().complete
        with pytest.raises(InputError, match=r"again"):
            export_table(store, tmp_path / "no.parquet")
        assert not (tmp_path / "no.parquet").exists()
        engine = FakeEngine()
        run_sweep(plan_of(), out=folder, engine=engine)
        assert engine.seen == ["lab 2", "lab 3"]
        assert exported(folder, tmp_path) == unbroken
    os.rename(store.place(2), store.place(7))
    assert "holds chunk 2 and stands in the place of 7" in store.status().damaged[0]


def test_a_mended_shard_is_not_set_aside(unbroken, tmp_path):
    store = Store.open(tmp_path / "unbroken")
    shard = store.find(1)
    store.set_aside(1, key=shard.key)
    assert store.find(1) == shard
    store.set_aside(1, key="another")
    assert store.find(1) is None
    store.set_aside(1, key="another")


def test_what_a_killed_process_left_is_removed_when_it_is_old(unbroken, tmp_path):
    import socket

    folder = tmp_path / "unbroken" / "shards"
    child = in_child(lambda: None)
    os.waitpid(child, 0)
    left = [folder / f".000009.{socket.gethostname()}.{process}.abc" for process in (child, child, os.getpid())]
    left[1] = left[1].with_name(f"{left[1].name}d")
    for one, age in zip(left, (3600, 0, 3600), strict=True):
        one.mkdir()
        os.utime(one, (time.time() - age, time.time() - age))
    run_sweep(plan_of(), out=tmp_path / "unbroken", engine=FakeEngine())
    assert [one.exists() for one in left] == [False, True, True]


def test_everything_is_on_the_disk_before_it_is_named(drawn, tmp_path, monkeypatch):
    done = []

    def note(name, path):
        done.append((name, os.path.basename(path)))

    monkeypatch.setattr(os, "fsync", lambda handle: note("sync", os.readlink(f"/proc/self/fd/{handle}")))
    rename, link = os.rename, os.link
    monkeypatch.setattr(os, "rename", lambda old, new: (note("rename", new), rename(old, new)))
    monkeypatch.setattr(os, "link", lambda old, new: (note("link", new), link(old, new)))
    run_sweep(plan_of(limit=2), out=tmp_path / "store", engine=FakeEngine())
    plain = [(name, "beside" if path.startswith(".") else path) for name, path in done]
    assert plain == [
        ("sync", MANIFEST), ("link", MANIFEST), ("sync", "store"),
        ("sync", TABLE), ("sync", SHARD), ("sync", "beside"), ("rename", "000000"), ("sync", "shards"),
        ("sync", END), ("link", END), ("sync", "store"),
    ]  # fmt: skip
