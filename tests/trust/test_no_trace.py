"""R14: whatever is raised, and wherever: the model, its processors and the libraries are as they were."""

from __future__ import annotations

import copy
import threading
from contextlib import ExitStack, suppress
from functools import partial

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import probe
from probe.capture import taps
from probe.capture.ablation import mean_outputs
from probe.capture.edges import Edge, cut_edges
from probe.capture.encoders import EncoderRecorder
from probe.capture.geometry import encoder_inputs
from probe.capture.references import head_outputs
from probe.capture.resuming import read_trunk
from probe.errors import CaptureError
from probe.layout import Layout, PatchGrid
from probe.tiny import tiny_model
from probe.tiny.modules import MultiheadViT, spread_weights
from tests.capture.families import LANGUAGE, batch_of
from tests.capture.test_diffusion import generate as draw
from tests.tiny import picture, tiny_clip, tiny_llava
from tests.tiny_diffusion import tiny_sd
from tests.tiny_transformers import generate, tiny_flux, tiny_pixart, tiny_sd3
from tests.trust.snapshot import calls_of, differences, raising_at, raising_in_probe, snapshot

RAISED = [Exception, KeyboardInterrupt, torch.OutOfMemoryError, GeneratorExit]
TARGET = "0 differences in a full snapshot"
VIT = Layout.of_patches(PatchGrid.from_affine((32, 32), shape=(4, 4), patch_size=8), before=1)
ENCODERS = ["clip", "siglip", "siglip2", "dinov2", "dinov3", "vit", "blip_2_vision"]


def _spoken(subject, **options):
    """Two tokens of an answer, recorded."""
    inputs = batch_of(subject, [([picture(60, 90)], "a dog")])
    with probe.record(subject, **options) as recorder:
        subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    return recorder.result()


def _encoded(subject):
    inputs = encoder_inputs(subject.processor, picture(), subject.model)
    with EncoderRecorder(subject.model, subject.processor, queries=[0, 1]) as recorder, torch.inference_mode():
        recorder.tower(**inputs)
    return recorder.result()


def _gathered(subject):
    inputs = dict(subject.processor(images=picture(), text="a dog", return_tensors="pt"))
    inputs.pop("labels", None)
    with torch.inference_mode(), probe.record(subject) as recorder:
        subject.model(**inputs)
    return recorder.result()


def _drawn(pipeline, call, **options):
    with probe.record(pipeline, **options) as recorder:
        call(pipeline)
    return recorder.result()


def _nested(subject):
    inputs = batch_of(subject, [([picture()], "a dog")])
    with (
        probe.record(subject) as first,
        probe.ablate(subject, heads=[(1, 2)]),
        probe.record(subject, layers=[0]),
        cut_edges(subject, [Edge(2, (5,), (1, 2))]),
    ):
        subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    return first.result()


def _own(model):
    with torch.no_grad(), probe.record(model, attention="blocks.*.attn", layout=VIT) as recorder:
        model(torch.zeros(1, 3, 32, 32))
    return recorder.result()


def _noised(subject):
    return probe.run(subject, picture(), "a red circle").record


TALK = [(picture(), "a dog", "a red ball")]
#: What is done -> what makes the model, and what does it.
ACTIONS = {
    **{f"record {name}": (lambda name=name: tiny_model(name), _spoken) for name in (*LANGUAGE, "difflmm")},
    **{f"record {name}": (lambda name=name: tiny_model(name), _encoded) for name in ENCODERS},
    **{f"record {name}": (lambda name=name: tiny_model(name), _gathered) for name in ("blip_2", "instructblip")},
    "record eager": (lambda: tiny_llava(attention="eager"), _spoken),
    "record self-attention": (tiny_sd, lambda one: _drawn(one, partial(draw, steps=1), place="self-attention")),
    "record a U-Net": (tiny_sd, lambda one: _drawn(one, partial(draw, steps=1))),
    "record pixart": (tiny_pixart, lambda one: _drawn(one, partial(generate, steps=2))),
    "record sd3": (tiny_sd3, lambda one: _drawn(one, partial(generate, steps=1))),
    "record flux": (tiny_flux, lambda one: _drawn(one, partial(generate, steps=1))),
    "record own modules": (lambda: spread_weights(MultiheadViT()), _own),
    "run on noise": (lambda: tiny_model("stable_diffusion"), _noised),
    "nested": (tiny_llava, _nested),
    "means of heads": (tiny_llava, lambda one: mean_outputs(one, TALK, name="one")),
    "outputs of heads": (tiny_llava, lambda one: head_outputs(one, *TALK[0], name="one")),
    "trunk": (tiny_llava, lambda one: read_trunk(one, batch_of(one, [([picture()], "a dog")]), 20)),
    "relevance": (tiny_llava, lambda one: probe.relevance(one, picture(), "a red ball", ["ball"])),
    "relevance of CLIP": (tiny_clip, lambda one: probe.relevance(one, picture(), "a red ball", ["ball"], method="legrad")),
    "contributions": (tiny_clip, lambda one: probe.contributions(one, picture(), ["a dog"])),
    "check": (tiny_llava, lambda one: probe.check(one, max_new_tokens=2)),
}  # fmt: skip


