"""Nothing is left on a pipeline: after an exception at any module of it, and with threads and copies about."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import probe
from probe.capture import sdpa
from probe.capture.conditioning import prompt_keys
from tests.capture.test_diffusion import generate
from tests.tiny_diffusion import tiny_sd


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _snapshot(pipeline):
    """Everything that recording could have touched: hook tables, attributes, processors, the shadowed methods, the function."""
    found = {"pipeline": sorted(vars(pipeline)), "config": str(pipeline.config)}
    for part, model in pipeline.components.items():
        if not isinstance(model, torch.nn.Module):
            continue
        for name, module in model.named_modules():
            tables = {
                key: tuple(value) for key, value in vars(module).items() if "hook" in key and hasattr(value, "items")
            }
            found[f"{part}.{name}"] = (tables, sorted(vars(module)), module.training)
    found["processors"] = {name: id(one) for name, one in pipeline.unet.attn_processors.items()}
    found["function"] = torch.nn.functional.scaled_dot_product_attention
    found["ours"] = (dict(sdpa._watchers), dict(sdpa._editors), sdpa._installed)
    return found


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


def test_a_call_that_was_broken_off_can_be_repeated_in_the_same_context():
    pipeline = tiny_sd()
    with probe.record(pipeline) as plain:
        generate(pipeline, steps=2)
    total = _calls(lambda: generate(pipeline, steps=2))
    for moment in range(0, total, total // 9):
        with probe.record(pipeline) as recorder:
            handle = _raise_at(moment, KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                generate(pipeline, steps=2)
            handle.remove()
            generate(pipeline, steps=2)
        for one, other in zip(plain.result().layers, recorder.result().layers, strict=True):
            assert torch.equal(one.values, other.values)


def test_recorders_of_one_pipeline_end_in_any_order():
    pipeline = tiny_sd()
    generate(pipeline, steps=1)
    before = _snapshot(pipeline)
    first, second = probe.record(pipeline), probe.record(pipeline, place="self-attention")
    first.__enter__()
    second.__enter__()
    generate(pipeline, steps=1)
    first.__exit__(None, None, None)
    assert _snapshot(pipeline) != before
    second.__exit__(None, None, None)
    assert _snapshot(pipeline) == before
    assert first.result().certificate.passed
    assert second.result().certificate.passed


def test_a_method_of_the_users_own_is_told_and_comes_back():
    pipeline, told = tiny_sd(), []
    plain = pipeline.encode_prompt

    def own(*args, **kwargs):
        told.append(args[0])
        return plain(*args, **kwargs)

    pipeline.encode_prompt = own
    with probe.record(pipeline) as recorder:
        generate(pipeline, steps=1)
    assert pipeline.encode_prompt is own
    assert told == ["a red circle"]
    assert recorder.result().certificate.passed


def test_a_copy_made_inside_runs_by_itself():
    pipeline = tiny_sd()
    with probe.record(pipeline) as recorder:
        twin = copy.deepcopy(pipeline.unet)
        generate(pipeline, steps=1)
        with torch.no_grad():
            twin(torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=torch.zeros(1, 20, 16))
    assert len(recorder.steps) == 1
    assert recorder.result().certificate.passed


def test_what_another_thread_does_with_the_same_pipeline_is_not_recorded():
    pipeline = tiny_sd()
    plain = generate(pipeline, "two blue squares", steps=3)
    with torch.no_grad():
        states = pipeline.encode_prompt("two blue squares", "cpu", 1, False)[0]
    outputs, other = [], []

    def work():
        # The scheduler of a pipeline keeps the state of one call, and its tokenizer the padding of the last, so that a thread that
        # runs at the same time uses the modules alone.
        with torch.no_grad():
            other.append(pipeline.unet(torch.ones(1, 4, 8, 8), 5, encoder_hidden_states=states).sample)

    work()
    with probe.record(pipeline, timesteps="all") as recorder:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for one in threads:
            one.start()
        outputs.append(generate(pipeline, "two blue squares", steps=3))
        for one in threads:
            one.join()
    assert len(other) == 4
    assert (outputs[0] == plain).all()
    assert all(torch.equal(one, other[0]) for one in other)
    assert recorder.steps == [667, 334, 1]
    assert recorder.result().certificate.passed


def test_a_prompt_that_another_thread_encodes_in_the_midst_of_a_call_is_not_taken_for_its_own():
    pipeline = tiny_sd()
    plain = generate(pipeline, "two blue squares", steps=3)

    def encode(*seen):
        def work():
            with torch.no_grad():
                pipeline.encode_prompt("a red circle", "cpu", 1, False)

        other = threading.Thread(target=work)
        other.start()
        other.join()
        return {}

    with probe.record(pipeline) as recorder:
        output = generate(pipeline, "two blue squares", steps=3, callback_on_step_end=encode)
    assert (output == plain).all()
    assert recorder.steps == [667, 334, 1]
    assert recorder.result().text == "two blue squares"


def test_the_words_are_found_without_a_change_to_the_tokenizer_that_others_may_be_using():
    pipeline = tiny_sd()
    pipeline.tokenizer("a red circle", padding="max_length", max_length=20, truncation=True)
    before = (pipeline.tokenizer.backend_tokenizer.padding, pipeline.tokenizer.backend_tokenizer.truncation)
    assert None not in before
    prompt_keys(pipeline, "two blue squares")
    assert (pipeline.tokenizer.backend_tokenizer.padding, pipeline.tokenizer.backend_tokenizer.truncation) == before


@pytest.mark.parametrize("asked", [{"max_length": 4, "truncation": True}, {"max_length": 20, "padding": "max_length"}])
@pytest.mark.parametrize("prompt", ["two blue squares on a red circle", "a dog"])
def test_what_a_tokenizer_was_last_asked_for_does_not_change_the_words(asked, prompt):
    fresh, used = tiny_sd(), tiny_sd()
    used.tokenizer(prompt, padding_side="left", **asked)
    assert prompt_keys(used, prompt) == prompt_keys(fresh, prompt)


def test_a_learned_word_of_several_vectors_has_a_key_for_each():
    """Textual inversion: the pipeline writes such a word as all of its parts before it encodes the prompt."""
    pipeline = tiny_sd()
    pipeline.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    with probe.record(pipeline) as recorder:
        generate(pipeline, "a <cat> on red", steps=1)
    record = recorder.result()
    assert record.text == pipeline.maybe_convert_prompt("a <cat> on red", pipeline.tokenizer)
    assert "<cat> <cat>_1" in record.text
    assert {"<cat>", "<cat>_1"} <= set(record.tokens)
