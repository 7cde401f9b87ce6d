"""Every family of language models: what is recorded is what its own kernel computed, and each view names the right tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.capture import checks, recorder, reduce, tracks, view_painting, views
from probe.capture.checks import check
from probe.capture.passes import inputs_with_answer, read_and_record
from probe.capture.questions import ask, smooth_picture
from probe.capture.view_painting import paint_views
from probe.capture.weights import attention_rows
from probe.errors import CaptureError, InputError
from probe.families import FAMILIES, family_of
from probe.family_checks import check_family
from probe.models import Subject
from probe.tiny import TINY, tiny_model
from tests.capture.families import LANGUAGE
from tests.capture.reference import exact_softmax
from tests.tiny import picture

ANSWER = [20, 30, 40, 50, 20]
TILED = ["llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_every_family_has_a_tiny_model_that_is_of_it():
    assert {family.name for family in FAMILIES} == set(TINY)
    for name in LANGUAGE:
        assert tiny_model(name).family.name == name


@pytest.mark.parametrize("name", LANGUAGE)
def test_check_passes_in_both_number_types(name):
    report = check_family(name)
    assert report.passed, report.report or report.why
    assert report.parity <= 1e-6
    assert report.parity_float64 <= 1e-12
    assert report.certificate <= 1e-5
    assert (report.state_differences, report.geometry_wrong_cells) == (0, 0)


@pytest.mark.parametrize("name", LANGUAGE)
def test_views_moved_by_one_cell_fail_geometry(name, monkeypatch):
    real = views.views_of

    def moved(*args, **kwargs):
        seen = real(*args, **kwargs)
        turned = [replace(one, positions=(*one.positions[2:], *one.positions[:2])) for one in seen.views]
        return replace(seen, views=tuple(turned))

    monkeypatch.setattr(view_painting, "views_of", moved)
    # A square picture leaves no tile padded.
    passed, _, _, wrong = paint_views(tiny_model(name), smooth_picture().resize((400, 400)))
    assert not passed
    assert wrong >= 6


@pytest.mark.parametrize("name", LANGUAGE)
def test_planted_faults_fail_the_question_that_asks_for_them(name, monkeypatch):
    subject, shown = tiny_model(name), picture(60, 90)

    def failed():
        questions = {
            "certificate": lambda: checks._certificate(subject, shown, 3),
            "eager parity": lambda: checks._eager_parity(subject, shown, ANSWER),
        }
        return {name for name, question in questions.items() if not ask(name, question).passed}

    with monkeypatch.context() as patch:
        # The right rows, given to their neighbours: no certificate can see it.
        real = reduce.Queries.wanted
        patch.setattr(reduce.Queries, "wanted", lambda self, first, rows: real(self, first + 1, rows))
        assert "eager parity" in failed()
    with monkeypatch.context() as patch:
        patch.setattr(tracks, "attention_rows", lambda *a, **k: attention_rows(*a, **k).flip(0))
        assert {"certificate", "eager parity"} <= failed()
    with monkeypatch.context() as patch:
        real_take = tracks.Track.take
        unmasked = lambda self, module, call, **k: real_take(self, module, replace(call, mask=None), **k)  # noqa: E731
        patch.setattr(tracks.Track, "take", unmasked)
        # Without its mask attention in a window, or to tiles of which some are padding, is another; that to all before it is not.
        assert ("certificate" in failed()) == (name in ("gemma3", "mllama"))
    assert failed() == set()


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (150, 500), (90, 61)], ids=str)
def test_shrunk_features_lie_where_their_cells_say(size):
    """Features that are the coordinates of their patches, put through the model's own packing: the middle of each cell."""
    from probe.tiny.vision_language import tiny_llava_onevision

    subject = tiny_llava_onevision(most=1)
    shown = smooth_picture().resize(size[::-1])
    view = view_painting._views(subject, shown)[0][0]
    grid = view.grid
    assert grid.row_edges[1] - grid.row_edges[0] > 4.5 * size[0] / 32, "the features must have been shrunk"
    inputs = subject.processor.image_processor(images=shown, return_tensors="pt")
    sizes = inputs["image_sizes"]
    model = subject.model.model
    # Every tile's patches hold their own row and column in the frame that the tiles make together.
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    high, wide = get_anyres_image_grid_shape(sizes[0], model.config.image_grid_pinpoints, 16)
    rows, cols = torch.meshgrid(torch.arange(high * 4) + 0.5, torch.arange(wide * 4) + 0.5, indexing="ij")
    whole = (
        torch.stack([rows, cols], -1).reshape(high, 4, wide, 4, 2).permute(0, 2, 1, 3, 4).reshape(high * wide, 16, 2)
    )
    features = torch.cat([torch.zeros(1, 16, 2), whole])
    packed, _ = model.pack_image_features(
        [features], sizes, image_newline=torch.zeros(2), vision_aspect_ratio="anyres_max_1"
    )
    centres = packed[0][list(view.positions)].reshape(*grid.shape, 2) * 4  # in pixels of the frame; a patch has 4
    frame = views._padded_into((high * 16, wide * 16), size)
    for axis, edges in enumerate((grid.row_edges, grid.col_edges)):
        middle = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
        expected = middle * frame.scale[axis] + frame.offset[axis]
        found = centres[..., axis].mean(1 - axis).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-3)


