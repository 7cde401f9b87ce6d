"""The page in a real browser: what is drawn is what Python has, however it was asked for."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import numpy as np
import pytest

from probe.widgets.contents import _colours
from probe.widgets.html import write_html
from tests.records import make_grid, make_record
from tests.widgets.made import HOSTILE, disc, hostile_record, padded_grid, picture, ragged_record

pytestmark = pytest.mark.browser

MASKS = {"red circle": disc(), "blue square": disc(centre=(30, 50))}
#: The map's pixel of the canvas at an image position, as red, green, blue and opacity.
PIXEL = """(explorer, [index, row, col]) => {
  const panel = explorer.panels[index], { map, view } = panel;
  const at = [Math.floor(row / view.size[0] * map.height), Math.floor(col / view.size[1] * map.width)];
  return Array.from(map.getContext("2d").getImageData(at[1], at[0], 1, 1).data);
}"""
VALUES = "(explorer, index) => Array.from(explorer.panels[index].data.values)"
STATE = "(explorer) => explorer.state"


def plain(record, tokens, *, layer=None, head=None, steps=(0,), subtract=True):
    """The map by the plainest lines: means over steps, tokens, heads and layers of one grid."""
    chosen = record.layers if layer is None else [record.layers[layer]]
    maps = []
    for one in chosen:
        values = one.values.double().numpy()[list(steps)][:, :, list(tokens)].mean((0, 2))
        values = values - one.token_mean.double().numpy()[list(steps)].mean(0) * subtract
        maps.append(values.mean(0) if head is None else values[head])
    return np.mean(maps, axis=0)


def values(opened_page, panel=0):
    return np.array(opened_page.do(VALUES, panel))


def check_pixels(opened_page, record, expected, *, panel=0, layer=0, scheme="light"):
    """The middle of every patch that shows some of the image has the colour of its value on the panel's own scale."""
    table = np.frombuffer(base64.b64decode(_colours()[scheme]), dtype=np.uint8).reshape(256, 4).astype(int)
    low, high = opened_page.do("(explorer, index) => explorer.panels[index].limits", panel)
    grid = record.layers[layer].grid
    seen = grid.weight > 0
    assert low == 0
    drawn = 0
    for row, col in np.argwhere(seen):
        top, left, bottom, right = grid.boxes[row, col]
        pixel = opened_page.do(PIXEL, [panel, (top + bottom) / 2, (left + right) / 2])
        value = expected[row, col]
        if value < 0:
            assert pixel[3] == 0
            continue
        place = (value - low) / (high - low) * 255
        near = table[[int(np.clip(np.floor(place), 0, 255)), int(np.clip(np.ceil(place), 0, 255))]]
        # A canvas keeps colours multiplied by their opacity: where that is small, few digits of them are left.
        loss = 2 + 255 / max(pixel[3], 1)
        assert abs(pixel[3] - near[:, 3]).min() <= 1
        if pixel[3] > 30:
            assert (abs(np.array(pixel[:3]) - near[:, :3]) <= loss).all(1).any(), (row, col, pixel, near)
        drawn += 1
    assert drawn > 5
    return high


def test_a_word_that_is_clicked_is_drawn_as_python_has_it(opened, tmp_path):
    record = make_record(grid=padded_grid())
    found = opened(write_html(record, tmp_path / "view.html", image=picture(), masks=MASKS))
    np.testing.assert_allclose(values(found), plain(record, [1, 2]).ravel(), atol=1e-7)
    found.page.get_by_role("button", name="blue", exact=True).click()
    assert found.do(STATE)["tokens"] == [5]
    expected = plain(record, [5])
    np.testing.assert_allclose(values(found), expected.ravel(), atol=1e-7)
    high = check_pixels(found, record, expected)
    assert high == pytest.approx(expected[record.layers[0].grid.weight > 0].max(), rel=1e-6)
    numbers = found.page.locator(".bar-numbers span").all_inner_texts()
    assert float(numbers[0]) == 0
    assert float(numbers[2]) == pytest.approx(high, rel=6e-3)
    # A phrase is the mean of its tokens, also where it is clicked as a chip.
    found.page.get_by_role("button", name="blue square", exact=True).click()
    np.testing.assert_allclose(values(found), plain(record, [5, 6]).ravel(), atol=1e-7)


