"""How fast a page of records of real size is and how large: numbers to read, never a verdict.

python -m tests.speed.explorer --json
python -m tests.speed.explorer --maps random --layers 8

``first_paint_ms`` runs from the start of the navigation to the first map on the screen. ``interaction_ms`` is the median of what
happens between an action (a word, a map of the grid, a slider, a key) and the frame that shows what it did, where the maps of the
word are unpacked first; ``word_ms`` is that of words alone. Both are taken from the page itself in Debian's Chromium, without a
GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probe.attention import AttentionRecord
from probe.layers import LayerAttention
from probe.widgets.html import write_html
from tests.records import make_grid, make_record
from tests.widgets.browsers import CHROMIUM_FLAGS, Watched, chromium

__all__ = ["measure", "real_size_record"]

TEXT = "a young man in a red shirt throws a large white frisbee to his brown dog on the green grass near two old trees"
ROUNDS = 12


def real_size_record(*, maps: str = "real", layers: int = 32, heads: int = 32, tokens: int = 50) -> AttentionRecord:
    """A record of 24 x 24 patches whose rows are softmaxes, 30 % of the mass on the image.

    Parameters
    ----------
    maps : "random": of normal logits, which no compression shortens; "real": as language models have them, a few sinks that every
        token looks at, one place that the token is about, and noise, each head more or less sharp.
    """
    words = TEXT.split()
    text = " ".join((words * (tokens // len(words) + 1))[: tokens - 1])
    base = make_record(layers=1, heads=1, text=text, grid=make_grid(24, 24, image_size=(336, 336)))
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:24, :24]
    places = rng.uniform(3, 21, (tokens, 2))
    about = np.exp(-((rows - places[:, :1, None]) ** 2 + (cols - places[:, 1:, None]) ** 2) / 18)
    found = []
    for number in range(layers):
        logits = rng.normal(size=(heads, tokens, 24, 24))
        if maps == "real":
            sinks = np.zeros((24, 24))
            sinks.flat[rng.integers(0, 576, 6)] = rng.uniform(3, 6, 6)
            sharp = rng.uniform(0.3, 1.2, (heads, 1, 1, 1))
            looking = np.where(rng.random((heads, 1, 1, 1)) < 0.2, 4.0, 0.3)
            logits = sharp * logits + looking * about + sinks
        weights = np.exp(logits - logits.max((2, 3), keepdims=True))
        values = torch.from_numpy(0.3 * weights / weights.sum((2, 3), keepdims=True)).float()[None]
        rest = torch.full((1, heads, tokens, 3), 0.7 / 3)
        grid = base.layers[0].grid
        found.append(LayerAttention(f"layers.{number}.self_attn", "image 0", grid, values, values.mean(2), rest))
    return replace(base, layers=tuple(found))


def photograph() -> np.ndarray:
    """(336, 336, 3) uint8: smooth patches and noise, about as large a JPEG as a photograph is."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(40, 220, (8, 8, 3)), np.ones((42, 42, 1)))
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


#: An action, then the time until a frame after all that it changed is drawn.
_TIMED = """async (actions) => {
  const explorer = document.getElementById("explorer").explorer;
  const found = [];
  for (const [kind, value] of actions) {
    await new Promise((done) => setTimeout(done, 30));
    const start = performance.now();
    if (kind === "word") [...document.querySelectorAll(".word:not(:disabled)")][value].click();
    if (kind === "head") explorer.set({ layer: value % explorer.counts().layer, head: (7 * value) % 32 });
    if (kind === "slider") {
      const input = document.querySelector(".slider input");
      input.value = value;
      input.dispatchEvent(new Event("input"));
    }
    if (kind === "key") explorer.root.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
    await explorer.settled;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    found.push([kind, performance.now() - start]);
  }
  return found;
}"""


def measure(page_file: Path, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds of the first paint and of each kind of action, in a fresh browser."""
    from playwright.sync_api import sync_playwright

    actions = [[kind, number + 1] for number in range(rounds) for kind in ("word", "head", "slider", "key")]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        paints = []
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1360, "height": 900})
            page.goto(page_file.as_uri())
            Watched(page).wait()
            paints.append(page.evaluate("document.getElementById('explorer').explorer.firstPaint"))
            timed = page.evaluate(_TIMED, actions) if len(paints) == 3 else []
            page.close()
        browser.close()
    kinds = {kind: [took for one, took in timed if one == kind] for kind, _ in timed}
    return {
        "first_paint_ms": round(statistics.median(paints), 1),
        "interaction_ms": round(statistics.median(took for _, took in timed), 1),
        "slowest_interaction_ms": round(max(took for _, took in timed), 1),
        **{f"{kind}_ms": round(statistics.median(some), 1) for kind, some in kinds.items()},
    }


def kernel_ms(record: AttentionRecord) -> float:
    """Milliseconds that a notebook's kernel takes to make all the maps of a phrase of three tokens."""
    from probe.widgets.packing import pack_heads_quickly, pack_means
    from probe.widgets.sheets import make_sheet

    grids = [one.grid for one in record.layers]
    took = []
    for first in range(5):
        start = time.perf_counter()
        sheet = make_sheet(record, [first, first + 1, first + 2])
        pack_means(sheet, grids, exact=True)
        pack_heads_quickly(sheet, grids)
        took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", choices=("real", "random", "both"), default="both")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for maps in ("real", "random") if arguments.maps == "both" else (arguments.maps,):
        record = real_size_record(maps=maps, layers=arguments.layers)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "view.html"
            start = time.perf_counter()
            page = write_html(record, file, image=photograph())
            numbers: dict[str, Any] = {
                "html_mb": round(page.megabytes, 2),
                "write_s": round(time.perf_counter() - start, 1),
            }
            numbers |= measure(file) | {
                "fewest_levels": page.kept.fewest,
                "median_levels": page.kept.median,
                "kernel_ms": round(kernel_ms(record), 1),
            }
        # The first stands for all; a second kind of maps is told apart by its name.
        found |= numbers if not found else {f"{maps}_{name}": value for name, value in numbers.items()}
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:32}{value}")


if __name__ == "__main__":
    main()