#: What could be left behind, each in a way of its own -> what leaves it on a model and its processor.
LEFT = {
    "a hook": lambda model, processor: model.lm_head.register_forward_hook(lambda *_: None),
    "a hook of all modules": lambda model, processor: register_module_forward_pre_hook(lambda *_: None),
    "a method": lambda model, processor: setattr(model, "generate", model.generate),
    "a forward": lambda model, processor: setattr(model.lm_head, "forward", model.lm_head.forward),
    "a kernel": lambda model, processor: model.set_attn_implementation("eager"),
    "a configuration": lambda model, processor: setattr(model.config, "image_token_id", 5),
    "settings of generate": lambda model, processor: setattr(model.generation_config, "num_beams", 2),
    "training mode": lambda model, processor: model.lm_head.train(),
    "a frozen weight": lambda model, processor: model.lm_head.requires_grad_(False),
    "another number type": lambda model, processor: model.lm_head.half(),
    "another value": lambda model, processor: model.lm_head.weight.data.mul_(2),
    "a gradient": lambda model, processor: setattr(model.lm_head.weight, "grad", torch.ones_like(model.lm_head.weight)),
    "another module": lambda model, processor: setattr(model, "lm_head", copy.deepcopy(model.lm_head)),
    "another buffer": lambda model, processor: model.lm_head.register_buffer("left", torch.zeros(1)),
    "a part of the processor": lambda model, processor: setattr(processor, "image_processor", object()),
    "a number of threads": lambda model, processor: torch.set_num_threads(2),
    "a mode": lambda model, processor: torch.set_grad_enabled(False),
    "a watcher": lambda model, processor: taps._watchers.update({model: ()}),
    "torch's attention": lambda model, processor: setattr(torch.nn.functional, "scaled_dot_product_attention", print),
}  # fmt: skip


@pytest.mark.promises("R14")
@pytest.mark.parametrize("what", LEFT)
def test_the_snapshot_sees_what_is_left(what, line):
    seen, subject = line("R14", target=TARGET), tiny_llava()
    real, before = torch.nn.functional.scaled_dot_product_attention, snapshot(*_parts(subject))
    try:
        handle = LEFT[what](*_parts(subject))
        seen.trial(bool(differences(before, snapshot(*_parts(subject)))), silent=True, what=what)
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
        torch.set_grad_enabled(True)
        torch.set_num_threads(1)
        taps._watchers.clear()
        if what == "a hook of all modules":
            handle.remove()
    seen.settle()


def _parts(made):
    return getattr(made, "model", made), getattr(made, "processor", None)


