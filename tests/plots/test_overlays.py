from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import probe.plots
from probe.errors import InputError
from probe.layout import PatchGrid
from probe.plots.maps import phrase_map
from tests.records import make_grid, make_record

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
MASK = np.zeros((32, 32), dtype=bool)
MASK[:12, 4:20] = True


def bar(ax):
    """The Axes of the figure's one colour bar."""
    [found] = [one for one in ax.figure.axes if one.get_label() == "<colorbar>"]
    return found


def shown(ax) -> np.ndarray:
    """(height, width) values of the map, NaN where nothing is drawn."""
    return np.ma.filled(ax.images[1].get_array().astype(float), np.nan)


def test_axes_in_same_axes_out() -> None:
    record = make_record()
    first, second, third = probe.plots.new_figure().subplots(1, 3)
    assert probe.plots.overlay(record["red circle"], IMAGE, ax=first) is first
    assert probe.plots.phrases(record, ["red circle", "square"], IMAGE, axes=[second, third]) == [second, third]
    assert not plt.get_fignums()
    probe.plots.overlay(record["red circle"], IMAGE)
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("reading", ["minus mean", "attention"])
def test_map_is_the_records_heatmap(reading) -> None:
    phrase = make_record()["red circle"]
    ax = probe.plots.overlay(phrase, IMAGE, reading=reading)
    np.testing.assert_allclose(shown(ax), phrase.heatmap(reading=reading), atol=1e-7)


def test_patches_are_shown_as_they_are_without_smoothing() -> None:
    phrase = make_record()["blue square"]
    stack = phrase.minus_mean().stack()
    ax = probe.plots.overlay(phrase, IMAGE, smooth=False)
    np.testing.assert_allclose(shown(ax), stack.mean((0, 1, 2, 3)).numpy().repeat(8, 0).repeat(8, 1), atol=1e-7)


def test_bar_names_quantity_reading_and_what_was_averaged() -> None:
    phrase = make_record(layers=2, heads=3)["red circle"]
    label = " ".join(bar(probe.plots.overlay(phrase, IMAGE)).get_ylabel().split())
    assert label == "attention minus mean over tokens mean of 2 layers x 3 heads; below 0 not drawn"
    label = " ".join(bar(probe.plots.overlay(phrase, IMAGE, reading="attention")).get_ylabel().split())
    assert label == "attention mean of 2 layers x 3 heads"  # nothing lies below 0
    assert len(probe.plots.overlay(phrase, IMAGE, colorbar=False).figure.axes) == 1


def test_scale_starts_at_zero_ends_at_the_largest_patch_or_is_given() -> None:
    phrase = make_record()["red circle"]
    top = float(phrase.minus_mean().stack().mean((0, 1, 2, 3)).max())
    assert probe.plots.overlay(phrase, IMAGE).images[1].get_clim() == pytest.approx((0, top))
    assert probe.plots.overlay(phrase, IMAGE, limits=(0.1, 0.3)).images[1].get_clim() == (0.1, 0.3)
    for wrong in [(1, 1), (0, float("nan")), 3]:
        with pytest.raises(InputError, match="low < high"):
            probe.plots.overlay(phrase, IMAGE, limits=wrong)


def test_padding_never_sets_the_scale() -> None:
    grid = PatchGrid((32, 32), (-16.0, 0.0, 16.0, 32.0), (0.0, 16.0, 32.0))  # the first row is padding
    record = make_record(grid=grid)
    record.layers[0].values[..., 0, :] += 100
    assert phrase_map(record["red"], reading="attention", view=None).top < 100


