"""A store that is killed, starved, shared and damaged: nothing lost, doubled or torn, and the same bytes in the end."""

from __future__ import annotations

import errno
import os
import random
import signal
import time

import pandas as pd
import pytest

from probe.errors import FileError, InputError, ProbeError
from probe.sweep.exports import export_table
from probe.sweep.runner import run_sweep
from probe.sweep.shards import SHARD, TABLE
from probe.sweep.store import END, MANIFEST, Store
from tests.sweep.fake_engine import FakeEngine, plan_of

KILLS = 100


def exported(folder, tmp_path):
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


def committed(folder):
    """The bytes of every shard that stands."""
    return {one: one.read_bytes() for one in folder.glob("shards/[0-9]*/*")}


def test_a_sweep_killed_at_any_moment_goes_on(unbroken, tmp_path):
    moments = random.Random(0)
    begin = time.perf_counter()
    run_sweep(plan_of(), out=tmp_path / "timed", engine=FakeEngine())
    whole = time.perf_counter() - begin
    killed = finished = number = 0
    while killed < KILLS:
        folder = tmp_path / f"killed {number}"
        number += 1
        before = {}
        while True:  # killed again and again until it is done
            child = in_child(lambda folder=folder: run_sweep(plan_of(), out=folder, engine=FakeEngine()))
            time.sleep(moments.uniform(0, 1.2 * whole))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            after = committed(folder)
            assert before.items() <= after.items()  # nothing that was committed is lost or changed
            before = after
            if (folder / MANIFEST).exists():
                assert Store.open(folder).status().damaged == ()
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0
                finished += 1
                break
            killed += 1
        assert exported(folder, tmp_path) == unbroken
    assert finished == number > 3


class Failing:
    """The n-th call of any of the system's writing functions fails, as on a full disk; writes before it are short ones."""

    def __init__(self, monkeypatch, at):
        self.calls, self.at, self.written = 0, at, set()
        for name in ("open", "write", "fsync", "rename", "link", "mkdir", "close"):
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def harmless(self, name, first, given, options):
        """Whether nothing is written: a folder that is there, a file that is read, or what tidies up."""
        if name == "mkdir":
            return os.path.isdir(first)
        if name == "close":
            return first not in self.written
        return name == "open" and ("dir_fd" in options or (not given[0] & os.O_CREAT and not os.path.isdir(first)))

    def wrapped(self, name, real):
        def call(first, *given, **options):
            if self.harmless(name, first, given, options):
                return real(first, *given, **options)
            self.calls += 1
            if self.calls == self.at:
                if name == "close":
                    real(first)
                if name == "write":
                    real(first, bytes(given[0])[: len(given[0]) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if name == "write":
                return real(first, bytes(given[0])[: max(1, len(given[0]) * 2 // 3)])
            found = real(first, *given, **options)
            if name in ("open", "close"):
                (self.written.add if name == "open" else self.written.discard)(found if name == "open" else first)
            return found

        return call


def test_a_disk_that_fails_at_any_call_leaves_a_store_that_goes_on(drawn, tmp_path):
    plan = plan_of(limit=3)  # one chunk that is full and one that is not
    run_sweep(plan, out=tmp_path / "unbroken", engine=FakeEngine())
    unbroken = exported(tmp_path / "unbroken", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        counted = Failing(patch, at=0)
        run_sweep(plan, out=tmp_path / "counted", engine=FakeEngine())
    assert counted.calls > 50
    assert exported(tmp_path / "counted", tmp_path) == unbroken
    for at in range(1, counted.calls + 1):
        folder = tmp_path / f"failed {at}"
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, at)
            with pytest.raises(FileError, match=r"could not be written .*No space left"):
                run_sweep(plan, out=folder, engine=FakeEngine())
        before = committed(folder)
        if (folder / MANIFEST).exists():
            assert Store.open(folder).status().damaged == ()
        engine = FakeEngine()
        run_sweep(plan, out=folder, engine=engine)
        assert before.items() <= committed(folder).items()
        done = {one.parent.name for one in before}
        assert engine.seen == [f"lab {number}" for number in range(3) if f"{number // 2:06d}" not in done]
        assert exported(folder, tmp_path) == unbroken


def test_several_processes_commit_each_cell_once(unbroken, tmp_path):
    for number, shares in enumerate((["0/1"] * 4, ["0/3", "1/3", "2/3", "1/2", "0/2"], ["0/2"])):
        folder = tmp_path / f"together {number}"
        children = [
            in_child(
                lambda share=share, folder=folder: run_sweep(plan_of(), out=folder, shard=share, engine=FakeEngine())
            )
            for share in shares
        ]
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
        run_sweep(plan_of(), out=folder, engine=FakeEngine())  # with another number of processes
        assert exported(folder, tmp_path) == unbroken
        assert not list(folder.rglob(".*"))


def test_the_loser_of_a_race_leaves_the_winners_shard(drawn, tmp_path):
    store = run_sweep(plan_of(limit=2), out=tmp_path / "store", engine=FakeEngine())
    rows = store.place(0) / TABLE
    before = rows.read_bytes()
    table = pd.read_parquet(rows).assign(log_probability=0.5)
    assert store.commit(0, table, key="another", examples=2) is False
    assert rows.read_bytes() == before
    assert not list((tmp_path / "store").rglob(".*"))


def test_every_flipped_byte_and_cut_is_found_or_harmless(unbroken, tmp_path):
    folder = tmp_path / "unbroken"
    choice = random.Random(1)
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    assert {one.name for one in files} == {MANIFEST, END, SHARD, TABLE}
    found = 0
    for number in range(400):
        path = files[number % len(files)]
        data = path.read_bytes()
        spoilt = bytearray(data)
        if number % 3:
            spoilt[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        else:
            del spoilt[choice.randrange(len(data)) :]
        path.write_bytes(bytes(spoilt))
        try:
            same = exported(folder, tmp_path) == unbroken
        except ProbeError:
            found, same = found + 1, True
        assert same, (path, number)
        path.write_bytes(data)
    assert found > 350  # a blank between two words of JSON may change
    assert exported(folder, tmp_path) == unbroken


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
