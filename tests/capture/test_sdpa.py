"""The second tap: sees the calls of watched modules and no others, changes nothing, and leaves nothing behind."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as by_name

import probe
from probe.capture import sdpa
from probe.capture.sdpa import edit_sdpa, watch_sdpa
from probe.capture.taps import edits_of
from probe.capture.weights import attention_rows, reproduction_error
from probe.errors import CaptureError
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava

ORIGINAL = functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    assert functional.scaled_dot_product_attention is ORIGINAL
    assert (sdpa._watchers, sdpa._editors, sdpa._installed) == ({}, {}, None)


class Attend(nn.Module):
    """Attention of what it is given, with any options."""

    def __init__(self, function=None, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, query, key, value):
        function = self.function or functional.scaled_dot_product_attention
        return function(query, key, value, **self.options)


def _states(*, queries=5, keys=7, heads=4, key_heads=4, dtype=torch.float64, batch=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return [2 * torch.randn(batch, one, length, 8, generator=random, dtype=dtype) for one, length in shapes]


def _masks(queries, keys):
    random = torch.Generator().manual_seed(1)
    allowed = torch.rand(1, 4, queries, keys, generator=random) < 0.7
    allowed[..., 0] = True
    return {
        "none": None,
        "bool": allowed,
        "bool of three dimensions": allowed[0],
        "bool of two dimensions": allowed[0, 0],
        "bool for all queries": allowed[:, :1, :1],
        "float": torch.randn(queries, keys, generator=random, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", _masks(1, 1))
@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_recomputed_weights_rebuild_the_kernels_output(name, scale, key_heads):
    module = Attend(attn_mask=_masks(5, 7)[name], scale=scale, enable_gqa=key_heads != 4)
    states, seen = _states(key_heads=key_heads), []
    plain = module(*states)
    with watch_sdpa([module], lambda one, call: seen.append((one, call))):
        output = module(*states)
    assert torch.equal(output, plain)
    [(one, call)] = seen
    assert one is module
    assert torch.equal(call.output, plain.transpose(1, 2))
    rows = torch.tensor([4, 1])
    weights = attention_rows(module, call, rows=rows, heads=(3, 0, 1))
    assert reproduction_error(call, weights, rows=rows, heads=(3, 0, 1)) <= 1e-12
    # By hand, for one of them.
    logits = states[0][0, 3, 4] @ states[1][0, 3 * key_heads // 4].T * (scale or 8**-0.5)
    mask = call.mask
    if mask is not None:
        line = mask.expand(1, 4, 5, 7)[0, 3, 4]
        logits = logits.masked_fill(~line, -torch.inf) if mask.dtype == torch.bool else logits + line
    assert (weights[0, 0] - logits.softmax(-1)).abs().max() <= 1e-12


@pytest.mark.parametrize("queries", [1, 2, 5, 7, 9])
def test_the_causal_triangle_begins_at_the_first_key_also_for_one_query(queries):
    module, seen = Attend(is_causal=True), []
    with watch_sdpa([module], lambda one, call: seen.append(call)):
        module(*_states(queries=queries))
    rows = torch.arange(queries)
    weights = attention_rows(module, seen[0], rows=rows, heads=(0, 1, 2, 3))
    assert reproduction_error(seen[0], weights, rows=rows, heads=(0, 1, 2, 3)) <= 1e-12
    assert weights[:, 0, 1:].abs().max() == 0


def test_a_call_belongs_to_the_innermost_watched_module():
    inner, other = Attend(), Attend()
    middle = nn.Sequential()
    middle.inner = inner
    middle.forward = lambda *states: inner(*states)
    outer = nn.Module()
    outer.middle, outer.other = middle, other
    outer.forward = lambda *states: outer.middle(*states) + outer.other(*states) + ORIGINAL(*states)
    seen = []
    with watch_sdpa([outer, middle], lambda one, call: seen.append(one)):
        outer(*_states())
    assert seen == [middle, outer]
    seen.clear()
    with watch_sdpa([inner, outer], lambda one, call: seen.append(one)):
        outer(*_states())
        functional.scaled_dot_product_attention(*_states())  # outside of any module
        Attend()(*_states())  # of a module that nobody watches
    assert seen == [inner, outer]


def test_contexts_nest_overlap_and_end_in_any_order():
    module, counts = Attend(), {"first": 0, "second": 0}

    def count(name):
        return lambda one, call: counts.__setitem__(name, counts[name] + 1)

    first, second = ExitStack(), ExitStack()
    first.enter_context(watch_sdpa([module], count("first")))
    second.enter_context(watch_sdpa([module], count("second")))
    module(*_states())
    first.close()
    assert functional.scaled_dot_product_attention is not ORIGINAL
    module(*_states())
    second.close()
    assert counts == {"first": 1, "second": 2}


def test_a_function_that_somebody_put_over_ours_keeps_working(monkeypatch):
    module, seen = Attend(), []
    context = watch_sdpa([module], lambda one, call: seen.append(one))
    context.__enter__()
    ours = functional.scaled_dot_product_attention
    theirs = lambda *args, **kwargs: ours(*args, **kwargs)  # noqa: E731
    functional.scaled_dot_product_attention = theirs
    try:
        context.__exit__(None, None, None)
        assert functional.scaled_dot_product_attention is theirs
        assert torch.equal(module(*_states()), ORIGINAL(*_states()))
        assert not seen
        with watch_sdpa([module], lambda one, call: seen.append(one)):
            module(*_states())
        assert seen == [module]
    finally:
        functional.scaled_dot_product_attention = ours
    # Ours is on top again and idle: the next context takes it away.
    with watch_sdpa([module], lambda one, call: None):
        pass


def test_a_function_imported_by_name_is_not_seen_and_not_changed():
    module, seen = Attend(by_name), []
    with watch_sdpa([module], lambda one, call: seen.append(one)):
        module(*_states())
    assert not seen


@pytest.mark.parametrize("error", [Exception, KeyboardInterrupt, GeneratorExit])
def test_after_an_interrupt_no_call_is_taken_for_one_of_the_module(error):
    def interrupted(*args, **kwargs):
        raise error("planted")

    module, seen = Attend(interrupted), []
    with watch_sdpa([module], lambda one, call: seen.append(one)):
        with pytest.raises(error, match="planted"):
            module(*_states())
        functional.scaled_dot_product_attention(*_states())
        Attend()(*_states())
    assert not seen


def test_an_error_of_the_watcher_reaches_the_caller_and_leaves_nothing():
    def watcher(module, call):
        raise KeyboardInterrupt("planted")

    module = Attend()
    with pytest.raises(KeyboardInterrupt, match="planted"), watch_sdpa([module], watcher):
        module(*_states())


def test_other_threads_pass_through_with_their_own_modules():
    modules = [Attend() for _ in range(4)]
    plain = [module(*_states(seed=i)) for i, module in enumerate(modules)]
    seen = {module: set() for module in modules}
    wrong, go = [], threading.Event()

    def work(number, watched):
        go.wait()
        for _ in range(50):
            if watched:
                with watch_sdpa([modules[number]], lambda one, call: seen[one].add(threading.get_ident())):
                    output = modules[number](*_states(seed=number))
            else:
                output = modules[number](*_states(seed=number))
            if not torch.equal(output, plain[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number, number % 2 == 0)) for number in range(4)]
    for one in threads:
        one.start()
    go.set()
    for one in threads:
        one.join()
    assert not wrong
    assert [seen[module] for module in modules] == [{threads[0].ident}, set(), {threads[2].ident}, set()]


def test_an_edited_output_is_as_if_its_slice_were_edited_in_place():
    module, seen = Attend(), []
    states = _states(batch=2, dtype=torch.float32)
    plain = module(*states)

    def without(one, call):
        output = call.output.clone()
        output[:, :, [1, 3]] = 0
        return output

    with edit_sdpa([module], without, name="two"), watch_sdpa([module], lambda one, call: seen.append(call)):
        edited = module(*states)
    expected = plain.clone()
    expected[:, [1, 3]] = 0
    assert torch.equal(edited, expected)
    assert torch.equal(seen[0].output, plain.transpose(1, 2))  # a watcher sees what the kernel gave out
    with (
        edit_sdpa([module], without, name="two"),
        edit_sdpa([module], lambda one, call: call.output * 2, name="doubled"),
    ):
        assert torch.equal(module(*states), expected * 2)
        assert edits_of([module]) == ("two", "doubled")
    assert edits_of([module]) == ()
    assert torch.equal(module(*states), plain)


def test_a_compiled_model_of_somebody_else_runs_inside_the_context():
    module = Attend()
    compiled = torch.compile(Attend(), backend="eager", fullgraph=True)
    plain = ORIGINAL(*_states())
    with watch_sdpa([module], lambda one, call: None):
        assert torch.equal(compiled(*_states()), plain)
    assert torch.equal(compiled(*_states()), plain)


def test_states_without_heads_are_refused():
    module = Attend()
    flat = [one[0] for one in _states()]
    with (
        watch_sdpa([module], lambda one, call: None),
        pytest.raises(CaptureError, match=r"Attend called .* shapes \[\(4, 5, 8\).*four dimensions"),
    ):
        module(*flat)


def test_a_transformers_recording_goes_on_beside_it():
    subject = tiny_llava()
    inputs = inputs_of(subject, picture())
    layers = [one.self_attn for one in subject.model.get_decoder().layers]
    seen = []
    with probe.record(subject) as plain:
        subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with watch_sdpa(layers, lambda one, call: seen.append(one)), probe.record(subject) as recorder:
        subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert seen == layers * 3
    for one, other in zip(plain.result().layers, recorder.result().layers, strict=True):
        assert torch.equal(one.values, other.values)