def test_rounded_maps_are_off_by_no_more_than_is_said(opened, tmp_path):
    # Without padding, which is 0 in every map and would be its commonest number.
    record = make_record(layers=4, heads=8, grid=make_grid(16, 16, image_size=(40, 64)))
    page = write_html(record, tmp_path / "view.html", megabytes=0.2)
    assert not page.kept.exact
    assert page.kept.fewest
    found = opened(page)
    seen = record.layers[0].grid.weight.ravel() > 0
    for state, tokens, options in (
        ({"layer": 3, "head": 5, "tokens": [5, 6]}, [5, 6], {}),
        ({"layer": 1, "head": 0, "tokens": [2], "reading": "attention"}, [2], {"subtract": False}),
        ({"layer": 1, "head": None}, [2], {"subtract": False}),
    ):
        found.do("(explorer, state) => explorer.set(state)", state)
        expected = plain(record, tokens, layer=state["layer"], head=state["head"], **options).ravel()
        error = found.do("(explorer) => explorer.panels[0].data.error")
        off = np.abs(values(found) - expected)[seen].max()
        assert 0 < off <= error * (1 + 1e-4)
    assert page.kept.said in found.page.locator(".facts").inner_text()
    found.do("(explorer) => explorer.hover([20, 30])")
    said = found.page.locator(".panel .readout").inner_text()
    value, error = map(float, re.search(r": (-?[\d.]+) ± ([\d.]+);", said).groups())
    cell = record.layers[0].grid.boxes
    row, col = np.argwhere((cell[..., 0] <= 20) & (cell[..., 2] > 20) & (cell[..., 1] <= 30) & (cell[..., 3] > 30))[0]
    assert f"row {row}, col {col}:" in said
    assert abs(value - plain(record, [2], layer=1, subtract=False)[row, col]) <= 2 * error


def test_sliders_go_through_layers_heads_timesteps_and_records(opened, tmp_path):
    one, other = ragged_record(), ragged_record(seed=1)
    found = opened(write_html([one, other], tmp_path / "view.html", labels=["step 0", "step 9"], start={"tokens": [2]}))
    slider = {
        name: found.page.get_by_role("slider", name=name, exact=True)
        for name in ("layer", "head", "timestep", "record")
    }
    slider["layer"].fill("2")
    found.do(STATE)
    slider["head"].fill("3")
    found.do(STATE)
    slider["timestep"].fill("2")
    np.testing.assert_allclose(values(found), plain(one, [2], layer=1, head=2, steps=[1]).ravel(), atol=1e-7)
    assert "timestep 500" in found.page.locator(".panel-name").inner_text()
    slider["record"].fill("1")
    np.testing.assert_allclose(values(found), plain(other, [2], layer=1, head=2, steps=[1]).ravel(), atol=1e-7)
    assert found.page.locator(".heading").inner_text() == "step 9 (record 2 of 2)"
    slider["layer"].fill("1")  # the first layer has two heads
    assert found.do(STATE)["head"] == 1
    np.testing.assert_allclose(values(found), plain(other, [2], layer=0, head=1, steps=[1]).ravel(), atol=1e-7)
    slider["layer"].fill("0")
    state = found.do(STATE)
    assert (state["layer"], state["head"]) == (None, None)