def test_a_row_has_one_scale_and_one_bar() -> None:
    record = make_record()
    wanted = ["red circle", "blue square"]
    axes = probe.plots.phrases(record, wanted, IMAGE, masks=[MASK, None])
    scales = {ax.images[1].get_clim() for ax in axes}
    alone = [probe.plots.overlay(record[one], IMAGE).images[1].get_clim()[1] for one in wanted]
    assert scales == {(0.0, max(alone))}
    assert "minus mean" in bar(axes[0]).get_xlabel()
    assert "outline: true mask" in bar(axes[0]).get_xlabel()
    assert [ax.get_title() for ax in axes] == wanted
    assert [len(ax.collections) for ax in axes] == [1, 0]  # one outline


def test_words_said_several_times_have_titles_that_differ() -> None:
    record = make_record(text="a red dog and a red dog")
    axes = probe.plots.phrases(record, [("red dog", 0), ("red dog", -1), "and"], IMAGE)
    assert [ax.get_title() for ax in axes] == ["red dog, 1st time", "red dog, 2nd time", "and"]
    many = make_record(text=" ".join(["dog"] * 23))
    axes = probe.plots.phrases(many, [("dog", index) for index in (2, 10, 11, 12, 20, 22)], IMAGE)
    assert [ax.get_title().split()[1] for ax in axes] == ["3rd", "11th", "12th", "13th", "21st", "23rd"]


@pytest.mark.parametrize("phrase", ["$x^2$", r"$\frac$", "_a_ {b", "50% \\alpha"])
def test_words_are_never_read_as_formulas(phrase: str) -> None:
    record = make_record(text=f"see {phrase} now")
    ax = probe.plots.overlay(record[phrase], IMAGE)
    assert (ax.title.get_text(), ax.title.get_parse_math()) == (phrase, False)
    ax.figure.canvas.draw()  # a broken formula would raise here


def test_title_is_the_phrase_in_one_line() -> None:
    record = make_record(text="a red circle, and a blue square")
    assert probe.plots.overlay(record["red circle"], IMAGE).get_title() == "red circle"
    assert probe.plots.overlay(record.select(tokens=[1, 5]), IMAGE).get_title() == "red … blue"
    assert probe.plots.overlay(record["red"], IMAGE, title="a\nb").get_title() == "a b"
    assert probe.plots.overlay(record.select(tokens=-1), IMAGE).get_title() == "</s>"


def test_outline_follows_the_mask_up_to_the_border() -> None:
    ax = probe.plots.overlay(make_record()["red"], IMAGE, mask=MASK)
    vertices = np.concatenate([one.vertices for one in ax.collections[0].get_paths()])
    assert vertices.min(0) == pytest.approx([4, 0], abs=1e-6)  # (col, row): 4 and the upper border
    assert vertices.max(0) == pytest.approx([20, 12], abs=1e-6)
    assert ax.get_xlabel() == "outline: true mask"
    assert not probe.plots.overlay(make_record()["red"], IMAGE, mask=np.zeros_like(MASK)).collections


def test_cropped_pixels_are_hatched_named_and_without_a_map() -> None:
    grid = PatchGrid((32, 48), (0.0, 16.0, 32.0), (8.0, 24.0, 40.0))
    ax = probe.plots.overlay(make_record(grid=grid)["red"], np.zeros((32, 48), dtype=np.uint8), smooth=False)
    boxes = [one.get_bbox().bounds for one in ax.patches]
    assert sorted(boxes) == [(0, 0, 8, 32), (40, 0, 8, 32)]
    assert all(one.get_hatch() for one in ax.patches)
    assert "unseen" in ax.get_xlabel()
    np.testing.assert_array_equal(np.isnan(shown(ax)), ~grid.seen)


def test_large_pictures_are_drawn_smaller_in_the_same_coordinates() -> None:
    grid = make_grid(4, 4, image_size=(2000, 4000))
    mask = np.zeros((2000, 4000), dtype=bool)
    mask[500:1000, 1000:3000] = True
    ax = probe.plots.overlay(make_record(grid=grid)["red"], Image.new("RGB", (4000, 2000)), mask=mask)
    assert shown(ax).shape == (750, 1500)
    assert ax.get_xlim() == (0, 4000)
    assert ax.get_ylim() == (2000, 0)
    vertices = np.concatenate([one.vertices for one in ax.collections[0].get_paths()])
    assert vertices.min(0) == pytest.approx([1000, 500], abs=3)


