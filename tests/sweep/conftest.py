"""Sweeps over lab scenes that are drawn once."""

from __future__ import annotations

import os

import pytest

from probe.evaluation import sources
from probe.evaluation.lab import read_lab
from probe.sweep import runner
from probe.sweep.exports import export_table
from probe.sweep.identity import outline_of
from tests.sweep.fake_engine import FakeEngine, plan_of


@pytest.fixture
def drawn(monkeypatch):
    """The lab's scenes and the outline of its model are made once: what is tested is not how long they take."""
    scenes = list(read_lab(limit=9))
    outline = outline_of("lab/llava")
    monkeypatch.setattr(sources, "read_lab", lambda name, *, limit, seed: iter(scenes[:limit]))
    monkeypatch.setattr(runner, "outline_of", lambda name: outline)
    # It takes most of the time, and a killed process loses nothing that the system holds; its place is tested by itself.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return scenes


@pytest.fixture
def unbroken(drawn, tmp_path):
    """The exported bytes of a sweep that nothing disturbed."""
    store = runner.run_sweep(plan_of(), out=tmp_path / "unbroken", engine=FakeEngine())
    export_table(store, tmp_path / "unbroken.parquet")
    return (tmp_path / "unbroken.parquet").read_bytes()
