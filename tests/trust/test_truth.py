"""R1, R2, R3, R6: what is recorded is what the model computed, in every language model, and the model goes on as before."""

from __future__ import annotations

import copy
import random

import pytest
import torch

import probe
from probe.tiny import tiny_model
from tests.capture.families import IN_SEQUENCE, batch_of
from tests.capture.plain import plain_softmax
from tests.capture.reference import eager_batch, inputs_of
from tests.tiny import picture, tiny_llava
from tests.trust.ledger import settle
from tests.trust.rows import ALLOWED, CERTIFIED, PARITY, SUMS, columns_of, count_certificate, count_rows, in_dtype

LANGUAGE = [*IN_SEQUENCE, "mllama"]
#: Their views are put together from tiles, so cells are not in the order of the sequence.
TILED = ("llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm", "mllama")
PROMPTS = ["a dog", "Describe the image. a man with a red ball"]
PADDINGS = ["left", "right", "none"]


def _batch(subject, padding, seed):
    """Two conversations of different lengths, or one where nothing is to be padded; and their pictures."""
    shown = [picture(60, 90, seed=seed), picture(90, 50, seed=seed + 1)][: 1 if padding == "none" else 2]
    conversations = [([image], prompt) for image, prompt in zip(shown, PROMPTS, strict=False)]
    return batch_of(subject, conversations, padding="left" if padding == "none" else padding), shown


def _settings(full, number):
    """(number type, padding, seed): all of them, or four in which each number type and each padding comes."""
    every = [(dtype, padding, seed) for seed in range(3) for dtype in ALLOWED for padding in PADDINGS]
    return every if full else [(dtype, PADDINGS[(i + number) % 3], number) for i, dtype in enumerate(ALLOWED)]


def _expected(subject, inputs, reference, number):
    """(layer, head, row, image key) weights of one sequence of the batch, and the ids of its rows, by the inputs alone."""
    ids, real = inputs["input_ids"][number], inputs["attention_mask"][number].bool()
    image = ids == subject.model.config.image_token_id
    asks = real & ~image
    if subject.family.name == "mllama":
        # Two of its layers look at tiles, which are keys of their own, from the text behind the picture's placeholder.
        asks &= inputs["cross_attention_mask"][number].flatten(1).any(1)
        reference = [reference[layer] for layer in (1, 3)]
        image = torch.ones(reference[0].shape[-1], dtype=torch.bool)
    maps = torch.stack([one[number] for one in reference])
    return maps[:, :, asks][..., image], ids[asks].tolist()


@pytest.mark.promises("R1", "R2", "R3", "R6")
@pytest.mark.parametrize("name", LANGUAGE)
def test_every_row_of_a_language_model(name, line, full):
    parity, certificate = line("R1", target=PARITY), line("R3", target=CERTIFIED)
    identical, sums = line("R2", target="0 of all outputs differ"), line("R6", target=SUMS)
    for dtype, padding, seed in _settings(full, LANGUAGE.index(name)):
        subject = in_dtype(tiny_model(name), dtype)
        inputs, shown = _batch(subject, padding, seed)
        twin = copy.deepcopy(subject.model)
        with torch.inference_mode():
            plain = twin(**inputs, use_cache=False).logits
            with probe.record(subject, queries="prompt", verify="all") as recorder:
                watched = subject.model(**inputs, use_cache=False).logits
        identical.trial(torch.equal(plain, watched), silent=True, what=(dtype, padding))
        reference = eager_batch(subject, inputs)
        for number, record in enumerate(recorder.results(images=shown)):
            what = f"{name} {dtype} {padding} {seed} sequence {number}"
            expected, ids = _expected(subject, inputs, reference, number)
            assert record.token_ids == tuple(ids), what
            count_rows(parity, columns_of(record), expected, in_order=name not in TILED, dtype=dtype, what=what)
            count_certificate(certificate, record, rows=expected.shape[0] * len(ids), dtype=dtype, what=what)
            for view in dict.fromkeys(one.view for one in record.layers):
                own = [one for one in record.layers if one.view == view]
                total = torch.stack([one.values.sum((-1, -2)) + one.rest.sum(-1) for one in own])
                sums.every((total - 1).abs() <= 1e-5, what=f"{what} {view}")
    settle(parity, identical, certificate, sums)