def test_wrong_sizes_are_refused_with_both() -> None:
    phrase = make_record()["red"]
    with pytest.raises(InputError, match=r"image is 20 x 30 .*32 x 32"):
        probe.plots.overlay(phrase, np.zeros((20, 30), dtype=np.uint8))
    with pytest.raises(InputError, match=r"mask is 30 x 20 .*32 x 32"):
        probe.plots.overlay(phrase, IMAGE, mask=np.zeros((30, 20)))
    assert not plt.get_fignums()  # nothing half-drawn is left on the screen


def test_readings_and_views_that_cannot_be_drawn_are_refused() -> None:
    record = make_record()
    with pytest.raises(InputError, match="'minus mean' or 'attention'"):
        probe.plots.overlay(record["red"], IMAGE, reading="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has had its mean subtracted"):
        probe.plots.overlay(record.minus_mean()["red"], IMAGE, reading="attention")
    two = replace(record, layers=(record.layers[0], replace(record.layers[1], view="tile 2")))
    with pytest.raises(InputError, match="2 views"):
        probe.plots.overlay(two["red"], IMAGE)
    ax = probe.plots.overlay(two["red"], IMAGE, view="tile 2")
    expected = record.select(layers=1)["red"].heatmap()
    np.testing.assert_allclose(shown(ax), expected, atol=1e-7)


def test_a_row_needs_phrases_and_as_many_masks_and_axes() -> None:
    record = make_record()
    with pytest.raises(InputError, match="No phrase"):
        probe.plots.phrases(record, [], IMAGE)
    with pytest.raises(InputError, match="1 phrases need as many masks, found 2"):
        probe.plots.phrases(record, ["red"], IMAGE, masks=[MASK, MASK])
    with pytest.raises(InputError, match="as many axes, found 0"):
        probe.plots.phrases(record, ["red"], IMAGE, axes=[])
    with pytest.raises(InputError, match="not in the text"):
        probe.plots.phrases(record, ["zebra"], IMAGE)


def test_a_map_without_anything_above_zero_is_an_empty_picture() -> None:
    record = make_record()
    for layer in record.layers:
        layer.values.copy_(-torch.ones_like(layer.values))
        layer.token_mean.zero_()
    ax = probe.plots.overlay(record["red"], IMAGE)
    rgba = ax.images[1].to_rgba(shown(ax))
    assert ax.images[1].get_clim() == (0, 1)
    assert not rgba[..., 3].any()


def test_many_phrases_fill_several_rows() -> None:
    record = make_record()
    axes = probe.plots.phrases(record, ["red", "circle", "blue", "square", "and"], IMAGE)
    assert len(axes) == len(axes[0].figure.axes) - 1 == 5  # and the one bar
    assert axes[4].get_subplotspec().rowspan.start == 1


def test_rounding_is_not_drawn_as_a_map() -> None:
    record = make_record()
    words = [place for place, (low, high) in enumerate(record.spans) if high > low]
    layers = tuple(replace(one, token_mean=one.values[:, :, words].mean(2)) for one in record.layers)
    record = replace(record, layers=layers)  # as of a diffusion model: the mean over the words alone
    image = Image.new("RGB", record.image_size[::-1])
    for draw in (lambda whole: probe.plots.overlay(whole, image), lambda whole: whole.heatmap()):
        with pytest.raises(InputError, match=r"whole .* zero everywhere"):
            draw(record.select(tokens=words))
    with pytest.raises(InputError, match="is the whole text"):
        probe.plots.phrases(record, [record.text], image)
    probe.plots.phrases(record, [record.text], image, reading="attention")
    probe.plots.overlay(record.select(tokens=words[:-1]), image)
