"""The widget in a real JupyterLab: the browser shows what the kernel has, and Python reads what was clicked."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

import probe
from tests.records import make_record
from tests.widgets.browsers import Watched, lab_server, notebook
from tests.widgets.made import disc, padded_grid, picture
from tests.widgets.test_page import MASKS, STATE, check_pixels, plain, values

pytestmark = pytest.mark.browser

MAKE = """import numpy as np, probe
from tests.widgets.made import disc
record = probe.load("record.safetensors")
view = probe.explore(record, "photo.png", {"red circle": disc(), "blue square": disc(centre=(30, 50))})
view"""
READ = "print('read', view.words, view.layer, view.head, view.timestep, view.reading, '|', float(view.map().sum()))"
SET = "view.words = 'blue square'; view.layer = 0; view.head = 2; print('set')"


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A watched page of JupyterLab with the notebook open and its first cell run, and the record that it shows."""
    pytest.importorskip("anywidget", reason="the extra `widgets` is not installed")
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    folder = tmp_path_factory.mktemp("lab")
    record = make_record(grid=padded_grid())
    probe.save(record, folder / "record.safetensors")
    Image.fromarray(picture()).save(folder / "photo.png")
    notebook(folder / "view.ipynb", MAKE, READ, SET)
    with lab_server(folder) as (address, token):
        window = browser.new_page(viewport={"width": 1400, "height": 1200})
        found = Watched(window)
        window.goto(f"{address}/lab/tree/view.ipynb?token={token}")
        window.wait_for_selector(".jp-Notebook .jp-CodeCell")
        found.until("document.body.innerText.includes('| Idle')")
        run(found, 0)
        found.wait()
        yield found, record
        faults, requests = found.faults, found.requests
        window.close()
    assert not faults
    assert requests
    port = address.rpartition(":")[2]
    assert not [one for one in requests if not re.match(rf"(http|ws)://127\.0\.0\.1:{port}/", one)]


def run(found, cell):
    """Runs a cell of code; ``printed`` is what it then shows."""
    one = found.page.locator(".jp-Notebook .jp-CodeCell").nth(cell)
    one.locator(".jp-InputArea").click()
    found.page.keyboard.press("Shift+Enter")
    return one


def printed(found, cell, wanted):
    one = run(found, cell)
    one.locator(f".jp-OutputArea-output:has-text('{wanted}')").wait_for(timeout=30_000)
    text = one.locator(".jp-OutputArea-output").inner_text()
    one.locator(".jp-InputArea").click()
    return text


def test_what_is_clicked_is_what_python_reads(lab):
    found, record = lab
    np.testing.assert_allclose(values(found), plain(record, [1, 2]).ravel(), atol=1e-7)
    found.page.get_by_role("button", name="blue", exact=True).click()
    found.page.get_by_role("slider", name="layer", exact=True).fill("2")
    found.do(STATE)
    found.page.get_by_role("slider", name="head", exact=True).fill("1")
    expected = plain(record, [5], layer=1, head=0)
    found.do(STATE)
    np.testing.assert_allclose(values(found), expected.ravel(), atol=1e-7)  # exact, though the small maps are rounded
    assert found.do("(explorer) => explorer.panels[0].data.error") == 0
    check_pixels(found, record, expected)
    said = printed(found, 1, "read")
    assert "read blue 1 0 None minus mean |" in said
    assert float(said.split("|")[1]) == pytest.approx(expected.sum(), abs=1e-6)


def test_what_python_sets_is_shown_with_its_scores(lab):
    found, record = lab
    printed(found, 2, "set")
    found.until("document.querySelector('.groundprobe').explorer.state.head === 2")
    expected = plain(record, [5, 6], layer=0, head=2)
    np.testing.assert_allclose(values(found), expected.ravel(), atol=1e-7)
    check_pixels(found, record, expected)
    scores = probe.score_heads([record], [{"blue square": disc(centre=(30, 50))}], metric="auroc").to_frame()
    auroc = scores[(scores["kind"] == "head") & (scores["layer"] == 0) & (scores["head"] == 2)]["value"].item()
    found.page.wait_for_selector(".scores td")
    shown = found.page.locator(".scores tr").nth(1).locator("td").all_inner_texts()
    assert shown[1] == f"{auroc:.3f}"
    assert len(MASKS) == 2


def test_its_keys_are_not_the_notebooks(lab):
    found, _ = lab
    cells = found.page.locator(".jp-Notebook .jp-CodeCell").count()
    found.do("(explorer) => explorer.set({ layer: 1, head: 1, compare: [] })")
    found.page.locator(".grid-head").click()  # on the view: the notebook is then in its command mode
    found.page.locator(".grid").focus()
    assert found.page.locator(".jp-Notebook.jp-mod-commandMode").count() == 1
    # To a notebook "b" means to add a cell, and "x" to cut this one.
    for key in ("c", "b", "h", "a", "ArrowDown", "ArrowDown", "x"):
        found.page.keyboard.press(key)
        found.do(STATE)
    state = found.do(STATE)
    assert (state["layer"], state["head"], len(state["compare"])) == (1, None, 1)
    assert found.page.locator(".jp-Notebook .jp-CodeCell").count() == cells


def test_the_theme_of_the_notebook_is_followed(lab):
    found, record = lab
    found.do("(explorer) => explorer.set({ tokens: [5], layer: 0, head: null, compare: [] })")
    found.page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    found.until("document.querySelector('.groundprobe').classList.contains('dark')")
    check_pixels(found, record, plain(record, [5], layer=0), scheme="dark")
    found.page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    found.until("!document.querySelector('.groundprobe').classList.contains('dark')")


def test_a_kernel_that_is_gone_is_said(lab):
    found, _ = lab
    found.page.evaluate("document.querySelector('.groundprobe').explorer.source.patience = 300")
    found.page.evaluate("document.querySelector('.groundprobe').explorer.source.model.send = () => {}")
    found.page.get_by_role("button", name="and", exact=True).click()
    found.page.wait_for_selector(".groundprobe [role=alert]:has-text('The kernel does not answer')", timeout=10_000)
