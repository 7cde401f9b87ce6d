"""Crashes, hangs and memory are seen where bad input is tried."""

from __future__ import annotations

import os
import signal
import time

from tests.trust import isolated
from tests.trust.isolated import outcomes


def act(item):
    if item == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "raise":
        raise RuntimeError
    if item == "wait":
        time.sleep(60)
    if item == "work":
        while True:
            pass
    if item == "memory":
        return len(b"x" * 100 * 2**20)
    if item == "too much":
        try:
            return len(b"x" * 600 * 2**20)
        except MemoryError:
            return "refused"
    return item


def test_each_fault_is_told_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(isolated, "WAIT", 1.0)
    given = ["a", "crash", "b", "raise", "wait", "c", "memory", "d", "too much", "work", "e"]
    found = list(outcomes(act, given))
    assert [one.item for one in found] == given
    kinds = {one.item: one.kind for one in found}
    assert {item: kind for item, kind in kinds.items() if kind != "done"} == {
        "crash": "crash", "raise": "crash", "wait": "hang", "work": "hang",
    }  # fmt: skip
    peaks = {one.item: one.peak for one in found}
    assert 90 * 2**20 < peaks["memory"] < 130 * 2**20
    assert peaks["d"] < 10 * 2**20
    assert next(one.value for one in found if one.item == "too much") == "refused"
