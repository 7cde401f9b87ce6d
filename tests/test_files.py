"""Records survive the disk exactly, and nothing damaged is ever read as if it were whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import probe
from probe import files
from probe.errors import FileError
from tests.records import make_record


def _same(a, b) -> None:
    for one, other in zip(a.layers, b.layers, strict=True):
        for part in ("values", "token_mean", "rest"):
            assert torch.equal(getattr(one, part), getattr(other, part))
        assert (one.name, one.view, one.heads) == (other.name, other.view, other.heads)
        assert (one.grid.row_edges, one.grid.col_edges, one.grid.image_size) == (
            other.grid.row_edges,
            other.grid.col_edges,
            other.grid.image_size,
        )
    for name in ("tokens", "token_ids", "spans", "text", "image_size", "certificate", "source", "history", "query_row"):
        assert getattr(a, name) == getattr(b, name), name


def test_a_record_comes_back_exactly(tmp_path):
    record = make_record(text="a café ☕ and a dog")
    _same(record, probe.load(probe.save(record, tmp_path / "deep" / "er" / "r.safetensors")))


def test_the_same_record_is_the_same_bytes_and_keeps_its_notes(tmp_path):
    notes = {"key": {"prompt": "Où?", "limit": None}}
    kept = {probe.save(make_record(), tmp_path / f"{one}.safetensors", notes=notes).read_bytes() for one in range(8)}
    assert len(kept) == 1  # the library alone orders its header anew each time
    record, found = files.load_with_notes(tmp_path / "3.safetensors")
    _same(record, make_record())
    assert found == notes
    assert files.load_with_notes(probe.save(make_record(), tmp_path / "plain.safetensors"))[1] == {}


def test_a_reduced_record_comes_back(tmp_path):
    record = make_record()["red circle"].minus_mean().mean("head")
    again = probe.load(probe.save(record, tmp_path / "r.safetensors"))
    _same(record, again)
    assert again.history == ("minus mean", "mean over head")


def test_what_was_taken_away_comes_back_and_older_files_say_nothing_of_it(tmp_path, monkeypatch):
    record = make_record()
    record = replace(record, source=replace(record.source, ablation="zero: (1, 4); uniform: (2, 0)"))
    assert probe.load(probe.save(record, tmp_path / "new")).source == record.source
    header = files._header

    def as_before(of):
        made = header(of)
        del made["source"]["ablation"]
        return made

    monkeypatch.setattr(files, "_header", as_before)
    old = probe.load(probe.save(make_record(), tmp_path / "old"))
    _same(old, make_record())
    assert old.source.ablation == ""


def test_compact_keeps_small_rows_too(tmp_path):
    record = make_record()
    # Rows like those over thousands of keys: far below what plain float16 can hold.
    for layer in record.layers:
        layer.values.mul_(1e-9)
    path = probe.save(record, tmp_path / "r.safetensors", compact=True)
    for one, other in zip(record.layers, probe.load(path).layers, strict=True):
        error = (one.values - other.values).abs().amax((-1, -2)) / one.values.abs().amax((-1, -2))
        assert float(error.max()) < 5e-4
    # A real map's size, where the header no longer counts.
    exact = probe.save(make_record(layers=40, heads=40), tmp_path / "exact.safetensors").stat().st_size
    packed = probe.save(make_record(layers=40, heads=40), tmp_path / "packed.safetensors", compact=True).stat().st_size
    assert packed < exact


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_cut_file_is_refused(tmp_path, kept):
    path = probe.save(make_record(), tmp_path / "r.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileError, match=r"r\.safetensors"):
        probe.load(path)


def test_what_is_no_record_is_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileError, match="does not exist"):
        probe.load(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="is a folder"):
        probe.load(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="no header of ours"):
        probe.load(tmp_path / "other.safetensors")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = probe.save(make_record(seed=1), tmp_path / "r.safetensors")
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FileError, match=r"could not be written \(No space left on device\)"):
        probe.save(make_record(seed=2), path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["r.safetensors"]


def test_loading_and_scoring_need_neither_transformers_nor_matplotlib(tmp_path):
    path = probe.save(make_record(), tmp_path / "r.safetensors")
    code = f"""
import sys
for name in ("transformers", "diffusers", "matplotlib"):
    sys.modules[name] = None
import numpy, probe
record = probe.load({str(path)!r})
mask = numpy.zeros(record.image_size, bool); mask[:9, :9] = True
scores = probe.score_heads([record, record], [{{"red circle": mask}}] * 2, metric="pointing")
print(len(scores.to_frame()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 6