def test_a_map_of_the_grid_is_pinned_and_compared_on_one_scale(opened, tmp_path):
    record = make_record(grid=padded_grid())
    found = opened(write_html(record, tmp_path / "view.html", image=picture(), masks=MASKS))
    place = """(explorer, [layer, head]) => {
      const { grid } = explorer, box = grid.root.getBoundingClientRect();
      return [box.left + grid.x(head + 1) + grid.cellWidth / 2, box.top + grid.y(layer) + grid.cellHeight / 2];
    }"""
    found.page.mouse.click(*found.do(place, [1, 0]))
    assert [found.do(STATE)[one] for one in ("layer", "head")] == [1, 0]
    found.page.keyboard.down("Shift")
    found.page.mouse.click(*found.do(place, [0, 2]))
    found.page.keyboard.up("Shift")
    assert found.do(STATE)["compare"] == [{"layer": 0, "head": 2}]
    maps = [plain(record, [1, 2], layer=1, head=0), plain(record, [1, 2], layer=0, head=2)]
    for panel, expected in enumerate(maps):
        np.testing.assert_allclose(values(found, panel), expected.ravel(), atol=1e-7)
        check_pixels(found, record, expected, panel=panel)
    seen = record.layers[0].grid.weight > 0
    limits = [found.do("(explorer, index) => explorer.panels[index].limits", index) for index in (0, 1)]
    assert limits[0] == limits[1] == [0, pytest.approx(max(one[seen].max() for one in maps), rel=1e-6)]
    assert "one scale for all maps" in found.page.locator(".bar-label").inner_text()
    # Both follow another word; a word that is shift-clicked is compared itself.
    found.page.get_by_role("button", name="blue", exact=True).click(modifiers=["Shift"])
    found.page.get_by_role("button", name="circle", exact=True).click()
    np.testing.assert_allclose(values(found, 1), plain(record, [2], layer=0, head=2).ravel(), atol=1e-7)
    np.testing.assert_allclose(values(found, 2), plain(record, [5], layer=1, head=0).ravel(), atol=1e-7)
    found.page.locator(".close").nth(1).click()
    assert found.do(STATE)["compare"] == [{"tokens": [5]}]
    for head in range(3):
        for layer in range(2):
            found.do("(explorer, one) => explorer.compare(one)", {"layer": layer, "head": head})
    found.do("(explorer) => explorer.compare({ layer: 0 })")
    assert len(found.do("(explorer) => explorer.panels.map((one) => one.badge.textContent)")) == 8
    assert "At most 8 maps" in found.page.get_by_role("alert").inner_text()


def test_small_maps_are_drawn_from_the_same_numbers(opened, tmp_path):
    record = make_record(grid=padded_grid())
    found = opened(write_html(record, tmp_path / "view.html", image=picture()))
    atlas = found.do(
        """(explorer) => [0, 1].map((layer) => {
          const canvas = explorer.grid.atlas(layer, false);
          return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
        })"""
    )
    high = found.do("(explorer) => explorer.grid.shared[1]")
    tokens = [0, 1, 2]
    seen = record.layers[0].grid.weight > 0
    every = np.concatenate([plain(record, tokens, layer=i, head=j)[seen] for i in range(2) for j in range(3)])
    assert high == pytest.approx(np.sort(every)[int(0.995 * (every.size - 1))], rel=1e-5)
    table = np.frombuffer(base64.b64decode(_colours()["light"]), dtype=np.uint8).reshape(256, 4)
    for layer in range(2):
        pixels = np.array(atlas[layer]).reshape(8, 4, 8, 4)  # row, map, col, colour
        for place, head in enumerate((None, 0, 1, 2)):
            expected = plain(record, tokens, layer=layer, head=head)
            opacity = table[np.clip(np.floor(expected / high * 255 + 0.5), 0, 255).astype(int), 3]
            assert np.abs(pixels[:, place, :, 3].astype(int) - opacity).max() <= 4  # one colour's step at most


def test_scores_stand_beside_the_map_of_a_phrase(opened, tmp_path):
    record = make_record(grid=padded_grid())
    found = opened(write_html(record, tmp_path / "view.html", image=picture(), masks=MASKS, start={"layer": 1}))
    from probe.widgets.scores import COLUMNS, SHOWN_METRICS, PhraseScores

    scores = PhraseScores.of(record, MASKS)
    maps = np.stack([plain(record, tokens, layer=1) for tokens in ([1, 2], [5, 6])])
    expected = scores.of_maps(maps, record.layers[0].grid)[:, :, 0]
    found.page.wait_for_selector(".scores td")
    shown = [
        [cell.inner_text() for cell in row.locator("td").all()] for row in found.page.locator(".scores tr").all()[1:]
    ]
    assert len(shown) == len(COLUMNS)
    for column, row in enumerate(shown):
        assert row == [f"{expected[metric, column]:.3f}" for metric in range(len(SHOWN_METRICS))]
    # The outline is on the layer above the map: white where the disc ends, nothing in its middle.
    mark = """(explorer, [row, col]) => {
      const { marks, view } = explorer.panels[0];
      const at = [row / view.size[0] * marks.height, col / view.size[1] * marks.width].map(Math.floor);
      return marks.getContext("2d").getImageData(at[1] - 2, at[0] - 2, 5, 5).data.some((one, i) => i % 4 === 3 && one > 200);
    }"""
    assert found.do(mark, [15.5, 29.5])  # the centre of the disc's pixels is (15.5, 20.5), its radius 9
    assert not found.do(mark, [15.5, 20.5])
    found.page.get_by_role("button", name="red", exact=True).click()
    found.page.wait_for_selector("text=Scores are of the whole phrase “red circle”.")
    assert not found.page.locator(".scores td").count()
    assert found.do(mark, [15.5, 29.5])