@pytest.mark.promises("R6")
def test_keys_that_a_mask_hides_get_exactly_nothing(line, full):
    hidden = line("R6", target=SUMS)
    chance = random.Random(6)
    for seed in range(60 if full else 6):
        attention = ("sdpa", "eager")[seed % 2]
        subject = tiny_llava(attention=attention, seed=seed, text=("llama", "qwen2", "mistral")[seed % 3])
        inputs = inputs_of(subject, picture(seed=seed))
        ids = inputs["input_ids"][0]
        length = len(ids)
        allowed = torch.rand(length, length, generator=torch.Generator().manual_seed(seed)) < chance.uniform(0.2, 0.9)
        allowed = allowed.tril() | torch.eye(length, dtype=torch.bool)
        mask = (allowed if attention == "sdpa" else torch.where(allowed, 0.0, -torch.inf))[None, None]
        with probe.record(subject, queries="prompt", verify="all") as recorder, torch.inference_mode():
            subject.model(**dict(inputs, attention_mask=mask))
        found = columns_of(recorder.result())
        may = allowed[ids != 3][:, ids == 3].expand_as(found)
        hidden.every(found[~may] == 0, what=f"{seed}: a hidden key")
        hidden.every(found[may] > 0, what=f"{seed}: a key that may be looked at")
    hidden.settle()


@pytest.mark.promises("R6")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_query_that_may_look_nowhere_is_refused_without_nan(attention, line, full):
    flagged = line("R6", target=SUMS)
    subject = tiny_llava(attention=attention)
    inputs = inputs_of(subject, picture())
    ids = inputs["input_ids"][0]
    for row in (ids != 3).nonzero()[:: 1 if full else 3, 0].tolist():
        allowed = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None].clone()
        allowed[..., row, :] = False
        mask = allowed if attention == "sdpa" else torch.where(allowed, 0.0, -torch.inf)
        with probe.record(subject, queries="prompt") as recorder, torch.inference_mode():
            subject.model(**dict(inputs, attention_mask=mask))
        try:
            recorder.result()
        except probe.ProbeError as error:
            flagged.trial("every key masked" in str(error) or "does not rebuild" in str(error), what=error)
        else:
            flagged.trial(False, silent=True, what=f"row {row}")
    flagged.settle()


@pytest.mark.promises("R3")
def test_the_certificate_says_the_error_that_a_plain_line_finds(line, full):
    # Were its error computed from something else than the kernel's own output, it could not be this number.
    certificate = line("R3", target=CERTIFIED)
    for seed in range(24 if full else 4):
        subject = tiny_llava(seed=seed, num_key_value_heads=(1, 2, 4)[seed % 3])
        inputs = inputs_of(subject, picture(seed=seed))
        calls = []
        with torch.inference_mode(), probe.record(subject, queries="prompt", verify="all") as recorder:
            weights = plain_softmax(lambda: subject.model(**inputs), keep=calls)[-3:]  # noqa: B023
        seen, rows = recorder.result().certificate, inputs["input_ids"][0] != 3
        worst = 0.0
        for plain, (value, output) in zip(weights, calls[-3:], strict=True):
            value = value.repeat_interleave(plain.shape[1] // value.shape[1], dim=1).double()
            off = ((plain @ value - output)[0][:, rows]).abs().amax((1, 2)) / output[0][:, rows].abs().amax((1, 2))
            worst = max(worst, float(off.max()))
        # Both are rounding, of about a ten-millionth; an error of another size would be another thing.
        certificate.trial(
            worst <= 1e-5 and seen.max_error <= 1e-5 and seen.max_error < 10 * worst, silent=True, what=seen
        )
    certificate.settle()
