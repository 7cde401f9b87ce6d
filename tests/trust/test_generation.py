"""R7, R8: generating is reading, and a batch is its sequences one by one."""

from __future__ import annotations

import pytest
import torch

import probe
from probe.capture.passes import read_and_record
from probe.errors import CaptureError, InputError
from probe.tiny import tiny_model
from tests.capture.families import LANGUAGE, batch_of, views
from tests.capture.reference import inputs_of, read
from tests.tiny import picture, tiny_llava
from tests.trust.rows import count_same

# The model's own RMSNorm and softmax round to float32, and cached and whole passes add up in another order.
ALLOWED = {torch.float64: 2e-6, torch.float32: 2e-5}
TAUGHT = "0 rows differ by more than rounding; first token included"
PROMPTS = ["a dog", "Describe the image. a man with a red ball"]
SHOWN = [(60, 90), (90, 50)]
ENDS = {2, *range(120, 150)}  # many, so that some answers end early


@pytest.mark.promises("R7")
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("query_row", ["predicting", "own"])
@pytest.mark.parametrize("sampled", [False, True])
def test_generating_equals_reading(dtype, query_row, sampled, line, full):
    taught, answers = line("R7", target=TAUGHT), set()
    for seed in range(60 if full else 8):
        subject = tiny_llava(seed=seed, dtype=dtype, attention="sdpa" if seed % 2 else "eager")
        inputs = inputs_of(subject, picture(seed=seed), padding=seed % 3 if seed % 2 else 0)
        torch.manual_seed(seed)
        with probe.record(subject, query_row=query_row, verify="all") as recorder:
            output = subject.model.generate(
                **inputs,
                max_new_tokens=10,
                do_sample=sampled,
                temperature=3.0 if sampled else None,
                suppress_tokens=[3],
            )
        generated = recorder.result()
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        # The last token is never fed back, so it has a predicting row but no own row.
        assert generated.token_ids == tuple(ids if query_row == "predicting" else ids[:-1])
        one_pass = read(subject, inputs, list(generated.token_ids), query_row=query_row)
        count_same(taught, generated, one_pass, allowed=ALLOWED[dtype], what=f"seed {seed}")
        answers.add(tuple(ids))
    assert len(answers) > 4, "the answers must differ, or this shows little"
    taught.settle()


@pytest.mark.promises("R2", "R7")
@pytest.mark.parametrize("name", [*LANGUAGE, "difflmm"])
def test_generating_equals_reading_in_every_family(name, line, full):
    taught, identical = line("R7", target=TAUGHT), line("R2", target="0 of all outputs differ")
    subject = tiny_model(name)
    for seed in range(8 if full else 1):
        shown = picture(60, 90, seed=seed)
        inputs = batch_of(subject, [([shown], PROMPTS[seed % 2])])
        settings = {"max_new_tokens": 6, "suppress_tokens": [subject.model.config.image_token_id]}
        settings |= {"do_sample": bool(seed % 2), "return_dict_in_generate": True, "output_logits": True}
        torch.manual_seed(seed)
        plain = subject.model.generate(**inputs, **settings)
        torch.manual_seed(seed)
        with probe.record(subject, verify="all") as recorder:
            watched = subject.model.generate(**inputs, **settings)
        same = torch.equal(plain.sequences, watched.sequences)
        same = same and all(torch.equal(one, two) for one, two in zip(plain.logits, watched.logits, strict=True))
        identical.trial(same, silent=True, what=f"{name} {seed}")
        generated = recorder.result(image=shown)
        one_pass = read_and_record(subject, shown, PROMPTS[seed % 2], answer=generated.token_ids, verify="all")
        count_same(taught, generated, one_pass, allowed=2e-5, what=f"{name} {seed}")
    taught.settle()
    identical.settle()


