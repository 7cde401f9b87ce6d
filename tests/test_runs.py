"""One image in one line: what run() gives is what the model said and where it looked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.errors import InputError
from tests.tiny import picture, tiny_llava


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_a_run_generates_what_the_model_generates():
    for seed in range(4):
        subject = tiny_llava(seed=seed)
        found = probe.run(subject, picture(seed=seed), "a dog", max_new_tokens=7)
        text = "USER: <image>\na dog ASSISTANT:"
        inputs = subject.processor(images=picture(seed=seed), text=text, return_tensors="pt")
        plain = subject.model.generate(**inputs, max_new_tokens=7, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert found.record.token_ids == tuple(plain.tolist())
        assert found.text == subject.processor.tokenizer.decode(plain, skip_special_tokens=True).lstrip()
        assert (found.prompt, found.image.size) == ("a dog", (56, 40))
        assert found.record.image_size == (40, 56)
        assert found.record.source.prompt == "USER: <image>\na dog ASSISTANT:"
        assert found.record.certificate.passed


@pytest.mark.parametrize("answer", ["a man with a red ball", "two dogs near a café 🐶", " a dog ", "dog"])
def test_a_given_answer_is_read_word_for_word_with_its_end(answer):
    subject = tiny_llava()
    found = probe.run(subject, picture(), "Describe the image.", answer=answer, verify="all")
    assert found.text == answer.strip()
    assert found.record.tokens[-1] == "</s>"
    ids = subject.processor.tokenizer(" " + answer.strip(), add_special_tokens=False)["input_ids"]
    assert found.record.token_ids == (*ids, 2)
    # Ids are taken as they are: the same ids, the same maps.
    again = probe.run(subject, picture(), "Describe the image.", answer=list(found.record.token_ids))
    for one, other in zip(found.record.layers, again.record.layers, strict=True):
        assert torch.equal(one.values, other.values)
    assert len(probe.run(subject, picture(), "x", answer=ids).record.tokens) == len(ids)


@pytest.mark.parametrize("answer", ["", "  \n", []])
def test_an_empty_answer_is_refused(answer):
    with pytest.raises(InputError, match="The answer to be read is empty; give a text, or leave answer out"):
        probe.run(tiny_llava(), picture(), "a dog", answer=answer)


def test_options_reach_the_recorder_and_the_mean_stays_that_of_the_whole_answer():
    subject, answer = tiny_llava(seed=1), "a man with a red ball"
    whole = probe.run(subject, picture(), "a dog", answer=answer).record
    kept = [3, 0]
    part = probe.run(
        subject, picture(), "a dog", answer=answer, layers=[2, 0], heads=[1], queries=kept, offload=True, verify="all"
    ).record
    assert part.token_ids == tuple(whole.token_ids[i] for i in kept)
    assert part.certificate.tokens == len(whole.tokens)
    for one, number in zip(part.layers, (2, 0), strict=True):
        torch.testing.assert_close(one.values, whole.layers[number].values[:, [1]][:, :, kept], atol=1e-7, rtol=0)
        torch.testing.assert_close(one.token_mean, whole.layers[number].values[:, [1]].mean(2), atol=1e-7, rtol=0)
    torch.testing.assert_close(
        part.minus_mean().layers[0].values, whole.minus_mean().layers[2].values[:, [1]][:, :, kept], atol=1e-7, rtol=0
    )


def test_the_prompts_own_words_can_be_asked():
    record = probe.run(tiny_llava(), picture(), "a red ball", queries="prompt", max_new_tokens=2).record
    assert record.query_kind == "prompt token"
    assert record.query_row == "own"
    assert record.text == "USER: \na red ball ASSISTANT:"
    assert [one.strip() for one in record["red ball"].mean("token").tokens] == ["red ball"]


@pytest.mark.parametrize("preparation", ["crop", "pad", "squash"])
def test_files_arrays_and_pictures_are_one_image(preparation, tmp_path):
    subject = tiny_llava(preparation=preparation)
    image = picture(50, 30)
    image.save(tmp_path / "photo.png")
    records = [
        probe.run(subject, one, "a dog", answer="a dog").record
        for one in (image, np.asarray(image), tmp_path / "photo.png", str(tmp_path / "photo.png"))
    ]
    for one in records:
        assert one.image_size == (50, 30)
        assert torch.equal(one.layers[0].values, records[0].layers[0].values)
        assert one.layers[0].grid.row_edges == records[0].layers[0].grid.row_edges


def test_a_turned_photograph_gives_the_upright_ones_record(tmp_path):
    upright = picture(50, 30, seed=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    subject = tiny_llava()
    one, other = (
        probe.run(subject, image, "a dog", answer="a dog").record for image in (upright, tmp_path / "turned.png")
    )
    assert one.image_size == other.image_size == (50, 30)
    assert torch.equal(one.layers[0].values, other.layers[0].values)
