"""Saved records and plans with anything in them: one typed line, nothing half-written, nothing that fails later."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, safe_open, save_file

import probe
from probe import files
from probe.cli import main
from probe.errors import InputError, ProbeError
from probe.protocols import evaluation
from probe.sweep import runner
from probe.sweep.plan import SweepPlan, read_plan
from probe.training import courses
from tests.records import make_record
from tests.trust.damage import BYTES, flipped, spoilt
from tests.trust.isolated import MEMORY, outcomes

TARGET = "0 crashes, 0 tracebacks, one typed line, nothing half-written"


def used(path: Path) -> None:
    """Reads the record and does with it what everything downstream does."""
    record = probe.load(path)
    repr(record)
    record._repr_html_()
    for use in (
        lambda: record.heatmap(reading="attention"),
        lambda: record["red circle"].heatmap(),
        lambda: record.mean("head", "layer", "token").stack(),
        lambda: probe.score_heads([record] * 2, [{"red circle": np.eye(32, dtype=bool)}] * 2, metric="pointing"),
        lambda: probe.save(record, path.with_name("again.safetensors")),
    ):
        with contextlib.suppress(ProbeError):
            use()


def told(action) -> dict[str, str]:
    try:
        action()
    except ProbeError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"escaped": f"{type(error).__name__}: {error}"}
    return {}


def counted(line, found, *, name: str, share: tuple[float, float]) -> None:
    """Counts each outcome; as many as this share of them have to be refusals, or the damage was none."""
    for one in found:
        refusal = (one.value or {}).get("refused")
        typed = refusal is not None and name in refusal and len(refusal) < 2000
        ok = one.kind == "done" and one.peak <= MEMORY and (typed or one.value == {})
        line.trial(ok, what=f"{one.item}: {one.kind} {one.value} {one.peak:,} bytes")
    line.settle()
    refusals = sum("refused" in (one.value or {}) for one in found)
    assert share[0] * len(found) <= refusals <= share[1] * len(found)


def forged(dice: np.random.Generator, whole: Path, target: Path) -> None:
    """A record whose header or tensors are spoilt and whose checksum is right, as only somebody with a purpose makes it."""
    tensors = load_file(whole)
    with safe_open(whole, framework="pt") as opened:
        header = json.loads(opened.metadata()["header"])
    if dice.random() < 0.7:
        header = spoilt(dice, header)
    else:
        name = list(tensors)[dice.integers(len(tensors))]
        changes = [
            lambda tensor: tensor[..., :1],
            lambda tensor: tensor.reshape(-1),
            lambda tensor: tensor.to(torch.int64),
            lambda tensor: torch.full_like(tensor, torch.nan),
            lambda tensor: tensor[:0],
            lambda tensor: tensor.to(torch.bool),
        ]
        tensors[name] = changes[dice.integers(len(changes))](tensors[name]).contiguous()
    text = json.dumps(header)
    digest = files._digest(text, tensors)
    save_file(tensors, target, metadata={"groundprobe": "1", "header": text, "sha256": digest})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.promises("R23")
def test_forged_records(line, full, tmp_path):
    number = 3000 if full else 250
    records = line("R23", target=TARGET, least=number)
    whole, path = probe.save(make_record(), tmp_path / "whole.safetensors"), tmp_path / "record.safetensors"

    def action(seed):
        forged(np.random.default_rng([23, seed]), whole, path)
        return told(lambda: used(path))

    counted(records, list(outcomes(action, range(number))), name=str(path), share=(0.2, 0.95))


@pytest.mark.promises("R23")
def test_damaged_records(line, full, tmp_path):
    number = 3000 if full else 250
    records = line("R23", target=TARGET, least=number)
    data, path = probe.save(make_record(), tmp_path / "whole.safetensors").read_bytes(), tmp_path / "record.safetensors"

    def action(seed):
        dice = np.random.default_rng([230, seed])
        path.write_bytes(flipped(dice, data, first=64 if dice.random() < 0.3 else None))
        return told(lambda: used(path))

    counted(records, list(outcomes(action, range(number))), name=str(path), share=(0.9, 1))


PLANS = {
    "sweep": (
        "limit: 3\nchunk: 2\nlayers: 0-1\nheads: 0, 2\nhow: [zero, mean]\neffects: auroc\nprompt: Describe.\n",
        ["sweep"],
    ),
    "evaluate": (
        "model: lab/llava\ndata: lab\nlimit: 3\nmax_new_tokens: 8\nrefiner: threshold\nprompt: Describe.\n",
        ["evaluate", "gcg", "--config"],
    ),
    "train": ("stage: 1\nsteps: 3\ndata: records.json\nprompt: plain\n", ["train", "llava", "--config"]),
}
#: What a YAML file can hold that a plan never does.
HOSTILE = (
    "!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "&a [*a, *a]", "{? [1]: 2}", "2001-99-99",
    "!!binary x", "\x00", "\x1b[2J", "'\x1b[2J'", "1e999", ".nan", "- - - - -", "? ", "<<: 3", "%YAML 9.9", "[" * 2000, "0x", "1_0",
    "{" * 2000, "a: &a {<<: *a}", "!!set {1}", "!!timestamp 1", "\ud800",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c]\n"
    "e: &e [*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e]\nlimit: [*f,*f,*f,*f,*f,*f,*f]",
)  # fmt: skip


def spoilt_plan(dice: np.random.Generator, text: str) -> bytes:
    kind = dice.random()
    if kind < 0.4:
        return yaml.safe_dump(spoilt(dice, yaml.safe_load(text))).encode("utf-8", "replace")
    if kind < 0.6:
        return flipped(dice, text.encode())
    lines = text.splitlines()
    place = int(dice.integers(len(lines)))
    strange = HOSTILE[dice.integers(len(HOSTILE))] if kind < 0.9 else BYTES[dice.integers(len(BYTES))].decode("latin-1")
    if dice.random() < 0.5:
        lines[place] = f"{lines[place].split(':')[0]}: {strange}"
    else:
        lines.insert(place, strange)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def reached(*given: Any, **options: Any) -> None:
    raise InputError("reached")


@pytest.mark.promises("R23")
def test_damaged_plans(line, full, tmp_path, monkeypatch):
    number = 1500 if full else 120
    plans = line("R23", target=TARGET, least=number)
    monkeypatch.chdir(tmp_path)
    for module, name in ((evaluation, "evaluate"), (runner, "run_sweep"), (courses, "train")):
        monkeypatch.setattr(module, name, reached)
    path, out = tmp_path / "plan.yaml", tmp_path / "out"

    def action(seed):
        text, command = list(PLANS.values())[seed % len(PLANS)]
        path.write_bytes(spoilt_plan(np.random.default_rng([231, seed]), text))
        noise = io.StringIO()
        try:
            with contextlib.redirect_stderr(noise):
                code = main([*command, str(path), "--out", str(out)])
        except BaseException as error:
            return {"escaped": f"{type(error).__name__}: {error}"}
        said = noise.getvalue()
        fine = code == 2 and said.startswith("probe: ") and said.count("\n") == 1 and said[:-1].isprintable()
        return {"refused": said[:1500]} if fine else {"escaped": f"{code} {said[:1500]}"}

    found = list(outcomes(action, range(number)))
    assert not out.exists()
    assert not (tmp_path / "executed").exists()
    assert 0.03 * number < sum("reached" in one.value.get("refused", "") for one in found if one.value) < 0.8 * number
    counted(plans, found, name="probe: ", share=(1, 1))


@pytest.mark.promises("R23")
def test_plans_that_are_no_files(line, tmp_path):
    """Pipes, devices and folders are refused before anybody waits for them."""
    plans = line("R23", target=TARGET, least=4)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "absent"):
        found = next(outcomes(lambda path: told(lambda: read_plan(path)), [str(place)]))
        plans.trial(found.kind == "done" and str(place) in found.value.get("refused", ""), what=f"{place}: {found}")
    assert read_plan(_written(tmp_path / "right.yaml")) == SweepPlan(limit=3)
    plans.settle()


def _written(path: Path) -> Path:
    path.write_text("limit: 3\n")
    return path