@pytest.mark.promises("R7", "R8")
@pytest.mark.parametrize("query_row", ["predicting", "own"])
@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 3}], ids=str)
def test_sampled_batches_equal_reading_each_answer(query_row, options, line, full):
    taught, alike = line("R7", target=TAUGHT), line("R8", target="0 rows differ by more than rounding")
    lengths, subject = set(), tiny_llava(seed=3, dtype=torch.float64)
    for seed in range(40 if full else 4):
        shown = [picture(seed=seed), picture(seed=seed + 10)]
        conversations = [([image], prompt) for image, prompt in zip(shown, PROMPTS, strict=True)]
        inputs = batch_of(subject, conversations)
        torch.manual_seed(seed)
        with probe.record(subject, query_row=query_row, verify="all") as recorder:
            output = subject.model.generate(
                **inputs,
                max_new_tokens=8,
                min_new_tokens=2,
                do_sample=True,
                temperature=4.0,
                suppress_tokens=[3, 0],
                eos_token_id=sorted(ENDS),
                **options,
            )
        each = options.get("num_return_sequences", 1)
        records = recorder.results(images=[image for image in shown for _ in range(each)])
        assert len(records) == 2 * each
        for row, record in enumerate(records):
            alone = batch_of(subject, [conversations[row // each]])
            ids = output[row, inputs["input_ids"].shape[1] :].tolist()
            ends = [place for place, one in enumerate(ids) if one in ENDS]
            ids = ids[: ends[0] + 1] if ends else ids  # what follows the end token is padding
            assert record.token_ids == tuple(ids if query_row == "predicting" else ids[:-1])
            lengths.add(len(ids))
            one_pass = read(subject, alone, list(record.token_ids), query_row=query_row, image=shown[row // each])
            for one in (taught, alike):
                count_same(one, record, one_pass, allowed=2e-6, what=f"seed {seed} sequence {row}")
    assert len(lengths) > 1, "some answers must end before the others"
    taught.settle()
    alike.settle()


def _generate(subject, inputs):
    # An answer of blanks alone is refused, and a random model gives one now and then.
    tokenizer = subject.processor.tokenizer
    blank = [one for one in range(len(tokenizer)) if not tokenizer.decode([one]).strip()]
    settings = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [3, *blank]}
    with torch.inference_mode(), probe.record(subject, verify="all") as recorder:
        subject.model.generate(**inputs, **settings)
    return recorder


@pytest.mark.promises("R8")
@pytest.mark.parametrize("name", LANGUAGE)
def test_a_batch_is_as_its_singles(name, line, full):
    alike, subject = line("R8", target="0 rows differ by more than rounding"), tiny_model(name)
    for seed in range(6 if full else 1):
        shown = [picture(*size, seed=seed + number) for number, size in enumerate(SHOWN)]
        conversations = [([image], prompt) for image, prompt in zip(shown, PROMPTS, strict=True)]
        inputs = batch_of(subject, conversations)
        assert not inputs["attention_mask"].all(), "the prompts must differ in length"
        recorder = _generate(subject, inputs)
        for index, conversation in enumerate(conversations):
            record = recorder.result(index, image=shown[index])
            alone = _generate(subject, batch_of(subject, [conversation])).result(image=shown[index])
            assert (record.image_size, record.source.prompt) == (SHOWN[index], alone.source.prompt)
            count_same(alike, record, alone, allowed=1e-5, what=f"{name} {seed} sequence {index}")
            for one in record.layers:  # what fell on padding would be missing here
                total = one.values.double().sum((-1, -2)) + one.rest.double().sum(-1)
                alike.every((total - 1).abs() < 1e-5, what=f"{name}: mass on padding")
        with pytest.raises((InputError, CaptureError), match=r"is not the one that the model saw|saw a picture of"):
            recorder.result(0, image=shown[1])
    alike.settle()


@pytest.mark.promises("R8", target="0 rows differ by more than rounding")
@pytest.mark.parametrize("name", LANGUAGE)
def test_several_images_keep_their_order(name):
    subject = tiny_model(name)
    shown = [picture(60, 90, seed=1), picture(90, 50, seed=2)]
    inputs = batch_of(subject, [(shown, "a dog")])
    recorder = _generate(subject, inputs)
    record = recorder.result(image=shown)
    names = [one for one in views(record) if one.startswith("image")]
    assert names == ["image 0", "image 1"]
    for number, size in enumerate([(60, 90), (90, 50)]):
        assert record.select(view=f"image {number}").layers[0].grid.image_size == size
    with pytest.raises((InputError, CaptureError), match=r"is not the one that the model saw|saw a picture"):
        recorder.result(image=shown[::-1])
    with pytest.raises(InputError, match="give all images of this sequence as a list"):
        recorder.result(image=shown[0])
    with pytest.raises(InputError, match=r"was given 3 image\(s\)"):
        recorder.result(image=[*shown, shown[0]])
    positions = recorder.tracks[0].sequence.image_keys
    assert record.certificate.patches <= len(positions)
