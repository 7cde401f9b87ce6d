"""R17, R18: recording image after image keeps nothing, and recording a long text takes the memory of the rows asked for."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import probe
from probe.evaluation import sources
from probe.evaluation.examples import Example, ExamplePhrase
from probe.sweep import runner
from probe.sweep.ablations import Ablation
from probe.sweep.engine import Engine
from tests.capture.reference import inputs_of
from tests.capture.test_diffusion import generate
from tests.speed.capture import prefill
from tests.sweep.fake_engine import plan_of
from tests.tiny import picture, tiny_clip, tiny_llava
from tests.tiny_diffusion import tiny_sd
from tests.watch import REPOSITORY

KEPT = "0 more live tensors, <= 1 MB more resident memory over 1,000 images"
MEGABYTE = 2**20
STATUS = Path("/proc/self/status")
#: The C library then gives every large block back, where it would keep tens of megabytes, more or fewer from run to run.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
ABLATIONS = [Ablation("head", 1, 0), Ablation("head", 1, 1)]
EFFECTS = ("log_probability",)


def _living():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def _resident():
    """Resident bytes, without the free pages that the C library keeps for later, which come and go by megabytes."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def _example(seed):
    mask = np.zeros((40, 56), bool)
    mask[5:30, 10:40] = True
    phrase = ExamplePhrase("red ball", 13, 21, mask)
    return Example(f"image {seed}", picture(seed=seed), "a man with a red ball", (phrase,))


def _running():
    subject = tiny_llava(seed=1)
    return lambda seed: probe.run(subject, picture(seed=seed), "a dog", max_new_tokens=3)


def _recording():
    subject = tiny_llava(seed=1)

    def record(seed):
        with probe.record(subject) as recorder:
            subject.model.generate(**inputs_of(subject, picture(seed=seed)), max_new_tokens=3, do_sample=False)
        recorder.result()

    return record


def _breaking():
    # What an error holds must go with it.
    subject = tiny_llava(seed=1)

    def record(seed):
        with probe.record(subject) as recorder:
            subject.model.generate(**inputs_of(subject, picture(seed=seed)), max_new_tokens=3, do_sample=False)
        with pytest.raises(probe.ProbeError, match="is not the one that the model saw"):
            recorder.result(image=picture(seed=seed + 1))

    return record


def _ablating():
    engine = Engine(tiny_llava(seed=1), ABLATIONS, EFFECTS)
    return lambda seed: engine([_example(seed)])


def _comparing():
    subject = tiny_clip()
    return lambda seed: probe.run(subject, picture(seed=seed), "a dog")


def _drawing():
    pipeline = tiny_sd()

    def record(seed):
        with probe.record(pipeline) as recorder:
            generate(pipeline, steps=1)
        recorder.result()

    return record


@pytest.mark.promises("R17")
@pytest.mark.parametrize("make", [_running, _recording, _breaking, _ablating, _comparing, _drawing])
def test_many_images_leave_nothing_behind(make, line, full):
    images = 1000 if full else 24
    kept, one = line("R17", target=KEPT, least=images), make()
    for seed in range(200 if full else 8):
        one(seed)
    tensors, memory = _living(), _resident()
    for seed in range(images):
        one(seed)
    more = _living() - tensors
    kept.add(trials=images, failures=int(more > 0), silent_wrong=int(more > 0), what=f"{more} more tensors")
    grown = (_resident() - memory) / MEGABYTE
    kept.trial(grown <= 1, silent=True, what=f"{grown:+.2f} MB of resident memory")
    kept.settle()


@pytest.mark.promises("R17")
def test_a_sweep_leaves_nothing_behind(line, full, tmp_path, monkeypatch):
    images = 1000 if full else 16
    kept, seen, number = line("R17", target=KEPT, least=images), [], [0]
    engine = Engine(tiny_llava(seed=1), ABLATIONS, EFFECTS)

    class Watched:
        """The engine itself; now and then it is noted how much is alive."""

        batch = engine.batch

        def __call__(self, examples):
            number[0] += 1
            if number[0] % (images // 4) == 0:
                seen.append((_living(), _resident()))
            return engine(examples)

    given = lambda name, *, limit, seed: (_example(one) for one in range(limit))  # noqa: E731
    monkeypatch.setattr(sources, "read_lab", given)
    runner.run_sweep(plan_of(limit=images, effects=EFFECTS, chunk=1), out=tmp_path / "out", engine=Watched())
    assert len(seen) == 4
    more = seen[-1][0] - seen[0][0]
    kept.add(trials=images, failures=int(more > 0), silent_wrong=int(more > 0), what=f"{more} more tensors")
    grown = (seen[-1][1] - seen[0][1]) / MEGABYTE
    kept.trial(grown <= 1, silent=True, what=f"{grown:+.2f} MB of resident memory")
    kept.settle()


def _peak(action):
    """(what it gives out, peak resident bytes while it runs): the kernel keeps the highest mark, and lets it be lowered."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    found = action()
    [mark] = [one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM:")]
    return found, int(mark.split()[1]) * 1024


def more_than_plain(layers, heads, tokens):
    """(bytes of the rows recorded, peak resident bytes beyond those of the plain pass)."""
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 16}
    subject = tiny_llava(
        size=336, patch=14, hidden_size=64, intermediate_size=96, max_position_embeddings=8192, initializer_range=0.05, **sizes
    )  # fmt: skip
    plain, recorded = (prefill(subject, way, tokens) for way in ("plain", "recorded"))
    plain()  # what the allocator keeps of the first pass is there for both
    _, before = _peak(plain)
    record, during = _peak(recorded)
    return sum(one.values.numel() * one.values.element_size() for one in record.layers), during - before


@pytest.mark.skipif(not STATUS.is_file(), reason="peak memory is read from /proc, which this system has not")
@pytest.mark.promises("R18")
@pytest.mark.parametrize(("layers", "heads"), [(4, 4), (2, 8), (8, 2)])
def test_peak_memory_is_that_of_the_rows_asked_for(layers, heads, line, full):
    peak = line("R18", target="<= 1.2 x the rows asked for plus one layer's chunk, at 3,000 tokens")
    for tokens in (1000, 2000, 3000) if full else (3000,):
        # In a process of its own: how the memory of thousands of tests before is cut up is no matter of this one.
        ask = f"from tests.trust.test_memory import more_than_plain as m; print(*m({layers}, {heads}, {tokens}))"
        run = {"cwd": REPOSITORY, "env": os.environ | RETURNED, "capture_output": True, "text": True, "check": True}
        told = subprocess.run([sys.executable, "-c", ask], **run)
        rows, extra = map(int, told.stdout.split())
        assert rows == layers * heads * tokens * 24 * 24 * 4
        # 64 rows of all heads over all keys: as logits, masked, and as weights.
        chunk = 3 * heads * 64 * (tokens + 640) * 4
        peak.trial(extra <= 1.2 * rows + chunk, what=f"{tokens} tokens: {extra / rows:.2f} times the rows")
    peak.settle()
