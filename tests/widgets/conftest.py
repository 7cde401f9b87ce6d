"""A browser, where there is one."""

from __future__ import annotations

import pytest

from tests.widgets.browsers import CHROMIUM_FLAGS, Watched, chromium


@pytest.fixture(scope="module")
def browser():
    """Chromium without a screen; skips, with the reason, where it or its driver is absent."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """``opened(page)`` or ``opened(page, color_scheme="dark")``: a written page in the browser, its first map drawn.

    After the test it must have had no error and asked for nothing but itself.
    """
    watched = []

    def open_page(page, *, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        one = Watched(context.new_page())
        watched.append((one, context, page.path.as_uri()))
        one.page.goto(page.path.as_uri())
        one.wait()
        return one

    yield open_page
    for one, context, address in watched:
        faults, requests = one.faults, one.requests
        context.close()
        assert not faults
        assert requests == [address]
