"""Each sequence of a batch has its own record: the same as alone, images in their order, and nothing on padding."""

from __future__ import annotations

import pytest
import torch

import probe
from probe.capture.passes import inputs_for
from probe.errors import CaptureError, InputError
from probe.tiny import tiny_model
from tests.capture.families import batch_of
from tests.capture.reference import inputs_of
from tests.capture.test_generation import _same
from tests.names import shown
from tests.tiny import picture, tiny_llava

PROMPTS = ["a dog", "Describe the image. a man with a red ball"]
ENDS = {2, *range(120, 150)}  # many, so that some answers end early
SHOWN = [(60, 90), (90, 50)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _generate(subject, inputs, **options):
    settings = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [3]} | options
    with torch.inference_mode(), probe.record(subject, verify="all") as recorder:
        output = subject.model.generate(**inputs, **settings)
    return recorder, output


def test_a_batch_in_one_pass_has_the_rows_of_every_prompt():
    subject = tiny_llava(seed=4)
    shown = [picture(seed=1), picture(seed=2)]
    inputs = batch_of(subject, [([image], prompt) for image, prompt in zip(shown, PROMPTS, strict=True)])
    with probe.record(subject, queries="prompt", verify="all") as recorder:
        subject.model(**inputs)
    for index, record in enumerate(recorder.results(images=shown)):
        with probe.record(subject, queries="prompt", verify="all") as single:
            subject.model(**batch_of(subject, [([shown[index]], PROMPTS[index])]))
        _same(record, single.result(image=shown[index]), 1e-5)


def test_an_end_token_stops_a_sequence_while_others_go_on():
    subject = tiny_llava(seed=5)
    shown = [picture(seed=1), picture(seed=2)]
    inputs = batch_of(subject, [([image], prompt) for image, prompt in zip(shown, PROMPTS, strict=True)])
    _, output = _generate(subject, inputs)
    start = inputs["input_ids"].shape[1]
    answers = [row[start:].tolist() for row in output]
    end = next(one for one in answers[0][1:] if one not in answers[1])
    recorder, _ = _generate(subject, inputs, eos_token_id=end)
    first, second = recorder.results()
    assert first.token_ids == tuple(answers[0][: answers[0].index(end) + 1])
    assert second.token_ids == tuple(answers[1])
    kept, _ = _generate(subject, batch_of(subject, [([shown[0]], PROMPTS[0])]), eos_token_id=end)
    for one, other in zip(first.layers, kept.result().layers, strict=True):
        torch.testing.assert_close(one.token_mean, other.token_mean, atol=1e-5, rtol=0)


def test_which_sequence_is_meant_must_be_said():
    subject = tiny_llava()
    one = inputs_of(subject, picture())
    inputs = {name: torch.cat([part, part]) for name, part in one.items()}
    recorder, _ = _generate(subject, inputs)
    with pytest.raises(
        InputError, match=r"2 sequences were recorded: give the number of one, result\(0\), or take all"
    ):
        recorder.result()
    with pytest.raises(InputError, match="sequence 2 does not exist: there are 2, numbered 0 to 1"):
        recorder.result(2)
    with pytest.raises(InputError, match=r"given images of 1 sequences, but 2 were recorded"):
        recorder.results(images=[picture()])
    assert [len(found.tokens) for found in recorder.results()] == [5, 5]
    single, _ = _generate(subject, one)
    assert single.result(0).token_ids == single.result().token_ids == single.results()[0].token_ids


def test_a_sequence_without_an_image_has_no_record_and_the_others_have():
    subject = tiny_llava()
    pixels = inputs_of(subject, picture())
    text = subject.processor.tokenizer("USER: a dog ASSISTANT:", return_tensors="pt")["input_ids"]
    length = pixels["input_ids"].shape[1]
    padded = torch.cat([torch.zeros(1, length - text.shape[1], dtype=torch.long), text], dim=1)
    inputs = {
        "input_ids": torch.cat([padded, pixels["input_ids"]]),
        "attention_mask": torch.cat([(padded != 0).long(), pixels["attention_mask"]]),
        "pixel_values": pixels["pixel_values"],
    }
    recorder, _ = _generate(subject, inputs)
    with pytest.raises(InputError, match="This sequence has no image"):
        recorder.result(0)
    assert recorder.result(1).certificate.passed


@pytest.mark.parametrize(
    "option", [{"stop_strings": ["dog"]}, {"stopping_criteria": [lambda ids, scores: False]}], ids=shown
)
def test_ends_that_leave_no_token_are_refused_in_a_batch(option):
    subject = tiny_llava()
    one = inputs_of(subject, picture())
    inputs = {name: torch.cat([part, part]) for name, part in one.items()}
    with pytest.raises(CaptureError, match=r"ends single sequences of a batch without an end token"):
        _generate(subject, inputs, **option)


def test_the_output_of_a_batch_is_the_same_to_the_last_bit():
    subject = tiny_llava(seed=6)
    shown = [picture(seed=1), picture(seed=2)]
    inputs = batch_of(subject, [([image], prompt) for image, prompt in zip(shown, PROMPTS, strict=True)])
    with torch.inference_mode():
        plain = subject.model(**inputs).logits
        with probe.record(subject, queries="prompt"):
            assert torch.equal(subject.model(**inputs).logits, plain)


def test_inputs_are_those_of_run():
    subject = tiny_model("gemma3")
    mine, _ = inputs_for(subject, picture(), "a dog")
    assert torch.equal(mine["input_ids"], batch_of(subject, [([picture()], "a dog")])["input_ids"])
