"""The same command again, in other processes, with other hash seeds and other shares of the work: the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]

# Everything is below the current folder, so that no path differs. What is printed counts too.
COMMANDS = """
import contextlib, hashlib, io, json, pathlib, sys
from probe.cli import main
from PIL import Image
import torch
torch.set_num_threads(1)
Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 100).convert("RGB").save("picture.png")
pathlib.Path("plan.yaml").write_text("limit: 2\\nchunk: 1\\nlayers: 0\\nheads: 0-1\\neffects: auroc\\nreference_limit: 2\\n")
answer = ["--answer", "a large red circle and a small blue square"]
shares = lambda *argv: [[*argv, "--shard", f"{share}/3"] for share in (2, 0, 1)]
whole = {
    "scenes": [["lab", "scenes", "--count", "3", "--out", "scenes"]],
    "record": [["record", "picture.png", "Describe the image.", *answer, "--out", "record"]],
    "segment": [["segment", "picture.png", "Describe the image.", *answer, "--refiner", "superpixels", "--out", "segment"]],
    "score": [["score", "--limit", "3", "--out", "score"]],
    "compare": [["compare", "lab/clip", "lab/llava", "--limit", "3", "--out", "compare"]],
    "gcg": [["evaluate", "gcg", "--limit", "4", "--out", "gcg"]],
    "res": [["evaluate", "res", "--data", "scenes", "--limit", "4", "--out", "res"]],
    "sweep": [["sweep", "plan.yaml", "--out", "sweep"], ["sweep", "export", "sweep", "--out", "sweep.parquet"],
              ["sweep", "export", "sweep", "--out", "sweep.csv"]],
}
shared = whole | {
    "gcg": shares("evaluate", "gcg", "--limit", "4", "--out", "gcg"),
    "res": shares("evaluate", "res", "--data", "scenes", "--limit", "4", "--out", "res"),
    "sweep": [*shares("sweep", "plan.yaml", "--out", "sweep"), *whole["sweep"][1:]],
}
found = {}
for name in sys.argv[2].split(","):
    for argv in {"whole": whole, "shared": shared}[sys.argv[1]][name]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = main([*argv, "--json"])
        assert code == 0, argv
    if "--shard" not in argv and name != "sweep":
        found[f"{name}: what it says"] = said.getvalue()
for path in sorted(pathlib.Path().rglob("*")):
    if path.is_file():
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
print(json.dumps(found))
"""


def started(folder: Path, way: str, commands: str, seed: str) -> subprocess.Popen:
    folder.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMANDS, way, commands],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


def ended(process: subprocess.Popen) -> dict[str, str]:
    """Name -> digest of every file that the commands left, and what they said."""
    out, noise = process.communicate()
    assert process.returncode == 0, noise
    return json.loads(out.splitlines()[-1])


@pytest.mark.promises("R35")
def test_the_same_commands_write_the_same_bytes(line, full, tmp_path):
    """With every hash seed; at once, and in three shares of which the last comes first. Every file counts, and what is said."""
    commands = "scenes,record,segment,score,compare,gcg,res,sweep" if full else "scenes,record,score,res,sweep"
    ways = [("whole", "0"), ("shared", "random")]
    ways += [("whole", "1"), ("whole", "4294967295"), ("shared", "2")] if full else []
    same = line("R35", target="0 files with other bytes", least=200 if full else 25)
    running = [started(tmp_path / f"{number}", way, commands, seed) for number, (way, seed) in enumerate(ways)]
    first, *others = map(ended, running)
    assert {"res/scores.json", "res/index.html", "res/images.parquet", "sweep.csv", "record/record.safetensors"} <= set(
        first
    )
    for way, other in zip(ways[1:], others, strict=True):
        for name in sorted(first.keys() | other.keys()):
            said_by_shares = name not in other and name.endswith("what it says")
            if not said_by_shares:
                same.trial(first.get(name) == other.get(name), silent=True, what=f"{name}, {way}")
    same.settle()
