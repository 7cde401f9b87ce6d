"""Takes the picture of the explorer in ``docs/images/explorer.png``, of the record that the README's figure is drawn from.

``python docs/explorer_image.py`` needs Chromium and playwright, and no model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import probe
from probe.widgets.html import write_html

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.widgets.browsers import CHROMIUM_FLAGS, Watched, chromium  # noqa: E402 - tests are no installed package

DATA, IMAGE = ROOT / "figures" / "data", ROOT / "docs" / "images" / "explorer.png"
#: The paper's map of a phrase, and beside it one head.
START = {"compare": [{"layer": 2, "head": 4}]}
SIZE = {"width": 1180, "height": 900}


def main() -> None:
    from playwright.sync_api import sync_playwright

    phrases = json.loads((DATA / "readme.json").read_text(encoding="utf-8"))["phrases"]
    levels = np.asarray(Image.open(DATA / "readme-masks.png"))
    masks = {phrase: levels == level for level, phrase in enumerate(phrases, start=1)}
    record = probe.load(DATA / "readme.safetensors")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = write_html(record, Path(folder) / "view.html", image=DATA / "readme.png", masks=masks, start=START)
        browser = driver.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        window = browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        watched = Watched(window)
        window.goto(page.path.as_uri())
        watched.wait()
        watched.do("(explorer) => explorer.root.blur()")
        window.wait_for_selector(".scores td")
        IMAGE.parent.mkdir(exist_ok=True)
        window.screenshot(path=IMAGE, full_page=True)
        browser.close()
    print(IMAGE)


if __name__ == "__main__":
    main()