def _by_view(record):
    return [record.select(view=view) for view in dict.fromkeys(one.view for one in record.layers)]


@pytest.mark.parametrize("name", TILED)
def test_tiles_without_their_image_are_not_arranged_and_with_it_they_are(name):
    subject, shown = tiny_model(name), picture(60, 90)
    inputs, start = inputs_with_answer(subject, shown, "a dog", ANSWER)
    with torch.inference_mode(), recorder.Recorder(subject.model, subject.processor, answer_start=start) as watched:
        subject.model(**inputs)
    known, unknown = watched.result(image=shown), watched.result()
    names = {one.view for one in unknown.layers}
    assert {one.view for one in known.layers} == {"image 0", "thumbnail"}
    if name.startswith("llava"):
        # These processors say how large the image was.
        assert names == {"image 0", "thumbnail"}
        assert unknown.image_size == (60, 90)
    else:
        assert names == {f"tile {number}" for number in range(len(names))}
        # The same numbers in both, in another order.
        for layer in range(3):
            totals = [
                torch.cat(
                    [
                        one.select(view=view).layers[layer].values.flatten(-2)
                        for view in dict.fromkeys(x.view for x in one.layers)
                    ],
                    -1,
                )
                for one in (known, unknown)
            ]
            assert torch.equal(totals[0].sort(-1)[0], totals[1].sort(-1)[0])


def test_a_sliding_layer_of_a_cache_is_read_by_absolute_position():
    subject = tiny_model("gemma3")
    shown = picture(60, 90)
    found = probe.run(subject, shown, "a dog with a red ball", max_new_tokens=8).record
    length = found.layers[0].rest.shape[2]
    whole = read_and_record(subject, shown, "a dog with a red ball", answer=found.token_ids)
    assert length == 8
    for one, other in zip(found.layers, whole.layers, strict=True):
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.rest, other.rest, atol=1e-5, rtol=0)
    sliding = found.layers[0].values[0].flatten(-2)
    # The window moves over the picture: at every step one more patch receives exactly nothing, the first ones first.
    hidden = (sliding[0] == 0).sum(-1)
    assert torch.equal(hidden, hidden.sort()[0])
    assert 0 < int(hidden[-1]) <= 16
    assert all(bool((row[: int(count)] == 0).all()) for row, count in zip(sliding[0], hidden, strict=True))


def test_eager_that_is_another_model_is_said_and_is_no_fault_of_the_recorder(monkeypatch):
    subject = tiny_model("paligemma")
    real = checks.inputs_with_answer

    def without_types(*args, **kwargs):
        inputs, start = real(*args, **kwargs)
        return {name: one for name, one in inputs.items() if name != "token_type_ids"}, start

    assert "another model" not in str(check(subject))
    monkeypatch.setattr(checks, "OTHER_MODEL", {torch.float32: -1.0})
    report = check(subject)
    assert report.passed
    assert any("eager is another model here: its logits are" in one.found for one in report.results)


