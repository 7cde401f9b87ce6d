"""Work that is killed, starved, shared and damaged: nothing lost, doubled or torn, and the same bytes in the end."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import probe
from probe.errors import FileError, ProbeError
from probe.evaluation.examples import Example
from probe.evaluation.predictions import write_predictions
from probe.protocols import readouts
from probe.protocols.maps import MapStore
from probe.protocols.questions import Question
from probe.reports import write_json
from probe.sweep.runner import run_sweep
from probe.sweep.shards import SHARD, TABLE
from probe.sweep.store import END, MANIFEST, Store
from tests.evaluation.scored import random_pairs
from tests.records import make_record
from tests.sweep.conftest import drawn, unbroken  # noqa: F401 - fixtures
from tests.sweep.fake_engine import FakeEngine, exported, in_child, plan_of
from tests.sweep.single_changes import PLAN, files, key_of, single_changes


def committed(folder: Path) -> dict[Path, bytes]:
    """The bytes of every shard that stands."""
    return {one: one.read_bytes() for one in folder.glob("shards/[0-9]*/*")}


@pytest.mark.promises("R30")
def test_a_sweep_killed_at_any_moment_goes_on(line, full, unbroken, tmp_path):  # noqa: F811
    kills = 500 if full else 60
    killed = line("R30", target="0 rows lost, doubled or torn in 500 kills; the same bytes in the end", least=kills)
    moments = random.Random(0)
    begin = time.perf_counter()
    run_sweep(plan_of(), out=tmp_path / "timed", engine=FakeEngine())
    whole = time.perf_counter() - begin
    finished = number = 0
    while killed.trials < kills:
        folder = tmp_path / f"killed {number}"
        number += 1
        before: dict[Path, bytes] = {}
        while True:  # killed again and again until it is done
            child = in_child(lambda folder=folder: run_sweep(plan_of(), out=folder, engine=FakeEngine()))
            time.sleep(moments.uniform(0, 1.2 * whole))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            after = committed(folder)
            kept = before.items() <= after.items()  # nothing that was committed is lost or changed
            sound = not (folder / MANIFEST).exists() or Store.open(folder).status().damaged == ()
            before = after
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0
                finished += 1
                break
            killed.trial(kept and sound, silent=not kept, what=f"{folder}: kept {kept}, sound {sound}")
        killed.trial(exported(folder, tmp_path) == unbroken, silent=True, what=f"{folder}: other bytes")
    assert finished == number > 3
    killed.settle()


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


@pytest.mark.promises("R31")
def test_a_disk_that_fails_at_any_call_leaves_a_store_that_goes_on(line, full, drawn, tmp_path):  # noqa: F811
    failing = line("R31", target="typed error, readable store, exact resume, at every write", least=50 if full else 17)
    plan = plan_of(limit=3)  # one chunk that is full and one that is not
    run_sweep(plan, out=tmp_path / "unbroken", engine=FakeEngine())
    expected = exported(tmp_path / "unbroken", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        counted = Failing(patch, at=0)
        run_sweep(plan, out=tmp_path / "counted", engine=FakeEngine())
    assert exported(tmp_path / "counted", tmp_path) == expected
    for at in range(1, counted.calls + 1, 1 if full else 3):
        folder = tmp_path / f"failed {at}"
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, at)
            with pytest.raises(FileError, match=r"could not be written .*No space left"):
                run_sweep(plan, out=folder, engine=FakeEngine())
        before = committed(folder)
        sound = not (folder / MANIFEST).exists() or Store.open(folder).status().damaged == ()
        engine = FakeEngine()
        run_sweep(plan, out=folder, engine=engine)
        kept = before.items() <= committed(folder).items()
        done = {one.parent.name for one in before}
        exact = engine.seen == [f"lab {number}" for number in range(3) if f"{number // 2:06d}" not in done]
        same = exported(folder, tmp_path) == expected
        failing.trial(sound and kept and exact and same, silent=not same, what=f"{at}: {sound} {kept} {exact} {same}")
    failing.settle()


def written_files(seed: int):
    """Each kind of file that the package writes beside and renames: its name, and what writes it."""
    import matplotlib.pyplot as plt

    _, predictions = zip(*random_pairs(seed, 6), strict=True)
    figure, _ = plt.subplots()
    return {
        "record.safetensors": lambda path: probe.save(make_record(seed=seed), path),
        "predictions.jsonl": lambda path: write_predictions(path, predictions),
        "scores.json": lambda path: write_json(path, {"value": seed}),
        "figure.pdf": lambda path: probe.plots.save_figure(figure, path.with_suffix("")),
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.promises("R31")
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(line, tmp_path, monkeypatch, number):
    failing = line("R31", target="typed error, the old file whole, nothing beside it", least=7)

    def fail(*given, **options):
        raise OSError(number, os.strerror(number))

    for name in written_files(1):
        folder = tmp_path / name
        folder.mkdir()
        written_files(1)[name](folder / name)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for call in ("fsync", "replace") if name != "figure.pdf" else ("replace",):
            write = written_files(2)[name]
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fail)
                try:
                    write(folder / name)
                    typed = False
                except FileError as error:
                    typed = os.strerror(number) in str(error)
            same = {path: path.read_bytes() for path in folder.iterdir()} == before
            failing.trial(typed and same, silent=not same, what=f"{name}, {call}: typed {typed}, as before {same}")
    failing.settle()


@pytest.mark.promises("R32")
def test_several_processes_commit_each_cell_once(line, full, unbroken, tmp_path):  # noqa: F811
    rounds = 40 if full else 4
    together = line("R32", target="each cell committed once, the same bytes in the end", least=rounds)
    choice = random.Random(0)
    ways = [["0/1"] * 4, ["0/3", "1/3", "2/3", "1/2", "0/2"], ["0/2"]]
    ways += [[f"{choice.randrange(3)}/3" for _ in range(choice.randint(2, 5))] for _ in range(rounds - 3)]
    for number, shares in enumerate(ways):
        folder = tmp_path / f"together {number}"
        children = [
            in_child(
                lambda share=share, folder=folder: run_sweep(plan_of(), out=folder, shard=share, engine=FakeEngine())
            )
            for share in shares
        ]
        ended = [os.waitpid(child, 0)[1] for child in children]
        run_sweep(plan_of(), out=folder, engine=FakeEngine())  # with another number of processes
        same = exported(folder, tmp_path) == unbroken
        ok = same and not any(ended) and not list(folder.rglob(".*"))
        together.trial(ok, silent=not same, what=f"{shares}: ended {ended}, the same {same}")
    together.settle()


def spoilt(choice: random.Random, data: bytes, number: int) -> bytes:
    """The bytes with one bit changed, or cut off."""
    changed = bytearray(data)
    if number % 3:
        changed[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    else:
        del changed[choice.randrange(len(data)) :]
    return bytes(changed)


@pytest.mark.promises("R33")
def test_every_flipped_byte_and_cut_of_a_store_is_found_or_harmless(line, full, unbroken, tmp_path):  # noqa: F811
    number = 3000 if full else 250
    damaged = line("R33", target="detected or harmless, never a changed number", least=number)
    folder, choice = tmp_path / "unbroken", random.Random(1)
    paths = sorted(one for one in folder.rglob("*") if one.is_file())
    assert {one.name for one in paths} == {MANIFEST, END, SHARD, TABLE}
    found = 0
    for at in range(number):
        path = paths[at % len(paths)]
        data = path.read_bytes()
        path.write_bytes(spoilt(choice, data, at))
        try:
            same = exported(folder, tmp_path) == unbroken
        except ProbeError:
            found, same = found + 1, True
        damaged.trial(same, silent=True, what=f"{path.name} {at}")
        path.write_bytes(data)
    assert found > 0.85 * number  # a blank between two words of JSON may change
    assert exported(folder, tmp_path) == unbroken
    damaged.settle()


@pytest.mark.promises("R33")
def test_every_flipped_byte_and_cut_of_a_record_is_found_or_harmless(line, full, tmp_path):
    record = make_record(layers=1, heads=1, text="a dog")
    path = probe.save(record, tmp_path / "r.safetensors")
    whole, choice = path.read_bytes(), random.Random(2)
    number = 6000 if full else 700
    damaged = line("R33", target="detected or harmless, never a changed number", least=number)
    for at in range(number):
        path.write_bytes(spoilt(choice, whole, at))
        try:
            again = probe.load(path)
            same = again.text == record.text and again.source == record.source
            same &= all(
                torch.equal(one.values, two.values) for one, two in zip(again.layers, record.layers, strict=True)
            )
        except FileError:
            same = True
        damaged.trial(same, silent=True, what=f"record {at}")
    damaged.settle()


@pytest.mark.promises("R33")
def test_every_flipped_byte_and_cut_of_kept_masks_is_found(line, full, tmp_path):
    """Masks that an evaluation kept and reads again."""
    number = 3000 if full else 300
    damaged = line("R33", target="detected or harmless, never a changed number", least=number)
    _, predictions = zip(*random_pairs(4, 6), strict=True)
    names = [one.name for one in predictions]
    identity = {"refiner": "threshold", "combine": "mean", "reduction": "all-heads", "point": "bicubic"}
    cache = readouts._Cache(tmp_path, identity)
    cache.write(0, predictions)
    assert [one.name for one in cache.read(0, names)] == names
    paths = [path for path in sorted(cache.folder.iterdir()) if path.name != "settings.json"]
    choice = random.Random(3)
    for at in range(number):
        path = paths[at % len(paths)]
        data = path.read_bytes()
        path.write_bytes(spoilt(choice, data, at))
        damaged.trial(cache.read(0, names) is None, silent=True, what=f"{path.name} {at}")
        path.write_bytes(data)
    damaged.settle()


@pytest.mark.promises("R34")
def test_single_changes_of_a_sweep_give_as_many_keys(line, tmp_path, monkeypatch):
    stale = line("R34", target="0 stale hits in 200 single changes", least=200)
    outline = files(tmp_path / "model")
    before = key_of(outline)
    assert before == key_of(outline, replace(PLAN, batch=1, device="cpu"))  # how the work is done
    seen = {before}
    for name, key in single_changes(outline, monkeypatch):
        stale.trial(key not in seen, silent=True, what=name)
        seen.add(key)
    stale.settle()


@pytest.mark.promises("R34")
def test_maps_are_keyed_by_all_that_they_depend_on(line, tmp_path):
    """Of an evaluation: the model's identity and the question in common, the picture's bytes and the words of each."""
    stale = line("R34", target="0 stale hits in any single change", least=12)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"picture")
    common = {
        "protocol": "gcg",
        "weights": "w",
        "dtype": "float32",
        "kernel": "sdpa",
        "max_new_tokens": 8,
        "question": "q",
    }
    example, question = Example("one", picture, "a dog", ()), Question("Describe.", "a dog")
    made = MapStore(tmp_path / "maps", common)
    path, key = made.path(0, 0), made.key(example, question)
    made.write(path, key, make_record())
    assert made.done(path, key)
    for name in common:
        changed = common | {name: 9 if name == "max_new_tokens" else "other"}
        with pytest.raises(ProbeError, match=name):
            MapStore(tmp_path / "maps", changed)
        stale.trial(True, what=name)
    others = [(replace(example, name="two"), question), (example, Question("Describe it.", "a dog"))]
    others += [(example, Question("Describe.", "a cat")), (example, Question("Describe.", None))]
    others += [(example, Question("Describe.", "a dog", "own"))]
    for other, asked in others:
        stale.trial(_refused(made, path, made.key(other, asked)), silent=True, what=f"{other.name} {asked}")
    picture.write_bytes(b"Picture")
    stale.trial(_refused(made, path, made.key(example, question)), silent=True, what="the picture")
    stale.settle()


def _refused(store: MapStore, path: Path, key: dict) -> bool:
    try:
        return not store.done(path, key)
    except ProbeError:
        return True
