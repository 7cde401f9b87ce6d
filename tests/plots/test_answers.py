"""The answer beside its image: who is coloured how, and that words are printed as they are."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker
from matplotlib.text import Annotation
from PIL import Image

import probe
from probe.errors import InputError
from probe.grounding.segment import attend_and_segment
from probe.layout import PatchGrid
from probe.plots.answers import COLOURS
from tests.records import make_record

IMAGE = Image.new("RGB", (32, 32), "grey")


def _texts(box):
    if isinstance(box, TextArea):
        return [box._text]
    return [
        one for child in box.get_children() if isinstance(child, (TextArea, HPacker, VPacker)) for one in _texts(child)
    ]


def _written(ax):
    [box] = [one for one in ax.get_children() if isinstance(one, AnnotationBbox)]
    return _texts(box.offsetbox)


def _in_colour(ax, number):
    """The pieces of the sentence in a phrase's colour, without the small number."""
    found = [one for one in _written(ax) if to_hex(one.get_color()) == to_hex(COLOURS[number])]
    return [one.get_text() for one in found if one.get_fontsize() == 7]


def test_each_phrase_has_one_colour_in_the_sentence_and_on_the_image():
    found = attend_and_segment(make_record(seed=2), IMAGE)
    ax = probe.plots.answer(found, IMAGE)
    assert _in_colour(ax, 0) == ["a", "red", "circle"]
    assert _in_colour(ax, 1) == ["a", "blue", "square"]
    assert "and" in [one.get_text() for one in _written(ax) if one.get_color() == "0.25"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    places = {to_hex(one.get_color()): (one.get_ydata()[0] - 0.5, one.get_xdata()[0] - 0.5) for one in dots}
    assert places == {to_hex(COLOURS[i]): one.bicubic_point for i, one in enumerate(found.phrases)}
    numbers = [one.get_text() for one in ax.texts if isinstance(one, Annotation)]
    assert numbers == ["1", "2"]


def test_the_tint_is_where_the_mask_is():
    found = attend_and_segment(make_record(), IMAGE, phrases=["red circle"])
    ax = probe.plots.answer(found, IMAGE)
    tint = ax.images[-1].get_array()
    assert np.array_equal(tint[..., 3] > 0, found.phrases[0].mask)


def test_a_record_is_segmented_with_its_defaults():
    record = make_record()
    ax = probe.plots.answer(record, IMAGE, phrases=["square"])
    assert _in_colour(ax, 0) == ["square"]


def test_words_are_data():
    text = r"a $red^2$ \alpha circle, it is_so"
    ax = probe.plots.answer(make_record(text=text), IMAGE, phrases=["circle"])
    assert not any(one.get_parse_math() for one in _written(ax))
    spelled = [one.get_text() for one in _written(ax)]
    assert spelled[3:6] == ["circle", "1", ","]  # no blank between a phrase and its comma
    assert {"$red^2$", r"\alpha", "is_so"} <= set(spelled)
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize("text", ["it is here", "word " * 400 + "end"])
def test_nothing_found_and_a_long_answer(text):
    found = attend_and_segment(make_record(text=text, layers=1, heads=1), IMAGE, phrases=[])
    ax = probe.plots.answer(found, IMAGE)
    spelled = [one.get_text() for one in _written(ax)]
    assert "No phrase was asked for." in spelled
    assert len(spelled) < 200
    assert ("…" in spelled) == (len(text) > 100)


def test_a_phrase_without_a_point_is_still_in_the_sentence():
    record = make_record()
    for layer in record.layers:
        layer.values[:, :, 1:3] = layer.token_mean[:, :, None] = 0.1
    ax = probe.plots.answer(record, IMAGE, phrases=["red circle"])
    assert _in_colour(ax, 0) == ["red", "circle"]
    assert not ax.lines


def _rows(ax):
    """The words of each row of the sentence, from left to right."""
    [box] = [one for one in ax.get_children() if isinstance(one, AnnotationBbox)]
    packed = box.offsetbox.get_children()[0].get_children()
    return [["".join(part.get_text() for part in _texts(word)) for word in row.get_children()] for row in packed]


def test_a_script_without_blanks_is_broken_into_lines_and_nothing_is_lost():
    text = "红色的圆在左边" * 9
    ax = probe.plots.answer(make_record(text=text, layers=1, heads=1), IMAGE, phrases=[(0, 4)])
    rows = _rows(ax)
    assert len(rows) > 1
    assert "".join(word for row in rows for word in row).replace("1", "") == text


def test_what_is_written_from_right_to_left_stands_so():
    text = "كرة حمراء near red dogs"
    ax = probe.plots.answer(make_record(text=text), IMAGE, phrases=["حمراء", "red"])
    assert _rows(ax) == [["near", "red2", "dogs", "1حمراء", "كرة"]]
    ax = probe.plots.answer(make_record(text="a dog شجرة كبيرة here"), IMAGE, phrases=["dog"])
    assert _rows(ax) == [["a", "dog1", "كبيرة", "شجرة", "here"]]


def test_cropped_pixels_are_hatched_and_named():
    grid = PatchGrid((32, 48), (0.0, 16.0, 32.0), (8.0, 24.0, 40.0))
    ax = probe.plots.answer(make_record(grid=grid), Image.new("RGB", (48, 32)), phrases=["circle"])
    assert sorted(one.get_bbox().bounds for one in ax.patches) == [(0, 0, 8, 32), (40, 0, 8, 32)]
    assert "hatched: cropped away, unseen" in " ".join(one.get_text() for one in _written(ax))


def test_given_axes_are_used_and_another_image_is_refused():
    with probe.plots.style():
        ax = probe.plots.new_figure().subplots()
    assert probe.plots.answer(make_record(), IMAGE, ax=ax) is ax
    found = attend_and_segment(make_record(), IMAGE)
    with pytest.raises(InputError, match="The image is 9 x 8"):
        probe.plots.answer(found, Image.new("RGB", (8, 9)))
