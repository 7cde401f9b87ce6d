"""The widget from Python: what can be chosen, what is refused, and what the browser is answered."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import probe
from probe.errors import InputError
from tests.records import make_record
from tests.widgets.made import disc, padded_grid, picture, ragged_record
from tests.widgets.test_html import Elements
from tests.widgets.test_packing import unpacked

pytest.importorskip("anywidget", reason="the extra `widgets` is not installed")


@pytest.fixture
def record():
    return make_record(grid=padded_grid())


@pytest.fixture
def view(record):
    return probe.explore(record, picture(), {"red circle": disc()})


def ask(explorer, **wanted):
    """(answer, buffers) to what the browser asks of an explorer."""
    sent = []
    explorer.send = lambda content, buffers=None: sent.append((content, buffers))
    asked = {"id": "7", "record": 0, "view": 0, "timestep": None, "reading": "minus mean", **wanted}
    explorer._answer(explorer, asked, [])
    [(answer, buffers)] = sent
    assert answer["id"] == "7"
    return answer, buffers


def test_words_are_read_and_set(view, record):
    assert (view.words, view.tokens) == ("red circle", [1, 2])
    view.words = "blue square"
    assert view.tokens == [5, 6]
    view.words = ("a", 1)
    assert view.tokens == [4]
    view.tokens = [7]
    assert view.words == "</s>"
    assert probe.explore(record.select(tokens=[7])).words == "</s>"


def test_what_is_selected_is_the_records_own(view, record):
    view.layer, view.head = -1, 2
    assert (view.layer, view.head) == (1, 2)
    found = view.selected()
    assert found.tokens == (" red", " circle")
    assert np.array_equal(found.layers[0].values[0, 0], record.layers[1].values[0, 2, [1, 2]])
    plain = (record.layers[1].values[0, 2, [1, 2]].mean(0) - record.layers[1].token_mean[0, 2]).numpy()
    np.testing.assert_allclose(view.map(), plain, atol=1e-7)
    view.reading = "attention"
    np.testing.assert_allclose(view.map(), record.layers[1].values[0, 2, [1, 2]].mean(0).numpy(), atol=1e-7)
    view.layer = None
    assert view.head is None
    plain = np.mean([one.values[0, :, [1, 2]].mean((0, 1)).numpy() for one in record.layers], axis=0)
    np.testing.assert_allclose(view.map(), plain, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head", 2, "head=2 needs a layer"),
        ("layer", 2, "layer 2 does not exist: there are 2"),
        ("tokens", [8], "token 8 does not exist: there are 8"),
        ("tokens", [], "chooses none of the 8"),
        ("timestep", 1, "timestep 1 does not exist: there are 1"),
        ("record", 1, "record 1 does not exist"),
        ("view", "image", "view must be one of 'image 0', found 'image'. Did you mean 'image 0'"),
        ("reading", "minus", "reading must be one of 'minus mean', 'attention', found 'minus'"),
        ("words", "dog", "'dog' is not in the text"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(view, name, value, message):
    before = {one: getattr(view, one) for one in ("tokens", "layer", "head", "timestep", "record", "view", "reading")}
    with pytest.raises(InputError, match=message):
        setattr(view, name, value)
    assert {one: getattr(view, one) for one in before} == before


def test_another_layer_or_record_has_other_heads():
    view = probe.explore([ragged_record(), make_record(layers=1, heads=1, grid=ragged_record().layers[1].grid)])
    view.layer = 1
    view.head = 2
    view.timestep = 1
    view.layer = 0
    assert view.head == 1  # the last that this layer has
    view.record = 1
    assert (view.layer, view.head, view.timestep) == (0, 0, None)


def test_another_record_shows_the_same_words():
    one = make_record(grid=padded_grid())
    other = make_record(grid=padded_grid(), text="one blue square or a red circle")
    view = probe.explore([one, other, make_record(grid=padded_grid(), text="two dogs")])
    view.words = "blue square"
    view.record = 1
    assert (view.words, view.tokens) == ("blue square", [1, 2])
    view.record = 2
    assert view.words == "two dogs"  # it does not say them
    with view.hold_trait_notifications():  # as the browser sends it
        view.record, view.tokens = 1, [3]
    assert view.words == "or"


def test_the_browser_is_sent_every_map_of_a_phrase(view, record):
    answer, (means, heads) = ask(view, kind="sheet", tokens=[1, 2])
    assert "error" not in answer
    exact = np.stack([(one.values[0, :, [1, 2]].mean(1) - one.token_mean[0]).numpy() for one in record.layers])
    found = np.frombuffer(means, dtype="<f4").reshape(3, 8, 8)
    np.testing.assert_allclose(found[1:], exact.mean(1), atol=1e-7)
    np.testing.assert_allclose(found[0], exact.mean((0, 1)), atol=1e-7)
    maps, steps = unpacked(heads, [(8, 8)] * 6)
    seen = record.layers[0].grid.weight > 0
    error = np.abs(np.stack(maps) - exact.reshape(6, 8, 8))[:, seen].max(1)
    assert (error <= steps / 2 * (1 + 1e-4)).all()


def test_the_browser_is_sent_exact_maps_with_scores(view, record):
    answer, [content] = ask(view, kind="map", tokens=[1, 2], layer=1, head=0)
    exact = (record.layers[1].values[0, 0, [1, 2]].mean(0) - record.layers[1].token_mean[0, 0]).numpy()
    np.testing.assert_allclose(np.frombuffer(content, dtype="<f4").reshape(8, 8), exact, atol=1e-7)
    scores = probe.score_heads([record], [{"red circle": disc()}], metric="auroc").to_frame()
    expected = scores[(scores["kind"] == "head") & (scores["layer"] == 1) & (scores["head"] == 0)]["value"].item()
    [auroc] = [one["values"][0] for one in answer["scores"] if one["metric"] == "auroc"]
    assert auroc == pytest.approx(expected, rel=1e-6)
    assert ask(view, kind="map", tokens=[5], layer=1, head=0)[0]["scores"] is None


def test_what_cannot_be_answered_is_said(view):
    for wanted in (
        {"kind": "sheet", "tokens": [99]},
        {"kind": "map", "tokens": [1]},
        {"kind": "sheet", "tokens": [1], "view": 3},
    ):
        answer, buffers = ask(view, **wanted)
        assert answer["error"].startswith("This map cannot be made: ")
        assert buffers is None


def test_a_view_is_saved_as_it_stands(view, tmp_path):
    view.words, view.layer, view.compare = "blue square", 1, [{"layer": 0, "head": 1}]
    page = view.save(tmp_path / "view.html")
    contents = Elements(page.path.read_text(encoding="utf-8")).contents
    assert contents["start"] == {
        "tokens": [5, 6], "layer": 1, "head": None, "timestep": None, "reading": "minus mean", "record": 0, "view": "image 0",
        "compare": [{"layer": 0, "head": 1}],
    }  # fmt: skip
    assert contents["images"]
    assert [one["text"] for one in contents["records"][0]["phrases"] if one["mask"] == 0] == ["red circle"]


def test_a_record_of_one_map_is_shown_as_recorded(record):
    single = replace(record, query_kind="class token").select(tokens=[0])
    view = probe.explore(single)
    assert view.reading == "attention"
    assert repr(view).startswith("Explorer(1 record")


def test_without_the_extra_the_message_says_how_to_get_it():
    code = (
        "import sys; sys.modules.update(anywidget=None, transformers=None, diffusers=None)\n"
        "import probe\nfrom tests.records import make_record\n"
        "try:\n    probe.explore(make_record())\nexcept probe.ProbeError as error:\n    print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "needs 'anywidget', which is not installed; install it with `pip install 'groundprobe[widgets]'`"
        in found.stdout
    )
