"""The promises on a GPU, whose kernels are others than those of a CPU; without a GPU these tests are skipped."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import probe
from probe.errors import CaptureError, CertificateError
from probe.evaluation.lab import read_lab
from probe.family_checks import check_family
from probe.sweep.ablations import CUT, Ablation
from probe.sweep.engine import Engine
from probe.tiny import TINY, tiny_model
from tests.capture.reference import inputs_of
from tests.speed.capture import prefill, sized
from tests.tiny import picture, tiny_llava
from tests.tiny_diffusion import tiny_sd

GPU = "cuda"
SYSTEMS = ("lab/llava", "lab/difflmm", "lab/clip", "lab/diffusion")

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)


@pytest.fixture(scope="module")
def scenes():
    return list(read_lab(limit=6))


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    # By default a GPU's convolutions round their inputs to ten bits, which is the model's own affair.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.set_float32_matmul_precision("highest")


@functools.cache
def _loaded(name, device):
    return probe.load_model(name, device=device)


def _largest_difference(one, other):
    """Of any weight of two records, whose tokens, layers and grids must be the same."""
    assert one.token_ids == other.token_ids
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
    pairs = zip(one.layers, other.layers, strict=True)
    return max(float((mine.values.cpu() - theirs.values.cpu()).abs().max()) for mine, theirs in pairs)


@pytest.mark.promises("R1", "R3")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_every_family(name, dtype, line):
    passed = line("R1", target="what `probe check` allows, on a GPU"), line("R3", target="rebuilds the GPU's kernel")
    report = check_family(name, dtype=dtype, device=GPU)
    for one in passed:
        one.trial(report.passed, silent=True, what=report.why or report.report)
        one.settle()


@pytest.mark.promises("R1")
@pytest.mark.parametrize("name", SYSTEMS)
def test_records_are_those_of_the_cpu(name, scenes, line):
    same = line("R1", target="a GPU's float32 record differs from a CPU's by <= 1e-4")
    for scene in scenes:
        answer = {} if name in ("lab/clip", "lab/diffusion") else {"answer": scene.text}
        prompt = "Describe the image." if answer else scene.text
        records = [probe.run(_loaded(name, device), scene.image, prompt, **answer).record for device in ("cpu", GPU)]
        difference = _largest_difference(*records)
        same.trial(difference <= 1e-4, silent=True, what=f"{name}, {scene.name}: {difference}")
    same.settle()


@pytest.mark.promises("R7")
def test_an_answer_and_its_masks_are_those_of_the_cpu(scenes, line):
    same = line("R7", target="a GPU says and outlines what a CPU does")
    for scene in scenes:
        runs = [probe.run(_loaded("lab/llava", device), scene.image, "Describe the image.") for device in ("cpu", GPU)]
        masks = [
            [phrase.mask for phrase in probe.attend_and_segment(run.record, run.image, refiner="lab/sam").phrases]
            for run in runs
        ]
        shares = [float(np.mean(mine != theirs)) for mine, theirs in zip(*masks, strict=True)]
        held = runs[0].text == runs[1].text and max(shares) <= 1e-3
        same.trial(held, silent=True, what=f"{scene.name}: {[run.text for run in runs]}, {shares}")
    same.settle()


@pytest.mark.promises("R1")
@pytest.mark.parametrize("method", ["chefer", "legrad"])
def test_gradients_and_concepts_are_those_of_the_cpu(method, scenes, line):
    same = line("R1", target="a GPU's relevance differs from a CPU's by <= 1e-4 of its largest")
    scene = scenes[0]
    words = [phrase.text for phrase in scene.phrases]
    for name in ("lab/llava", "lab/clip"):
        records = [
            probe.relevance(_loaded(name, device), scene.image, scene.text, words, method=method)
            for device in ("cpu", GPU)
        ]
        largest = max(float(layer.values.abs().max()) for layer in records[0].layers)
        same.trial(_largest_difference(*records) <= 1e-4 * largest, silent=True, what=name)
    flux = [tiny_model("flux") for _ in range(2)]
    flux[1].model.to(GPU)
    maps = [probe.concept_maps(one, picture(), "a red circle on grass", ["circle", "grass"]) for one in flux]
    same.trial(_largest_difference(*maps) <= 1e-4, silent=True, what="concepts")
    same.settle()


@pytest.mark.promises("R1")
def test_ablations_do_what_they_do_on_the_cpu(scenes, line):
    same = line("R1", target="an ablation's effects differ from a CPU's by <= 1e-3")
    cells = [
        Ablation("head", layer, head, how=how) for layer in (0, 3) for head in (1, 5) for how in ("zero", "uniform")
    ]
    cells += [Ablation("edge", layer, None, edge="answer to image", how=CUT) for layer in (1, 2)]
    tables = [Engine(_loaded("lab/llava", device), cells)(scenes[:3]) for device in ("cpu", GPU)]
    assert len(tables[0]) == len(tables[1]) > 0
    numbers = tables[0].select_dtypes("number").columns
    for name in numbers:
        mine, theirs = (table[name].to_numpy(float) for table in tables)
        same.every(np.isclose(mine, theirs, atol=1e-3, rtol=1e-3, equal_nan=True), what=name)
    same.settle()


@pytest.mark.promises("R16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_spread_over_two_devices_has_its_record(dtype, line):
    from accelerate import dispatch_model

    right = line("R16", target="the record of the model on one device")
    subjects = [tiny_llava(seed=3, dtype=dtype) for _ in range(2)]
    subjects[0].model.to(GPU)
    parts = {"model.vision_tower": GPU, "model.multi_modal_projector": GPU, "lm_head": GPU}
    parts |= {"model.language_model.embed_tokens": GPU, "model.language_model.norm": GPU}
    parts |= {"model.language_model.rotary_emb": GPU, "model.language_model.layers.0": GPU}
    parts |= {"model.language_model.layers.1": "cpu", "model.language_model.layers.2": GPU}
    dispatch_model(subjects[1].model, parts, main_device=GPU)
    records = []
    for subject in subjects:
        inputs = {name: one.to(GPU) for name, one in inputs_of(subjects[0], picture()).items()}
        with probe.record(subject, verify="all") as recorder:
            subject.model.generate(**inputs, max_new_tokens=5, do_sample=False)
        records.append(recorder.result(image=picture()))
    difference = _largest_difference(*records)
    right.trial(difference <= 2e-2, silent=True, what=difference)
    right.settle()


@pytest.mark.promises("R16")
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_offloaded_pipeline_has_its_record(way, line):
    right = line("R16", target="the record of the pipeline on the GPU")
    pipelines = [tiny_sd(seed=4) for _ in range(2)]
    pipelines[0].to(GPU)
    getattr(pipelines[1], way)(device=GPU)
    records = []
    for pipeline in pipelines:
        with probe.record(pipeline, verify="all") as recorder:
            chance = torch.Generator().manual_seed(0)
            pipeline("a red circle", num_inference_steps=2, output_type="latent", generator=chance)
        records.append(recorder.result())
    difference = _largest_difference(*records)
    right.trial(difference <= 1e-5, silent=True, what=difference)
    right.settle()


@pytest.mark.promises("R3")
@pytest.mark.parametrize("name", ["llava", "clip", "stable_diffusion"])
def test_products_in_ten_bits_are_right_or_refused(name, line):
    """Users allow them for speed; rows are then recomputed by the same units as the model's own."""
    told = line("R3", target="within 2e-3 of the record in full precision, or a typed error")
    shown, records, answer = picture(60, 90), [], {"answer": "a red ball"} if name == "llava" else {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        subject = tiny_model(name)
        subject.model.to(GPU)
        try:
            records.append(probe.run(subject, shown, "a red circle", **answer).record)
        except CertificateError:
            assert precision == "high"
    told.trial(len(records) < 2 or _largest_difference(*records) <= 2e-3, silent=True, what=name)
    told.settle()


@pytest.mark.promises("R16")
def test_steps_that_a_gpu_compiles_are_refused(line):
    """With a static cache generate compiles its steps on a GPU, of itself."""
    refused = line("R16", target="a typed error before the first pass")
    subject = tiny_llava(seed=3)
    subject.model.to(GPU)
    inputs = inputs_of(subject, picture())
    with (
        pytest.raises(CaptureError, match=r"compiles its steps.* give it disable_compile=True, or the default cache"),
        probe.record(subject),
    ):
        subject.model.generate(**inputs, max_new_tokens=5, do_sample=False, cache_implementation="static")
    refused.trial(True)
    refused.settle()


@pytest.mark.promises("R2")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_are_bit_identical(dtype, line):
    identical = line("R2", target="0 logits differ on a GPU")
    subject = tiny_llava(seed=5, dtype=getattr(torch, dtype))
    subject.model.to(GPU)
    inputs = inputs_of(subject, picture())
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}
    plain = torch.cat(subject.model.generate(**inputs, do_sample=False, **options).logits)
    with probe.record(subject):
        recorded = torch.cat(subject.model.generate(**inputs, do_sample=False, **options).logits)
    identical.every(plain == recorded, what=dtype)
    identical.settle()


@pytest.mark.promises("R18")
@pytest.mark.parametrize("tokens", [1000, 3000])
def test_peak_memory_is_that_of_the_rows_asked_for(tokens, line):
    peak = line("R18", target="<= 1.2 x the rows asked for plus one layer's chunk, on a GPU")
    subject, peaks = sized("small", dtype="bfloat16", device=GPU), []
    for way in ("plain", "recorded"):
        action = prefill(subject, way, tokens)
        torch.cuda.reset_peak_memory_stats()
        action()
        peaks.append(torch.cuda.max_memory_allocated())
    layers, heads = 8, 8
    rows = layers * heads * tokens * 24 * 24 * 4
    chunk = 3 * heads * 64 * (tokens + 640) * 4
    extra = peaks[1] - peaks[0]
    peak.trial(extra <= 1.2 * rows + chunk, what=f"{tokens} tokens: {extra / rows:.2f} times the rows")
    peak.settle()
