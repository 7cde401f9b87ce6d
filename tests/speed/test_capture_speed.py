"""The script that measures recording, run once in small: it prints ratios, and no test fails on a clock."""

from __future__ import annotations

from tests.speed.capture import generation, prefill, ratios, rows_megabytes
from tests.tiny import tiny_llava


def test_recording_beside_the_plain_model_and_eager():
    subject = tiny_llava()
    for name, make in (("one pass", prefill), ("generation", generation)):
        found = ratios(subject, make, 8, pairs=2)
        print(
            f"\n{name} of a tiny model: recorded {found['recorded']['median']:.2f}x, eager {found['eager']['median']:.2f}x"
        )
        assert set(found) == {"plain_seconds", "recorded", "eager"}
        assert found["recorded"]["low"] <= found["recorded"]["median"] <= found["recorded"]["high"]


def test_the_rows_that_were_asked_for_are_counted_in_full():
    assert rows_megabytes("llava-1.5-7b", 1) == 32 * 32 * 576 * 4 / 1e6
