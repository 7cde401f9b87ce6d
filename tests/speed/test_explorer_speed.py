"""How fast a page is; printed, never asserted, because the clock belongs to the machine. Run with ``pytest -s``."""

from __future__ import annotations

import pytest

from probe.widgets.html import write_html
from tests.speed.explorer import measure, photograph, real_size_record
from tests.widgets.browsers import chromium


@pytest.mark.browser
def test_a_page_of_a_quarter_of_the_layers(tmp_path):
    pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    if chromium() is None:
        pytest.skip("no Chromium on this machine")
    page = write_html(real_size_record(layers=4, tokens=20), tmp_path / "view.html", image=photograph())
    found = measure(page.path, rounds=2)
    print(f"\n4 layers x 32 heads x 20 tokens, {page.megabytes:.1f} MB: {found}")
    assert {"first_paint_ms", "interaction_ms", "word_ms"} <= set(found)
