"""Recording image after image keeps nothing: no tensor stays alive, and resident memory does not grow.

``PROBE_IMAGES=1000`` runs as many; by default there are fewer, which show the same of tensors and little of memory.
"""

from __future__ import annotations

import gc
import os

import psutil
import pytest
import torch

import probe
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava

IMAGES = int(os.environ.get("PROBE_IMAGES", "60"))
WARM = max(20, IMAGES // 5)


def _living():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def _resident():
    return psutil.Process().memory_info().rss


def _run(subject, seed):
    probe.run(subject, picture(seed=seed), "a dog", max_new_tokens=3)


def _record(subject, seed):
    with probe.record(subject) as recorder:
        subject.model.generate(**inputs_of(subject, picture(seed=seed)), max_new_tokens=3, do_sample=False)
    recorder.result()


@pytest.mark.parametrize("one", [_run, _record])
def test_many_images_leave_no_tensor_behind(one, capsys):
    torch.set_num_threads(1)
    subject = tiny_llava(seed=1)
    for seed in range(WARM):
        one(subject, seed)
    tensors, memory = _living(), _resident()
    for seed in range(IMAGES):
        one(subject, seed)
    grown = (_resident() - memory) / 2**20
    with capsys.disabled():
        print(f"\n{IMAGES} images: {_living() - tensors} more tensors, {grown:+.2f} MB of resident memory")
    assert _living() <= tensors
    # Pages that the allocator keeps come and go by more than a few images do, so few images say little of memory.
    assert IMAGES < 1000 or grown <= 1
