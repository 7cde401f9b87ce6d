"""How long scoring takes; printed, never asserted, because the clock belongs to the machine. Run with ``pytest -s``."""

from __future__ import annotations

from tests.speed.evaluation import ratio


def test_streaming_against_a_plain_scan() -> None:
    # That both find the same is checked inside, and stops the run.
    found = ratio(images=12, pairs=1)
    print(
        f"\n12 images: plain scan {found['naive_seconds']:.2f} s, streamed {found['streamed_seconds']:.2f} s with intervals"
    )
    assert found["images"] == 12
