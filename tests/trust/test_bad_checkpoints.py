"""Folders of models with anything in them: one typed line, or a model that is recorded truthfully."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import probe
from probe.errors import ProbeError
from tests.trust.damage import BYTES, flipped, spoilt
from tests.trust.isolated import outcomes

ANSWER = "a man with a red ball"


def damage(dice: np.random.Generator, folder: Path) -> str:
    """The name of the one file that was spoilt: its values where it is JSON, its bytes, or the head of a weight file."""
    path = sorted(folder.iterdir())[dice.integers(len(list(folder.iterdir())))]
    kind, data = dice.random(), path.read_bytes()
    if kind < 0.6 and path.suffix == ".json":
        path.write_text(json.dumps(spoilt(dice, json.loads(data))))
    elif kind < 0.8:
        path.write_bytes(flipped(dice, data, first=2000 if path.suffix == ".safetensors" else None))
    elif kind < 0.9:
        path.unlink()
    else:
        path.write_bytes(BYTES[dice.integers(len(BYTES))])
    return path.name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.promises("R23")
def test_damaged_checkpoints(line, full, tmp_path, checkpoint):
    number = 600 if full else 60
    target = "0 crashes, 0 tracebacks, one typed line, nothing half-written"
    models = line("R23", target=target, least=number)
    folder, image = (
        tmp_path / "model",
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)),
    )

    def action(seed):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkpoint(), folder)
        name = damage(np.random.default_rng([232, seed]), folder)
        try:
            record = probe.run(probe.load_model(folder), image, "Describe the image.", answer=ANSWER).record
        except ProbeError as error:
            return {"file": name, "refused": str(error)}
        except Exception as error:
            return {"file": name, "escaped": f"{type(error).__name__}: {error}"}
        return {"file": name, "passed": record.certificate.passed}

    checkpoint()
    found = list(outcomes(action, range(number)))
    for one in found:
        value = one.value or {}
        typed = "\n" not in value.get("refused", "\n") and len(value["refused"]) < 2000
        ok = one.kind == "done" and (typed or value.get("passed") is True)
        models.trial(ok, silent=value.get("passed") is False, what=f"{one.item}: {one.kind} {value}"[:1000])
    models.settle()
    assert 0.3 * number < sum("refused" in (one.value or {}) for one in found) < 0.95 * number
