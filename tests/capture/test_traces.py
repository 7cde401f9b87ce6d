"""Nothing is left on a model: after an exception at any moment, with contexts nested, overlapping or in threads."""

from __future__ import annotations

import copy
import threading
from contextlib import ExitStack

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import probe
from probe.capture import taps
from probe.errors import CaptureError
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava


class OutOfMemory(RuntimeError):
    pass


RAISED = [Exception, KeyboardInterrupt, OutOfMemory, GeneratorExit]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _snapshot(model):
    """Everything that recording could have touched: hook tables, attributes, configuration, registry, training flags."""
    found = {}
    for name, module in model.named_modules():
        tables = {
            key: tuple(value.items())
            for key, value in vars(module).items()
            if "hook" in key and hasattr(value, "items")
        }
        found[name] = (tables, sorted(vars(module)), module.training, getattr(module, "forward", None).__func__)
    found["generate"] = (model.generate.__func__, vars(model).get("generate"))
    found["config"] = (model.config.to_json_string(), model.generation_config.to_json_string())
    found["kernel"] = [one.config._attn_implementation for one in model.modules() if hasattr(one, "config")]
    found["look-up"] = vars(AttentionInterface)["get_interface"]
    found["registry"] = dict(ALL_ATTENTION_FUNCTIONS.items())
    found["ours"] = (dict(taps._watchers), taps._original)
    return found


def _subject(seed, **options):
    """A model that ran once: transformers installs hooks of its own at the first forward, and leaves them there."""
    subject = tiny_llava(seed=seed, **options)
    subject.model(**inputs_of(subject, picture()))
    return subject


def _raise_at(moment, error):
    """A hook of the test's own on every module there is, that raises at the module call of that number."""
    calls = iter(range(10**6))

    def hook(module, args):
        if next(calls) == moment:
            raise error("planted")

    return register_module_forward_pre_hook(hook)


def _calls(action):
    count = [0]
    handle = register_module_forward_pre_hook(lambda module, args: count.__setitem__(0, count[0] + 1))
    action()
    handle.remove()
    return count[0]


def test_contexts_may_be_nested_and_end_in_any_order():
    subject = _subject(22)
    inputs = inputs_of(subject, picture())
    before = _snapshot(subject.model)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]):
        recorders = [probe.record(subject, layers=[one]).__enter__() for one in range(3)]
        subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        records = [one.result() for one in recorders]
        assert len({one.token_ids for one in records}) == 1
        assert [one.layers[0].name.split(".")[-2] for one in records] == ["0", "1", "2"]
        for one in order[:2]:
            recorders[one].__exit__(None, None, None)
        # The last one left still refuses a second pass: it is still attached.
        with pytest.raises(CaptureError, match="already holds one pass"):
            subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        recorders[order[2]].__exit__(None, None, None)
        assert _snapshot(subject.model) == before


def _in_threads(jobs):
    ready, found, failed = threading.Barrier(len(jobs)), [None] * len(jobs), []

    def work(index, job):
        try:
            ready.wait(30)
            found[index] = job()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=one) for one in enumerate(jobs)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not failed, failed
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_threads_with_one_or_two_models_do_not_mix(shared):
    subjects = [_subject(23), _subject(24)]
    if shared:
        subjects[1] = subjects[0]
    before = [_snapshot(one.model) for one in subjects]
    questions = [inputs_of(one, picture(seed=i), ["a dog", "a red ball"][i]) for i, one in enumerate(subjects)]

    def job(index):
        def generated():
            with torch.inference_mode(), probe.record(subjects[index], verify="all") as recorder:
                subjects[index].model.generate(**questions[index], max_new_tokens=12, do_sample=False)
            return recorder.result()

        return generated

    alone = [job(one)() for one in range(2)]
    for _ in range(5):
        together = _in_threads([job(0), job(1)])
        for one, other in zip(alone, together, strict=True):
            assert one.token_ids == other.token_ids
            assert all(torch.equal(a.values, b.values) for a, b in zip(one.layers, other.layers, strict=True))
        assert [_snapshot(one.model) for one in subjects] == before


def test_what_another_thread_does_with_the_model_is_not_recorded():
    subject = _subject(24)
    inputs = inputs_of(subject, picture())
    with probe.record(subject) as recorder:
        _in_threads([lambda: subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)])
    with pytest.raises(CaptureError, match=r"Nothing was recorded: .* same model and in the same thread"):
        recorder.result()


def test_a_copy_made_inside_the_context_is_a_model_of_its_own():
    subject = _subject(28)
    inputs = inputs_of(subject, picture())
    with probe.record(subject) as recorder:
        twin = copy.deepcopy(subject.model)
        with torch.no_grad():
            twin.get_input_embeddings().weight.neg_()
            other = twin.generate(**inputs, max_new_tokens=4, do_sample=False)
        subject.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    own = subject.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert recorder.result().token_ids == tuple(own[0, inputs["input_ids"].shape[1] :].tolist())
    assert torch.equal(twin.generate(**inputs, max_new_tokens=4, do_sample=False), other)
    assert twin.generate.__self__ is twin


def test_a_context_can_hold_several_models_at_once():
    subjects = [_subject(one) for one in (30, 31)]
    before = [_snapshot(one.model) for one in subjects]
    inputs = inputs_of(subjects[0], picture())
    with ExitStack() as stack:
        recorders = [stack.enter_context(probe.record(one)) for one in subjects]
        for one in subjects:
            one.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert all(one.result().certificate.passed for one in recorders)
    assert [_snapshot(one.model) for one in subjects] == before
