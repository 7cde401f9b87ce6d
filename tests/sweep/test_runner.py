"""run_sweep(): failures as rows, memory, data that changed, shares, and what it tells meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from probe import run_sweep
from probe.errors import CertificateError, FileError, InputError
from probe.evaluation import sources
from probe.sweep.exports import export_table
from probe.sweep.runner import parse_share
from tests.sweep.fake_engine import FakeEngine, plan_of


def table_of(store, tmp_path):
    export_table(store, tmp_path / "table.parquet")
    return pd.read_parquet(tmp_path / "table.parquet")


def test_every_cell_is_there_once_and_in_order(drawn, tmp_path):
    told = []
    store = run_sweep(plan_of(), out=tmp_path / "out", engine=FakeEngine(), on_progress=told.append)
    table = table_of(store, tmp_path)
    assert len(table) == 3 * sum(len(one.phrases) for one in drawn[:7])
    assert not table.duplicated(["position", "start", "end", "kind", "head"]).any()
    assert table["position"].is_monotonic_increasing
    assert dict(zip(table["position"], table["example"], strict=True)) == {n: drawn[n].name for n in range(7)}
    assert [(one.done, one.total, one.computed) for one in told] == [(2, 7, 2), (4, 7, 4), (6, 7, 6), (7, 7, 7)]
    assert told[-1].rate == pytest.approx(7 / told[-1].seconds)


@pytest.mark.parametrize("error", [InputError, FileError])
def test_an_example_that_fails_is_a_row_with_its_reason(drawn, tmp_path, error):
    notes = []
    engine = FakeEngine(fails=["lab 3", "lab 6"], error=error)
    store = run_sweep(plan_of(), out=tmp_path / "out", engine=engine, on_note=notes.append)
    table = table_of(store, tmp_path)
    failed = table[table["kind"] == "failed"]
    assert failed[["position", "example", "error"]].to_numpy().tolist() == [
        [3, "lab 3", "lab 3: no picture"], [6, "lab 6", "lab 6: no picture"],
    ]  # fmt: skip
    assert failed["log_probability"].isna().all()
    assert set(table["example"]) == {f"lab {number}" for number in range(7)}
    assert (table["error"] == "").sum() == len(table) - 2
    assert store.status().failed == 2
    assert notes == ["lab 3 failed: lab 3: no picture", "lab 6 failed: lab 6: no picture"]


def test_what_is_no_examples_fault_stops_the_sweep_and_keeps_the_rest(drawn, tmp_path):
    for error in (CertificateError, KeyboardInterrupt, RuntimeError):
        out = tmp_path / error.__name__
        with pytest.raises(error):
            run_sweep(plan_of(), out=out, engine=FakeEngine(fails=["lab 5"], error=error))
        engine = FakeEngine()
        assert run_sweep(plan_of(), out=out, engine=engine).status().complete
        assert engine.seen == ["lab 4", "lab 5", "lab 6"]


def test_short_memory_halves_the_batch_and_says_so(drawn, tmp_path):
    notes = []
    engine = FakeEngine(batch=16, fits=5)
    store = run_sweep(plan_of(), out=tmp_path / "out", engine=engine, on_note=notes.append)
    assert store.status().complete
    assert engine.batch == 4
    assert notes == [f"memory did not suffice; from here on {number} ablations at a time" for number in (8, 4)]
    with pytest.raises(MemoryError):
        run_sweep(plan_of(), out=tmp_path / "none", engine=FakeEngine(fits=0))


def test_memory_of_a_gpu_is_understood_too(drawn, tmp_path):
    import torch

    class Full(FakeEngine):
        def __call__(self, examples):
            if self.batch > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(examples)

    engine = Full()
    assert run_sweep(plan_of(), out=tmp_path / "out", engine=engine).status().complete
    assert engine.batch == 2


def test_data_that_changed_is_refused(drawn, tmp_path, monkeypatch):
    run_sweep(plan_of(), out=tmp_path / "out", engine=FakeEngine())
    changed = [*drawn[:2], replace(drawn[2], text=f"{drawn[2].text}."), *drawn[3:7]]
    monkeypatch.setattr(sources, "read_lab", lambda name, *, limit, seed: iter(changed))
    with pytest.raises(InputError, match="000001 was computed from other pictures, captions or masks"):
        run_sweep(plan_of(), out=tmp_path / "out", engine=FakeEngine())
    monkeypatch.setattr(sources, "read_lab", lambda name, *, limit, seed: iter(drawn[:6]))
    with pytest.raises(InputError, match=r"000003|over 7 examples, and the data now has 6"):
        run_sweep(plan_of(), out=tmp_path / "out", engine=FakeEngine())


def test_an_example_that_failed_and_was_mended_is_computed_again(drawn, tmp_path, monkeypatch):
    run_sweep(plan_of(), out=tmp_path / "out", engine=FakeEngine(fails=["lab 2"], error=InputError))
    mended = [*drawn[:2], replace(drawn[2], text=f"{drawn[2].text}."), *drawn[3:7]]
    monkeypatch.setattr(sources, "read_lab", lambda name, *, limit, seed: iter(mended))
    engine = FakeEngine()
    store = run_sweep(plan_of(), out=tmp_path / "out", engine=engine)
    assert engine.seen == ["lab 2", "lab 3"]
    assert store.status().failed == 0


def test_data_without_an_example_is_refused(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "read_lab", lambda name, *, limit, seed: iter([]))
    with pytest.raises(InputError, match="has no example"):
        run_sweep(plan_of(), out=tmp_path / "out", engine=FakeEngine())


def test_shares_are_read_and_checked(monkeypatch):
    assert parse_share("1/4") == (1, 4)
    monkeypatch.delenv("RANK", raising=False)
    assert parse_share(None) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert parse_share(None) == (2, 3)
    for wrong in ("4/4", "1", "a/b", "-1/2", "0/0", ""):
        with pytest.raises(InputError, match=r"shard is 'INDEX/COUNT'"):
            parse_share(wrong)


def test_an_incomplete_sweep_is_exported_only_if_asked(drawn, tmp_path):
    with pytest.raises(RuntimeError):
        run_sweep(plan_of(), out=tmp_path / "out", engine=(one := FakeEngine(fails=["lab 5"], error=RuntimeError)))
    from probe.sweep.store import Store

    store = Store.open(tmp_path / "out")
    with pytest.raises(InputError, match="holds 4 of an unknown number of examples"):
        export_table(store, tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
    rows = export_table(store, tmp_path / "a.csv", partial=True)
    assert rows == len(pd.read_csv(tmp_path / "a.csv")) == 3 * sum(len(one.phrases) for one in drawn[:4])
    assert one.seen[:4] == ["lab 0", "lab 1", "lab 2", "lab 3"]
    with pytest.raises(InputError, match=r"must end in .parquet or .csv.*Did you mean '.parquet'"):
        export_table(store, tmp_path / "a.parqet")