def test_videos_and_missing_parts_are_refused_before_the_pass():
    subject = tiny_model("qwen2_vl")
    inputs, _ = inputs_with_answer(subject, picture(60, 90), "a dog", ANSWER)
    ran = []
    handle = subject.model.get_decoder().register_forward_pre_hook(lambda *a: ran.append(1))
    for change, error, match in (
        ({"pixel_values_videos": torch.zeros(1)}, CaptureError, "Frames of a video were given"),
        ({"image_grid_thw": None}, CaptureError, "image_grid_thw must come with it"),
        ({"image_grid_thw": inputs["image_grid_thw"] * torch.tensor([2, 1, 1])}, CaptureError, "says 2 frames"),
        (
            {"image_grid_thw": inputs["image_grid_thw"] // torch.tensor([1, 2, 1])},
            InputError,
            "describes .* patches but",
        ),
    ):
        with pytest.raises(error, match=match), probe.record(subject, queries="prompt"):
            subject.model(**(inputs | change))
    handle.remove()
    assert not ran


def test_a_processor_of_another_family_is_refused_by_name():
    subject = tiny_model("qwen2_vl")
    other = Subject(subject.model, tiny_model("mistral3").processor, subject.family, "mixed")
    inputs, start = inputs_with_answer(subject, picture(60, 90), "a dog", ANSWER)
    with torch.inference_mode(), recorder.Recorder(other.model, other.processor, answer_start=start) as watched:
        subject.model(**inputs)
    with pytest.raises(
        CaptureError, match="PixtralImageProcessorPil is not one whose geometry is known for family 'qwen2_vl'"
    ):
        watched.result(image=picture(60, 90))


def test_a_record_of_several_views_is_saved_and_read_back(tmp_path):
    subject = tiny_model("llava_next")
    record = read_and_record(subject, picture(60, 90), "a dog", answer=ANSWER)
    probe.save(record, tmp_path / "record.safetensors")
    again = probe.load(tmp_path / "record.safetensors")
    for one, other in zip(record.layers, again.layers, strict=True):
        assert (one.view, one.grid.row_edges, one.grid.image_size) == (
            other.view,
            other.grid.row_edges,
            other.grid.image_size,
        )
        torch.testing.assert_close(one.values, other.values)
    with pytest.raises(InputError, match="needs layers alike in view"):
        record.heatmap(reading="attention")
    assert record.select(view="image 0").heatmap(reading="attention").shape == (60, 90)


def test_exact_softmax_is_undone():
    before = torch.nn.functional.softmax
    with exact_softmax(tiny_model("llava")):
        pass
    assert torch.nn.functional.softmax is before
    assert isinstance(smooth_picture(), Image.Image)


def test_a_llava_is_of_the_family_of_its_vision_tower():
    pixtral, llava = tiny_model("pixtral").model, tiny_model("llava").model
    assert type(pixtral) is type(llava)
    for one, name in ((pixtral, "pixtral"), (pixtral.config, "pixtral"), (llava, "llava"), (llava.config, "llava")):
        assert family_of(one).name == name
    # Were it read as a LLaVA, its picture's own grid would have no processor that is known.
    wrong = Subject(pixtral, tiny_model("pixtral").processor, family_of(llava), "wrong")
    with pytest.raises(
        CaptureError, match="PixtralImageProcessorPil is not one whose geometry is known for family 'llava'"
    ):
        view_painting._views(wrong, picture(60, 90))


def test_tiles_that_are_resized_and_cropped_after_they_are_cut_are_refused():
    subject, shown = tiny_model("llava_next"), picture(60, 90)
    subject.processor.image_processor.size = {"shortest_edge": 20}
    with pytest.raises(CaptureError, match="resized or cropped after they are cut, which is not understood"):
        read_and_record(subject, shown, "a dog", answer=ANSWER)
