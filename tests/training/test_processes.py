"""Two gloo processes under torchrun: the loss of one process within rounding, one folder, one voice, and a run that goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import probe
from probe.lab.trainers import read_curve
from probe.training.courses import train
from tests.training.tiny_training import conversation, plan_of, write_parts, write_records

ROOT = Path(probe.__file__).parents[1]


def torchrun(*argv, processes=2):
    """`probe` on so many processes: exit code, standard output and standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [*command, "-m", "probe.cli", *map(str, argv)],
        capture_output=True,
        text=True,
        env=own,
        timeout=400,
        check=False,
    )
    return found.returncode, found.stdout, found.stderr


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A stage 2 whose records are text alone in every third case, so that one process often has pictures and the other none."""
    root = tmp_path_factory.mktemp("processes")
    parts = {name: value for name, value in write_parts(root / "parts").items() if name != "diffusion"}
    records = write_records(
        root, [conversation(number, image=number % 3 != 0, turns=1 + number % 2) for number in range(7)]
    )
    settings = {
        "stage": 2,
        "prompt": "conversation",
        "steps": 5,
        "device_batch_size": 1,
        "projector_learning_rate": 1e-3,
    }
    plan = plan_of(**parts, **records, **settings)
    (root / "run.yaml").write_text(
        yaml.safe_dump({name: value for name, value in vars(plan).items() if value is not None})
    )
    train("llava", plan, root / "one")
    return root


def test_two_processes_are_one(setting):
    code, printed, noise = torchrun(
        "train", "llava", "--config", setting / "run.yaml", "--out", setting / "two", "--json"
    )
    assert code == 0, noise
    found = json.loads(printed)  # one line: the second process is silent
    assert (found["processes"], found["accumulation"], found["steps"]) == (2, 2, 5)
    one, two = (read_curve(setting / name / "loss.csv") for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=2e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
        assert second["learning_rate"] == first["learning_rate"]
    expected, weights = (load_file(setting / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(value, expected[name], atol=1e-4) for name, value in weights.items())
    print("largest difference of the loss", max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True)))


def test_a_batch_that_two_processes_cannot_share_is_refused(setting, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ("train", "llava", "--config", setting / "run.yaml", "--batch-size", 3)
    line = refused(*argv)
    assert line == "batch_size=3 cannot be cut into device_batch_size=1 on 2 processes: it must be a multiple of 2."
