"""The page: what is in it, what it leaves out to be small, and that nothing in it can act but its own script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from probe.errors import FileError, InputError
from probe.widgets.html import write_html
from probe.widgets.scores import COLUMNS, SHOWN_METRICS, PhraseScores
from probe.widgets.sheets import make_sheet
from tests.records import make_grid, make_record
from tests.widgets.made import HOSTILE, disc, hostile_record, padded_grid, picture, ragged_record
from tests.widgets.test_packing import unpacked


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of scripts by their id."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self._script = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._script = (dict(attributes).get("id") or "module") if tag == "script" else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    @property
    def contents(self):
        return json.loads(self.scripts["contents"])

    def block(self, name):
        return zlib.decompress(base64.b64decode(self.scripts[name], validate=True))


def written(tmp_path, given, **options):
    page = write_html(given, tmp_path / "view.html", **options)
    text = page.path.read_text(encoding="utf-8")
    assert page.megabytes == page.path.stat().st_size / 1e6
    return page, Elements(text), text


def test_a_small_record_is_all_there_exactly(tmp_path):
    record = make_record(grid=padded_grid())
    page, elements, _ = written(tmp_path, record, image=picture())
    assert page.kept.exact
    assert page.kept.said == "Every map is kept exactly."
    for token in range(len(record.tokens)):
        sheet = make_sheet(record, [token])
        heads = np.frombuffer(elements.block(f"heads-0-0-mean-{token}"), dtype="<f4").reshape(2, 3, 8, 8)
        assert np.array_equal(heads, np.stack(sheet.heads))
        means = np.frombuffer(elements.block(f"means-0-0-mean-{token}"), dtype="<f4").reshape(3, 8, 8)
        assert np.array_equal(means, np.stack([sheet.overall, *sheet.means]))
    mean = np.frombuffer(elements.block("heads-0-0-mean-mean"), dtype="<f4").reshape(2, 3, 8, 8)
    assert np.array_equal(mean, np.stack([one.token_mean[0] for one in record.layers]))


def noisy(*, layers=4, heads=8):
    return make_record(layers=layers, heads=heads, grid=make_grid(16, 16, image_size=(64, 64)))


def test_a_page_that_must_be_smaller_says_what_it_loses(tmp_path):
    record = noisy()
    page, _, _ = written(tmp_path, record, megabytes=10)
    assert page.kept.exact
    page, elements, _ = written(tmp_path, record, megabytes=0.19)
    assert page.megabytes <= 0.19
    assert not page.kept.exact
    assert 0 < page.kept.fewest <= page.kept.median < 254
    shapes = [(16, 16)] * 32
    worst, levels = 0.0, []
    for token in range(len(record.tokens)):
        content = elements.block(f"heads-0-0-mean-{token}")
        maps, steps = unpacked(content, shapes)
        exact = np.concatenate(make_sheet(record, [token]).heads)
        worst = max(worst, *(np.abs(maps - exact).max((1, 2)) / np.ptp(exact, axis=(1, 2))))
        levels += list(content[8 * 32 : 9 * 32])
        assert (np.abs(maps - exact).max((1, 2)) <= steps / 2 * (1 + 1e-4)).all()
    levels += list(elements.block("heads-0-0-mean-mean")[8 * 32 : 9 * 32])
    assert (page.kept.fewest, page.kept.median) == (min(levels), int(np.median(levels)))
    said = float(re.search(r"off by at most ([\d.]+)% of a map's range", page.kept.said)[1]) / 100
    assert 0.5 * said < worst <= said + 0.0005
    assert elements.contents["kept"]["said"] == page.kept.said


def test_where_no_heads_fit_the_means_stay_and_then_nothing_is_written(tmp_path):
    page, elements, _ = written(tmp_path, noisy(heads=32), megabytes=0.15)
    assert (page.kept.fewest, page.kept.exact) == (0, False)
    assert page.kept.said.startswith("Single heads are left out.")
    assert "means-0-0-mean-0" in elements.scripts
    assert not [one for one in elements.scripts if one.startswith("heads")]
    target = tmp_path / "small.html"
    target.write_text("before")
    with pytest.raises(InputError, match=r"mean maps of each layer alone take more than 0\.05 MB"):
        write_html(noisy(), target, megabytes=0.05)
    assert target.read_text() == "before"


def test_timesteps_have_their_own_sheets_and_go_first_where_room_is_short(tmp_path):
    record = ragged_record()
    page, elements, _ = written(tmp_path, record)
    for step in range(3):
        sheet = make_sheet(record, [2], timestep=step)
        content = np.frombuffer(elements.block(f"heads-0-0-{step}-2"), dtype="<f4")
        assert np.array_equal(content, np.concatenate([one.ravel() for one in sheet.heads]))
    layers = tuple(
        replace(one, values=one.values.repeat(1, 16, 1, 1, 1), token_mean=one.token_mean.repeat(1, 16, 1, 1),
                rest=one.rest.repeat(1, 16, 1, 1), heads=tuple(range(16 * len(one.heads))))
        for one in record.layers
    )  # fmt: skip
    noise = tuple(replace(one, values=one.values + torch.rand(one.values.shape) / 9) for one in layers)
    page, elements, _ = written(tmp_path, replace(record, layers=noise), megabytes=0.16)
    assert not page.kept.at_timesteps
    assert "heads-0-0-mean-2" in elements.scripts
    assert "heads-0-0-1-2" not in elements.scripts
    assert "means-0-0-1-2" in elements.scripts
    assert page.kept.said.endswith("Single heads are there as their mean over timesteps.")


def test_scores_in_the_page_are_those_of_the_maps(tmp_path):
    record, masks = ragged_record(), {"red circle": disc(), "blue square": disc(centre=(30, 50))}
    _, elements, _ = written(tmp_path, record, masks=masks)
    found = elements.contents["records"][0]["views"][0]["scores"]
    scores = PhraseScores.of(record, masks)
    for reading in ("minus mean", "attention"):
        for step, name in ((None, "mean"), (1, "1")):
            sheets = scores.sheets(record, timestep=step, reading=reading)
            places = found[reading][name]["places"]
            assert len(places) == 3
            layer = np.frombuffer(base64.b64decode(places[2]), dtype="<f8").reshape(len(SHOWN_METRICS), len(COLUMNS), 2)
            np.testing.assert_array_equal(
                layer, scores.of_maps(np.stack([one.means[1] for one in sheets]), record.layers[1].grid)
            )
        heads = np.frombuffer(base64.b64decode(found[reading]["mean"]["heads"][1]), dtype="<f8").reshape(3, 3, 2)
        sheets = scores.sheets(record, timestep=None, reading=reading)
        np.testing.assert_array_equal(heads, scores.of_heads(sheets, 1, record.layers[1].grid))


def test_no_word_of_the_data_becomes_markup(tmp_path):
    record = hostile_record()
    _, plain, _ = written(tmp_path, make_record(grid=padded_grid()))
    _, hostile, text = written(tmp_path, record, image=picture(), labels=[HOSTILE[0]], masks=[((0, 40), disc())])
    outside = {tag for tag, _ in hostile.found} - {tag for tag, _ in plain.found}
    assert not outside
    kinds = [attributes.get("type") for tag, attributes in hostile.found if tag == "script"]
    assert kinds.count("application/json") == kinds.count("module") == 1
    assert set(kinds) == {"application/json", "module", "text/plain"}
    assert not [name for _, attributes in hostile.found for name in attributes if name.startswith("on")]
    [found] = hostile.contents["records"]
    assert found["text"] == record.text
    assert found["label"] == HOSTILE[0]
    assert found["tokens"] == list(record.tokens)
    assert "<" not in hostile.scripts["contents"]
    assert text.count("</script>") == len(kinds)


def test_only_its_own_script_and_style_may_act_and_nothing_is_asked_for(tmp_path):
    _, elements, text = written(tmp_path, make_record(grid=padded_grid()), image=picture())
    [policy] = [one["content"] for _, one in elements.found if one.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for kind, content in (
        ("script", re.search(r"<script type='module'>(.*?)</script>", text, re.DOTALL)[1]),
        ("style", re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]),
    ):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|innerHTML|eval\(", text)
    assert not [one for _, one in elements.found if "src" in one or "href" in one]


def test_several_records_and_what_is_shown_first(tmp_path):
    one, other = make_record(grid=padded_grid()), make_record(grid=padded_grid(), seed=1)
    _, elements, _ = written(tmp_path, [one, other], labels=["step 0", "step 9"], start={"layer": 1, "head": 2})
    assert [each["label"] for each in elements.contents["records"]] == ["step 0", "step 9"]
    assert elements.contents["start"] == {"tokens": [0, 1, 2], "layer": 1, "head": 2}
    sheet = make_sheet(other, [5])
    assert np.array_equal(
        np.frombuffer(elements.block("heads-1-0-mean-5"), dtype="<f4").reshape(2, 3, 8, 8), sheet.heads
    )


def test_the_same_record_is_the_same_page(tmp_path):
    pages = [write_html(make_record(), tmp_path / name).path.read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="could not be written"):
        write_html(make_record(), tmp_path / "file" / "view.html")
