"""R1, R2, R3, R6: what is recorded is what the model computed, in every language model, and the model goes on as before."""

from __future__ import annotations

import copy

import pytest
import torch

import probe
from probe.capture.weights import TOLERANCES
from probe.tiny import tiny_model
from tests.capture.families import IN_SEQUENCE, batch_of
from tests.capture.reference import eager_batch
from tests.tiny import picture
from tests.trust.ledger import settle
from tests.trust.rows import ALLOWED, columns_of, in_dtype, worst_rows

LANGUAGE = [*IN_SEQUENCE, "mllama"]
ENCODERS = ["clip", "siglip", "siglip2", "dinov2", "dinov3", "vit", "blip_2_vision"]
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


@pytest.mark.promises("R1", "R2", "R3", "R6")
@pytest.mark.parametrize("name", LANGUAGE)
def test_every_row_of_a_language_model(name, line, full):
    parity = line("R1", target="<= 1e-6 float32, 1e-12 float64, 2e-3 float16, 1e-2 bfloat16, 100 % of rows")
    identical = line("R2", target="0 of all logits differ")
    certificate = line("R3", target="<= 1e-5 float32, 2e-2 bfloat16; ids, columns and counts the model's own")
    sums = line("R6", target="|sum - 1| <= 1e-5, masked exactly 0, no NaN")
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
            ids, real = inputs["input_ids"][number], inputs["attention_mask"][number].bool()
            image = ids == subject.model.config.image_token_id
            rows = (real & ~image).nonzero()[:, 0]
            if (
                name == "mllama"
            ):  # two of its layers look at tiles, from the text behind them; their columns are the tiles' keys
                rows = (inputs["cross_attention_mask"][number].flatten(1).any(1) & real & ~image).nonzero()[:, 0]
                maps = torch.stack([reference[layer][number] for layer in (1, 3)])
                columns = torch.ones(maps.shape[-1], dtype=torch.bool)
            else:
                maps, columns = torch.stack([one[number] for one in reference]), image
            found = columns_of(record)
            heads_differ = float((maps[:, 0] - maps[:, 1]).abs().max()) > 0.05
            in_order = name not in TILED
            same_tokens = record.token_ids == tuple(ids[rows].tolist()) and heads_differ
            off = (
                worst_rows(found, maps[:, :, rows][..., columns], in_order=in_order)
                if same_tokens
                else torch.full((1,), torch.inf)
            )
            wrong = int((~(off <= ALLOWED[dtype])).sum())
            parity.add(trials=off.numel(), failures=wrong, silent_wrong=wrong, what=f"{what}: {float(off.max()):.1e}")
            seen, tolerance = record.certificate, TOLERANCES[dtype]
            right = seen.passed and seen.rows == off.shape[0] * off.shape[-1] and seen.tokens == len(rows)
            right = right and seen.max_error <= tolerance and seen.patches == found.shape[-1]
            certificate.trial(right, silent=True, what=f"{what}: {seen}")
            rest = torch.stack([one.rest[0] for one in record.layers if one.view == record.layers[0].view])
            view = torch.stack([one.values[0] for one in record.layers if one.view == record.layers[0].view])
            total = view.double().sum((-1, -2)) + rest.double().sum(-1)
            broken = int((~((total - 1).abs() <= 1e-5)).sum())
            sums.add(
                trials=total.numel(), failures=broken, silent_wrong=broken, what=f"{what}: {total.min()} {total.max()}"
            )
    settle(parity, identical, certificate, sums)
