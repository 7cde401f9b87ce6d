"""R15: hooks, methods, attention functions and processors of the user's own keep working, and are never removed."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import probe
from probe.capture import taps
from probe.tiny import tiny_model
from tests.capture.families import LANGUAGE, batch_of
from tests.capture.reference import inputs_of
from tests.capture.test_diffusion import generate as draw
from tests.tiny import picture, tiny_llava
from tests.tiny_diffusion import tiny_sd
from tests.tiny_transformers import generate, tiny_flux, tiny_pixart, tiny_sd3

TARGET = "0 removed, silenced or called another number of times"


def _subject(seed):
    return tiny_llava(seed=seed)


@pytest.mark.promises("R15")
@pytest.mark.parametrize("name", [*LANGUAGE, "difflmm"])
def test_hooks_on_every_module_are_called_as_often_and_stay(name, line):
    own, subject = line("R15", target=TARGET), tiny_model(name)
    inputs, counts = batch_of(subject, [([picture(60, 90)], "a dog")]), {}

    def counter(key):
        def count(*_):
            counts[key] = counts.get(key, 0) + 1

        return count

    handles = {}
    for module_name, module in subject.model.named_modules():
        for kind in ("forward_hook", "forward_pre_hook"):
            key = f"{module_name} {kind}"
            handles[key] = getattr(module, f"register_{kind}")(counter(key))

    def speak():
        counts.clear()
        subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        return dict(counts)

    alone = speak()
    assert len(alone) > 50
    with probe.record(subject) as recorder:
        inside = speak()
    with probe.ablate(subject, heads=[(int(name == "mllama"), 0)]):
        ablated = speak()
    with pytest.raises(KeyboardInterrupt), probe.record(subject):
        raise KeyboardInterrupt
    after = speak()
    assert recorder.result().certificate.passed
    for key in handles:
        same = alone.get(key) == inside.get(key) == ablated.get(key) == after.get(key)
        own.trial(same, silent=True, what=f"{key}: {[one.get(key) for one in (alone, inside, ablated, after)]}")
    for one in handles.values():
        one.remove()
    own.trial(not speak(), silent=True, what="a hook that its user removed")
    own.settle()


@pytest.mark.promises("R15")
@pytest.mark.parametrize("make", [tiny_sd, tiny_pixart, tiny_sd3, tiny_flux])
def test_processors_and_a_wrapped_attention_function_keep_working(make, line):
    own, pipeline, calls = line("R15", target=TARGET), make(), {"function": 0, "processor": 0}
    part = pipeline.unet if make is tiny_sd else pipeline.transformer
    call = partial(draw if make is tiny_sd else generate, pipeline, steps=2)
    plain, picture_before = torch.nn.functional.scaled_dot_product_attention, call()

    def wrapped(*args, **kwargs):
        calls["function"] += 1
        return plain(*args, **kwargs)

    kept = {name: _counting(one, calls) for name, one in part.attn_processors.items()}
    part.set_attn_processor(dict(kept))
    torch.nn.functional.scaled_dot_product_attention = wrapped
    try:
        call()
        alone = dict(calls)
        with probe.record(pipeline, verify="all") as recorder:
            inside = call()
        with pytest.raises(KeyboardInterrupt), probe.record(pipeline):
            raise KeyboardInterrupt
        own.trial(torch.nn.functional.scaled_dot_product_attention is wrapped, silent=True, what="the function")
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
    for name, count in alone.items():
        own.trial(count > 0 and calls[name] == 2 * count, silent=True, what=f"{name}: {count}, then {calls[name]}")
    own.trial(bool((picture_before == inside).all()), silent=True, what="another picture")
    own.trial(recorder.result().certificate.passed, silent=True, what="the certificate")
    for name, one in part.attn_processors.items():
        own.trial(one is kept[name], silent=True, what=f"the processor of {name}")
    own.settle()


def _counting(processor, calls):
    """A processor of the user's: of a class built on the library's, which counts its calls."""
    kind = type(processor)

    def counted(self, attn, *args, **kwargs):
        calls["processor"] += 1
        return kind.__call__(self, attn, *args, **kwargs)

    # diffusers asks by the signature what arguments a processor takes.
    counted.__signature__ = inspect.signature(kind.__call__)
    return type(f"Users{kind.__name__}", (kind,), {"__call__": counted})()


@pytest.mark.promises("R15", target=TARGET)
def test_a_users_hooks_generate_and_attention_function_keep_working():
    subject = _subject(25)
    inputs = inputs_of(subject, picture())
    seen = {"hook": 0, "generate": 0, "attention": 0}

    def count(name):
        seen[name] += 1

    def attention(module, query, key, value, attention_mask, **kwargs):
        count("attention")
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)

    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register("users_own", attention)
    AttentionMaskInterface.register("users_own", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        with probe.record(subject, verify="all") as plain:
            subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        subject.model.set_attn_implementation("users_own")
        handles = [one.register_forward_hook(lambda *a: count("hook")) for one in subject.model.get_decoder().layers]
        library = subject.model.generate

        def own(*args, **kwargs):
            count("generate")
            return library(*args, **kwargs)

        subject.model.generate = own
        with probe.record(subject, verify="all") as recorder:
            subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        record = recorder.result()
        assert record.source.kernel == "users_own"
        assert all(torch.equal(a.values, b.values) for a, b in zip(record.layers, plain.result().layers, strict=True))
        assert (seen["generate"], seen["hook"]) == (1, 9)
        assert seen["attention"] >= 9
        assert subject.model.generate is own
        subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert (seen["generate"], seen["hook"]) == (2, 18)
        for one in handles:
            one.remove()
    finally:
        for table in (AttentionInterface, AttentionMaskInterface):
            table._global_mapping.pop("users_own", None)


@pytest.mark.promises("R15", target=TARGET)
def test_what_a_user_changes_inside_the_context_stays():
    subject = _subject(26)
    inputs = inputs_of(subject, picture())
    theirs = []
    with probe.record(subject):
        shadow = subject.model.generate
        subject.model.generate = lambda *a, **k: theirs.append(1) or shadow(*a, **k)
        handle = subject.model.register_forward_hook(lambda *a: theirs.append(2))
    subject.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert theirs == [1, 2]
    handle.remove()


@pytest.mark.promises("R15", target=TARGET)
def test_a_wrapper_put_around_the_look_up_meanwhile_stays_and_works():
    subject = _subject(27)
    inputs = inputs_of(subject, picture())
    before = vars(AttentionInterface)["get_interface"]
    calls = []
    try:
        with probe.record(subject) as recorder:
            ours = AttentionInterface.get_interface
            AttentionInterface.get_interface = lambda self, name, default: (
                calls.append(name) or ours(self, name, default)
            )
            subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert recorder.result().certificate.passed
        seen = len(calls)
        subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert len(calls) > seen
        with probe.record(subject) as again:
            subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert again.result().certificate.passed
        # They take theirs away again; ours beneath goes with the next context.
        AttentionInterface.get_interface = ours
        with probe.record(subject):
            pass
        assert vars(AttentionInterface)["get_interface"] is before
    finally:
        AttentionInterface.get_interface, taps._original = before, None
