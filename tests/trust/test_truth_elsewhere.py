"""R1, R2, R3, R6 where no language model reads the patches: image encoders, Q-Formers, U-Nets and diffusion transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.capture.encoders import EncoderRecorder, has_class_token
from probe.capture.geometry import encoder_inputs
from probe.capture.modules import class_and_registers
from probe.family_checks import check_family
from probe.tiny import TINY, tiny_model
from tests.capture import test_diffusion as unets
from tests.capture import test_transformers as transformers
from tests.capture.families import LANGUAGE
from tests.tiny import picture
from tests.tiny_diffusion import heard
from tests.tiny_transformers import PIPELINES, generate, plain_maps
from tests.trust.ledger import settle
from tests.trust.rows import (
    ALLOWED,
    CERTIFIED,
    PARITY,
    SUMS,
    columns_of,
    count_certificate,
    count_rows,
    eager_encoder,
    in_dtype,
)  # fmt: skip

ENCODERS = ["clip", "siglip", "siglip2", "dinov2", "dinov3", "vit", "blip_2_vision"]
QFORMERS = ["blip_2", "instructblip"]
#: The library has no eager reference of diffusion transformers. A plain softmax in float64 stands for it, from which one in float32
#: is itself up to 2.6e-6 away with these logits, and the recorder up to 1.2e-6.
OF_DOUBLE = {torch.float32: 3e-6, torch.float64: 1e-12}
DIFFUSION = ["stable_diffusion", "pixart", "stable_diffusion_3", "flux"]


def test_every_family_is_tried():
    assert {*LANGUAGE, "difflmm", *ENCODERS, *QFORMERS, *DIFFUSION} == set(TINY)


@pytest.mark.promises("R1", "R2", "R3", "R6")
@pytest.mark.parametrize("name", ENCODERS)
def test_every_row_of_an_image_encoder(name, line, full):
    parity, certificate = line("R1", target=PARITY), line("R3", target=CERTIFIED)
    identical, sums = line("R2", target="0 of all outputs differ"), line("R6", target=SUMS)
    sizes = [(60, 90), (33, 32), (90, 40), (16, 300)] if full else [(60, 90)]
    for dtype in ALLOWED:
        subject = in_dtype(tiny_model(name), dtype)
        for seed, size in enumerate(sizes):
            shown = picture(*size, seed=seed)
            inputs = encoder_inputs(subject.processor, shown, subject.model)
            run = lambda tower, inputs=inputs, **options: tower(**inputs, **options)  # noqa: E731
            first = sum(class_and_registers(EncoderRecorder(subject.model, subject.processor, queries=[0]).tower))
            for queries in _queries(subject, shown, inputs):
                what = f"{name} {dtype} {size} {queries if isinstance(queries, str) else 'patches'}"
                recorder = EncoderRecorder(subject.model, subject.processor, queries=queries, verify="all")
                with torch.inference_mode():
                    plain = run(recorder.tower).last_hidden_state
                    with recorder:
                        watched = run(recorder.tower).last_hidden_state
                identical.trial(torch.equal(plain, watched), silent=True, what=what)
                record = recorder.result(image=shown)
                maps = torch.stack(eager_encoder(recorder, run))
                patches = record.layers[0].grid.shape[0] * record.layers[0].grid.shape[1]
                rows = [0] if isinstance(queries, str) else list(range(first, first + patches))
                expected = maps[:, :, rows][..., first : first + patches]
                count_rows(parity, columns_of(record), expected, in_order=True, dtype=dtype, what=what)
                count_certificate(certificate, record, rows=len(maps) * len(rows), dtype=dtype, what=what)
                total = torch.stack([one.values.sum((-1, -2)) + one.rest.sum(-1) for one in record.layers])
                sums.every((total - 1).abs() <= 1e-5, what=what)
    settle(parity, certificate, identical, sums)


def _queries(subject, shown, inputs):
    """The class token, where there is one, and every patch."""
    with torch.inference_mode(), EncoderRecorder(subject.model, subject.processor, queries=[0]) as recorder:
        recorder.tower(**inputs)
    count = int(np.prod(recorder.result(image=shown).layers[0].grid.shape))
    return (["class token"] if has_class_token(recorder.tower) else []) + [list(range(count))]


@pytest.mark.promises("R1", "R3")
@pytest.mark.parametrize("name", QFORMERS)
def test_every_row_of_a_q_former(name, line):
    # The library gives no weights of it in any mode; the reference is a softmax of its own projections, of all rows.
    parity, certificate = line("R1", target=PARITY), line("R3", target=CERTIFIED)
    report = check_family(name)
    rows = 2 * 2 * 4 * 6  # two number types, two layers that look at the picture, 4 heads, 6 queries
    wrong = 0 if report.parity <= 1e-6 and report.parity_float64 <= 1e-12 else rows
    parity.add(trials=rows, failures=wrong, silent_wrong=wrong, what=report)
    certificate.trial(report.certificate <= 1e-5, silent=True, what=report)
    settle(parity, certificate)


@pytest.mark.promises("R1", "R2", "R3", "R6")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", unets.PIPELINES)
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_every_row_of_a_unet_at_every_timestep(name, dtype, guidance_scale, line, full):
    parity, certificate = line("R1", target=PARITY), line("R3", target=CERTIFIED)
    identical, sums = line("R2", target="0 of all outputs differ"), line("R6", target=SUMS)
    row = 1 if guidance_scale > 1 else 0  # the conditional half of the batch
    for seed in range(6 if full else 1):
        pipeline = unets.PIPELINES[name](dtype=dtype, seed=1 + seed)
        plain = unets.generate(pipeline, guidance_scale=guidance_scale)
        with heard(pipeline.unet) as calls, probe.record(pipeline, timesteps="all", verify="all") as recorder:
            watched = unets.generate(pipeline, guidance_scale=guidance_scale)
        identical.trial(bool((plain == watched).all()), silent=True, what=name)
        record = recorder.result()
        assert len(calls[0][1]["encoder_hidden_states"]) == row + 1
        assert all(one.timesteps == tuple(map(int, pipeline.scheduler.timesteps)) for one in record.layers)
        rows = sum(one.values[:, :, 0].numel() for one in record.layers)
        off = unets.largest_difference(record, calls, pipeline, row=row)
        wrong = 0 if off <= ALLOWED[dtype] else rows
        parity.add(trials=rows, failures=wrong, silent_wrong=wrong, what=f"{name} {dtype}: {off:.1e}")
        certificate.trial(record.certificate.passed, silent=True, what=record.certificate)
        for layer in record.layers:
            sums.every((layer.values.sum(2) - 1).abs() <= 1e-5, what=name)
    settle(parity, certificate, identical, sums)


@pytest.mark.promises("R1", "R2", "R3", "R6")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "place"), transformers.CASES)
def test_every_row_of_a_diffusion_transformer_at_every_timestep(name, place, dtype, line, full):
    parity, certificate = line("R1", target=PARITY), line("R3", target=CERTIFIED)
    identical, sums = line("R2", target="0 of all outputs differ"), line("R6", target=SUMS)
    cells = {"patches": [(0, 0), (1, 2)]} if place in ("self-attention", "image to image") else {}
    of_words = place in ("cross-attention", "image to text")
    for seed in range(4 if full else 1):
        pipeline = PIPELINES[name](dtype=dtype, seed=1 + seed)
        plain = generate(pipeline)
        with (
            heard(pipeline.transformer) as calls,
            probe.record(pipeline, place=place, timesteps="all", verify="all", **cells) as recorder,
        ):
            watched = generate(pipeline)
        identical.trial(bool((plain == watched).all()), silent=True, what=(name, place))
        record, found = recorder.result(), plain_maps(pipeline, calls)
        assert len(found) == len(record.layers[0].timesteps) == 2
        certificate.trial(record.certificate.passed, silent=True, what=record.certificate)
        for layer in record.layers:
            assert (layer.values.dtype, layer.grid.shape) == (dtype, (4, 4))
            # Of a guided batch the second half. Whatever looks spreads 1: a patch over the words, a word over the rest too.
            expected = torch.stack([transformers.expected(name, place, maps[layer.name][-1]) for maps in found])
            off = (layer.values.flatten(3) - expected).abs().amax(2 if of_words else 3)
            parity.every(off <= OF_DOUBLE[dtype], what=f"{name} {place}: {float(off.max()):.1e}")
            total = layer.values.sum(2) if of_words else layer.values.sum((-2, -1)) + layer.rest.sum(-1)
            sums.every((total - 1).abs() <= 1e-5, what=f"{name} {place}")
    settle(parity, certificate, identical, sums)