def test_the_keyboard_reaches_everything(opened, tmp_path):
    record = make_record(grid=padded_grid())
    found = opened(write_html(record, tmp_path / "view.html", image=picture(), masks=MASKS))
    found.page.locator(".grid").focus()

    def press(*keys):
        for key in keys:
            found.page.keyboard.press(key)
            found.do(STATE)
        return found.do(STATE)

    state = press("ArrowDown")
    assert (state["layer"], state["head"]) == (0, None)
    state = press("ArrowRight", "ArrowRight", "ArrowDown")
    assert (state["layer"], state["head"]) == (1, 1)
    np.testing.assert_allclose(values(found), plain(record, [1, 2], layer=1, head=1).ravel(), atol=1e-7)
    assert press("h")["head"] is None
    assert press(".")["tokens"] == [2]
    assert press(",", ",")["tokens"] == [0]
    assert press("e")["reading"] == "attention"
    assert not press("o")["outline"]
    state = press("c", "ArrowUp")
    assert (state["compare"][0]["layer"], state["layer"]) == (1, 0)
    assert press("Escape")["compare"] == []
    assert press("a")["layer"] is None
    found.page.keyboard.press("?")
    assert found.page.locator(".keys").is_visible()
    found.page.keyboard.press(" ")
    found.until("document.querySelector('.groundprobe').explorer.state.layer === 1")
    found.page.keyboard.press(" ")
    assert found.do("(explorer) => explorer.playing") is None
    assert found.do(STATE)["scale"] == "layers"


def test_resizing_and_dark_ground(opened, tmp_path):
    record = make_record(grid=padded_grid())
    page = write_html(record, tmp_path / "view.html", image=picture())
    found = opened(page, color_scheme="dark")
    expected = plain(record, [0, 1, 2])
    check_pixels(found, record, expected, scheme="dark")
    widths = []
    for width in (1280, 500):
        found.page.set_viewport_size({"width": width, "height": 800})
        found.page.wait_for_timeout(150)
        widths.append(found.do("(explorer) => explorer.panels[0].map.width"))
        check_pixels(found, record, expected, scheme="dark")
        assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert widths[0] != widths[1]
    found.page.get_by_role("button", name="light / dark").click()
    found.page.wait_for_timeout(50)
    check_pixels(found, record, expected, scheme="light")


def test_hovering_names_the_patch_its_pixels_and_its_share_of_image(opened, tmp_path):
    record = make_record(grid=padded_grid(patches=6))
    grid = record.layers[0].grid
    found = opened(write_html(record, tmp_path / "view.html", image=picture()))
    row, col = 1, 2
    top, left, bottom, right = grid.boxes[row, col]
    assert 0 < grid.weight[row, col] < 1
    box = found.page.locator(".stage").bounding_box()
    found.page.mouse.move(
        box["x"] + (left + right) / 2 / 64 * box["width"], box["y"] + (top + bottom) / 2 / 40 * box["height"]
    )
    said = found.page.locator(".panel .readout").inner_text()
    value = plain(record, [0, 1, 2])[row, col]
    assert said.startswith(f"row {row}, col {col}: ")
    assert float(said.split(": ")[1].split(";")[0]) == pytest.approx(value, rel=6e-4)
    numbers = [float(one) for one in re.findall(r"[\d.]+", said.split("pixel rows")[1])]
    np.testing.assert_allclose(numbers[:4], [top, bottom, left, right], rtol=1e-3)
    assert numbers[4] == pytest.approx(100 * grid.weight[row, col], rel=6e-3)


