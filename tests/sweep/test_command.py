"""`probe sweep` through the shell: run, go on, status, export, a dry run, and two processes under torchrun."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from probe.models import load_model
from probe.sweep.engine import Engine
from probe.sweep.estimates import estimate_sweep, spread
from probe.sweep.plan import SweepPlan, read_plan
from probe.sweep.store import Store
from tests.training.test_processes import torchrun

PLAN = "limit: 3\nchunk: 1\nlayers: 1-2\nheads: 0, 5\nkinds: [heads, edges]\nedges: answer to image\n"
QUICK = ["--limit", 1, "--layers", 0, "--heads", 0]


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_a_sweep_is_run_shown_and_exported(shell, plan_file, tmp_path):
    out, table = tmp_path / "out", tmp_path / "table.parquet"
    code, text, noise = shell("sweep", plan_file, "--out", out, "--json")
    assert (code, noise) == (0, "")
    found = json.loads(text)
    assert (found["complete"], found["examples"], found["ablations"], found["failed"]) == (True, 3, 6, 0)
    assert shell("sweep", "status", out, "--json") == (0, text, "")
    code, text, _ = shell("sweep", "export", out, "--out", table)
    assert code == 0
    assert f"{found['rows']:,}" in text
    rows = pd.read_parquet(table)
    # The numbers are those of the engine by itself.
    from probe.evaluation.lab import read_lab

    plan = read_plan(plan_file)
    engine = Engine(load_model("lab/llava"), plan.ablations(layers=4, heads=8), plan.names("effects"))
    wanted = engine(list(read_lab(limit=3)))
    keys = ["example", "start", "kind", "layer", "head"]
    both = rows.merge(wanted, on=keys, suffixes=("", "_wanted"))
    assert len(both) == len(rows) == len(wanted) == found["rows"]
    for name in plan.columns():
        if "log_probability" in name:
            assert np.allclose(both[name], both[f"{name}_wanted"], atol=1e-5), name
    assert rows["log_probability_change"].abs().max() > 0.01
    # Each head's mean is that of the table's rows.
    code, text, _ = shell("sweep", "heads", out, "--json")
    shown = json.loads(text)
    means = rows[rows["kind"] == "head"].groupby(["layer", "head"])["log_probability_change"].mean()
    assert code == 0
    assert {(one["layer"], one["head"]): one["change"] for one in shown["heads"]} == pytest.approx(means.to_dict())
    assert [one["change"] for one in shown["heads"]] == pytest.approx(sorted(means))
    code, text, _ = shell("sweep", "heads", out, "--top", 1)
    assert f"{means.min():.3f} [" in text
    assert f"{means.max():.3f} [" not in text
    for wrong, said in (
        (("--how", "mean"), "in the place of heads: zero"),
        (("--top", 0), "--top"),
        (("--effect", "auroc"), "no column"),
    ):
        code, text, noise = shell("sweep", "heads", out, *wrong)
        assert (code, text) == (2, "")
        assert said in noise


def test_options_come_before_the_file_and_unknown_ones_are_named(shell, refused, plan_file, tmp_path):
    code, text, _ = shell(
        "sweep", plan_file, *QUICK, "--kinds", "heads", "--edges", "", "--out", tmp_path / "o", "--json"
    )
    assert (code, json.loads(text)["ablations"]) == (0, 1)
    assert shell("sweep", *QUICK, "--out", tmp_path / "p")[0] == 0
    assert "asks for 9: lab/llava has layers 0 to 3" in refused("sweep", plan_file, "--layers", "9")
    assert "Did you mean 'heads'" in refused("sweep", plan_file, "--kinds", "haeds")
    assert "'laers', which does not exist. Did you mean 'layers'" in refused(
        "sweep", with_setting(plan_file, "laers: 2")
    )
    assert "Did you mean 'status'" in refused("sweep", "statsu", writes=False)
    assert "holds no sweep" in refused("sweep", "status", tmp_path, writes=False)
    assert "has no language model" in refused("sweep", "--model", "lab/clip")
    assert "shard is 'INDEX/COUNT'" in refused("sweep", plan_file, "--shard", "3/2")
    assert "another sweep: seed=0 (now 1)" in shell("sweep", *QUICK, "--seed", 1, "--out", tmp_path / "p")[2]


def with_setting(path, line):
    other = path.with_name("other.yaml")
    other.write_text(f"{line}\n")
    return other


def test_what_is_damaged_is_said(shell, plan_file, tmp_path):
    out = tmp_path / "out"
    shell("sweep", *QUICK, "--out", out)
    (Store.open(out).place(0) / "table.parquet").write_bytes(b"")
    code, text, _ = shell("sweep", "status", out)
    assert code == 1
    assert "table.parquet is damaged: it has 0 of" in text
    assert shell("sweep", "export", out, "--out", tmp_path / "no.csv")[0] == 2
    code, _, noise = shell("sweep", *QUICK, "--out", out)
    assert code == 0
    assert "It is computed again." in noise


def test_a_dry_run_stores_nothing(shell, plan_file, tmp_path):
    out = tmp_path / "out"
    code, text, _ = shell("sweep", plan_file, "--dry-run", "--out", out, "--json")
    found = json.loads(text)
    assert (code, found["cells"], found["ablations"], found["timed"]) == (0, 18, 6, 6)
    assert found["seconds"] == pytest.approx(3 * (found["seconds_per_example"] + 6 * found["seconds_per_cell"]))
    assert not out.exists()


def test_an_estimate_tells_what_a_cell_costs_from_what_an_example_does():
    now = [0.0]

    def load(plan, outline, *, ablations):
        def engine(examples):
            now[0] += len(examples) * (3 + 0.5 * len(ablations))

        return engine

    found = estimate_sweep(SweepPlan(limit=10), load=load, clock=lambda: now[0])
    assert (found.ablations, found.examples, found.cells) == (32, 10, 320)
    assert (found.seconds_per_cell, found.seconds_per_example) == pytest.approx((0.5, 3))
    assert found.seconds == pytest.approx(10 * (3 + 32 * 0.5))


def test_ablations_are_spread_over_all_of_them():
    assert spread(list(range(12)), 4) == [1, 4, 7, 10]
    assert spread(list(range(3)), 12) == [0, 1, 2]


def test_two_processes_give_the_table_of_one(shell, plan_file, tmp_path):
    code, text, noise = torchrun("sweep", plan_file, "--out", tmp_path / "two", "--json")
    assert code == 0, noise
    assert len([line for line in text.splitlines() if line.startswith("{")]) == 1  # the first one speaks
    assert shell("sweep", plan_file, "--out", tmp_path / "one")[0] == 0
    tables = []
    for name in ("one", "two"):
        table = tmp_path / f"{name}.parquet"
        assert shell("sweep", "export", tmp_path / name, "--out", table)[0] == 0
        tables.append(table.read_bytes())
    assert tables[0] == tables[1]