def _plan(total, *, full, every, most=10**6):
    """(moment, what is raised): each moment with every kind or, in turn, with one of them; of many moments a dozen where few do."""
    moments = range(0, total, -(-total // most)) if full else sorted({*range(0, total, max(total // 12, 1)), total - 1})
    if every:
        return [(moment, error) for moment in moments for error in RAISED]
    return [(moment, RAISED[number % len(RAISED)]) for number, moment in enumerate(moments)]


@pytest.mark.promises("R14")
@pytest.mark.parametrize("name", ACTIONS)
def test_an_exception_at_any_module_call_leaves_no_trace(name, line, full):
    traces = line("R14", target=TARGET)
    make, act = ACTIONS[name]
    made = make()
    act(made)  # the library installs hooks of its own at a model's first pass, and leaves them there
    before = snapshot(*_parts(made))
    total = calls_of(lambda: act(made))
    # `check` runs hundreds of passes, each of them an action of its own.
    for moment, error in _plan(total, full=full and name != "check", every=name == "record llava"):
        with raising_at(moment, error), pytest.raises(error, match="planted"):
            act(made)
        changed = differences(before, snapshot(*_parts(made)))
        traces.trial(not changed, silent=True, what=f"{name}, {error.__name__} at {moment}: {changed[:3]}")
    act(made)
    traces.trial(not differences(before, snapshot(*_parts(made))), silent=True, what=f"{name}: the next time")
    traces.settle()


ATTACHED = ["record llava", "record gemma3", "record mllama", "record clip", "record siglip", "record blip_2", "record a U-Net",
            "record sd3", "record flux", "record own modules", "nested"]  # fmt: skip


@pytest.mark.promises("R14")
@pytest.mark.parametrize("name", ATTACHED)
def test_an_exception_at_any_call_of_the_projects_own_code_leaves_no_trace(name, line, full):
    # While attaching, between two hooks, while rows are computed, and while the record is made.
    traces = line("R14", target=TARGET)
    make, act = ACTIONS[name]
    made = make()
    act(made)
    with raising_in_probe(-1, Exception) as count:
        act(made)
    before, total = snapshot(*_parts(made)), count[0]
    assert total > 30
    # Thousands of calls are of the same few lines, in loops over modules and pixels.
    for moment, error in _plan(total, full=full, every=False, most=1000):
        # Where it is raised as something is thrown away, Python reports it and goes on.
        with raising_in_probe(moment, error), suppress(error):
            act(made)
        changed = differences(before, snapshot(*_parts(made)))
        traces.trial(not changed, silent=True, what=f"{name}, {error.__name__} at {moment} of {total}: {changed[:3]}")
        if changed:  # what is left would be found at every moment after it
            made = make()
            act(made)
            before = snapshot(*_parts(made))
    traces.settle()


def _in_threads(jobs):
    threads = [threading.Thread(target=one) for one in jobs]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)


@pytest.mark.promises("R14")
@pytest.mark.parametrize("error", RAISED)
def test_an_exception_in_one_thread_leaves_no_trace_and_the_other_its_record(error, line, full):
    traces, subject = line("R14", target=TARGET), tiny_llava(seed=3)
    alone = _spoken(subject)
    before, total = snapshot(*_parts(subject)), calls_of(lambda: _spoken(subject))
    for moment in range(0, total, 3 if full else total // 4):
        raised, records = [], []

        def broken(moment=moment, raised=raised):
            with raising_at(moment, error):
                try:
                    _spoken(subject)
                except BaseException as found:
                    raised.append(type(found))

        _in_threads([broken, lambda records=records: records.append(_spoken(subject))])
        changed = differences(before, snapshot(*_parts(subject)))
        traces.trial(raised == [error] and not changed, silent=True, what=f"at {moment}: {raised} {changed[:3]}")
        same = [
            all(torch.equal(a.values, b.values) for a, b in zip(one.layers, alone.layers, strict=True))
            for one in records
        ]
        traces.trial(same == [True], silent=True, what=f"at {moment}: the other thread's record")
    traces.settle()


@pytest.mark.promises("R14")
@pytest.mark.parametrize("error", RAISED)
def test_a_pass_that_broke_off_has_no_record_and_can_be_repeated(error, line, full):
    traces, subject = line("R14", target=TARGET), tiny_llava(seed=4)
    inputs, plain = batch_of(subject, [([picture(60, 90)], "a dog")]), _spoken(subject)

    def speak():
        subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)

    total = calls_of(speak)
    for moment in range(0, total, 2 if full else total // 5):
        with probe.record(subject) as recorder:
            with raising_at(moment, error), pytest.raises(error, match="planted"):
                speak()
            with pytest.raises(CaptureError, match=r"did not come to its end|Nothing was recorded"):
                recorder.result()
            speak()
        again = recorder.result()
        same = all(torch.equal(a.values, b.values) for a, b in zip(again.layers, plain.layers, strict=True))
        traces.trial(same, silent=True, what=f"at {moment}")
    traces.settle()


@pytest.mark.promises("R14")
def test_contexts_that_end_in_any_order_leave_no_trace(line):
    traces, subject = line("R14", target=TARGET), tiny_llava(seed=5)
    _spoken(subject)
    before, inputs = snapshot(*_parts(subject)), batch_of(subject, [([picture()], "a dog")])
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]):
        with ExitStack() as kept:
            open_ones = [probe.record(subject, layers=[one]) for one in range(3)]
            for one in open_ones:
                kept.callback(one.__exit__, None, None, None)
                one.__enter__()
            subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
            for one in order:
                open_ones[one].__exit__(None, None, None)
        traces.trial(not differences(before, snapshot(*_parts(subject))), silent=True, what=order)
        names = [one.result().layers[0].name.split(".")[-2] for one in open_ones]
        traces.trial(names == ["0", "1", "2"], silent=True, what=order)
    traces.settle()