def test_hostile_words_stay_words(opened, tmp_path):
    record = hostile_record()
    page = write_html(record, tmp_path / "view.html", image=picture(), labels=[HOSTILE[0]], masks=[((0, 41), disc())])
    found = opened(page)
    assert found.do("(explorer) => explorer.words.textContent") == record.text
    for word in found.page.locator(".word").all():
        word.click()
        found.do(STATE)
    found.do("(explorer) => explorer.set({ layer: 1, head: 2 })")
    found.do("(explorer) => explorer.grid.say({ layer: 0, head: 1 })")
    assert HOSTILE[0] in found.page.locator(".right .readout").inner_text()
    assert found.page.evaluate("window.stolen") is None
    assert found.page.locator(".groundprobe script, .groundprobe svg, .groundprobe b, .answer img").count() == 0
    assert found.page.title() == f"Where the model looks: {HOSTILE[0]}"


def test_pages_say_what_is_missing_instead_of_nothing(opened, tmp_path):
    record = make_record(grid=padded_grid())
    found = opened(write_html(record, tmp_path / "alone.html"))
    assert "no image of this view was given, so the map stands alone" in found.page.locator(".bar-label").inner_text()
    found.do("(explorer) => explorer.set({ tokens: [0, 1, 2, 3, 4, 5, 6, 7] })")
    assert "All tokens of the text" in found.page.locator(".message").inner_text()
    few = make_record(layers=4, heads=32, grid=padded_grid(patches=16))
    page = write_html(few, tmp_path / "few.html", megabytes=0.17)
    assert not page.kept.fewest
    found = opened(page)
    found.do("(explorer) => explorer.set({ layer: 1, head: 3 })")
    assert "Single heads are left out" in found.page.locator(".message").inner_text()
    # Records that do not say the words; maps of other kinds are not laid on one scale.
    other = replace(make_record(grid=padded_grid(), text="two dogs"), softmax_over="tokens")
    found = opened(write_html([record, other], tmp_path / "two.html"))
    found.do("(explorer) => explorer.set({ beside: true })")
    assert "does not say these words" in found.page.locator(".message").nth(1).inner_text()
    assert "each kind of map has its own scale" in found.page.locator(".bar-label").inner_text()
    found.do("(explorer) => explorer.set({ beside: false, record: 1 })")
    assert "is not in the text of this record" in found.page.get_by_role("alert").inner_text()


def test_a_page_of_a_newer_form_says_so(browser, tmp_path):
    page = write_html(make_record(), tmp_path / "view.html")
    text = page.path.read_text(encoding="utf-8").replace('{"version": 1,', '{"version": 2,', 1)
    page.path.write_text(text, encoding="utf-8")
    window = browser.new_page()
    window.goto(page.path.as_uri())
    assert "These contents are of version 2, and this view reads version 1" in window.get_by_role("alert").inner_text()
    window.close()
    page.path.write_text(text.replace('{"version": 2,', '{"version": ,', 1), encoding="utf-8")
    window = browser.new_page()
    window.goto(page.path.as_uri())
    assert "This file is damaged" in window.get_by_role("alert").inner_text()
    window.close()


def test_hundreds_of_heads_are_drawn_as_they_are_scrolled_into_view(opened, tmp_path):
    record = make_record(layers=60, heads=96, text="a dog", grid=padded_grid(patches=4))
    found = opened(write_html(record, tmp_path / "view.html"))
    drawn = found.do("(explorer) => [explorer.grid.drawn, explorer.grid.rows.size]")
    assert 0 < drawn[0] < 60 * 97
    assert 0 < drawn[1] < 60
    found.do("(explorer) => explorer.set({ layer: 59, head: 95 })")
    assert found.do("(explorer) => explorer.grid.rows.has(59)")
    np.testing.assert_allclose(values(found), plain(record, [0, 1], layer=59, head=95).ravel(), atol=1e-6)
