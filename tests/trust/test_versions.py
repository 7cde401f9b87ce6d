"""Calls of attention as another version of the library might make them: recorded as they are, or refused; never misread."""

from __future__ import annotations

import random

import pytest

from probe.capture import taps
from probe.errors import CaptureError
from tests.capture.reference import eager_maps, inputs_of, largest_difference, random_answer, read, with_answer
from tests.tiny import picture, tiny_llava


class Convention:
    """How a model calls its attention function: ``given`` makes of the arguments of today those of that version, ``taken`` those of
    today again, for the kernel; ``returned`` and ``unpacked`` do the same for what comes back."""

    def given(self, q, k, v, mask, options):
        return (q, k, v, mask), options

    def taken(self, args, options):
        return args, options

    def returned(self, output, weights):
        return output, weights

    def unpacked(self, result):
        return result


class Names(Convention):
    """Other names, and none by place."""

    def given(self, q, k, v, mask, options):
        return (), options | {"q": q, "k": k, "v": v, "mask": mask}

    def taken(self, args, options):
        return tuple(options.pop(one) for one in ("q", "k", "v", "mask")), options


class Keywords(Convention):
    """The names of today, by name."""

    def given(self, q, k, v, mask, options):
        return (), options | {"query": q, "key": k, "value": v, "attention_mask": mask}

    def taken(self, args, options):
        return tuple(options.pop(one) for one in ("query", "key", "value", "attention_mask")), options


def ordered(*places):
    class Order(Convention):
        """The same in another order."""

        def given(self, q, k, v, mask, options):
            return tuple((q, k, v, mask)[one] for one in places), options

        def taken(self, args, options):
            return tuple(args[places.index(one)] for one in range(4)), options

    return Order


class Layout(Convention):
    """Queries, keys and values as (batch, position, head, channel)."""

    def given(self, q, k, v, mask, options):
        return (*(one.transpose(1, 2) for one in (q, k, v)), mask), options

    taken = lambda self, args, options: ((*(one.transpose(1, 2) for one in args[:3]), args[3]), options)  # noqa: E731


class Flat(Convention):
    """Sequences one after the other, as (position, head, channel)."""

    def given(self, q, k, v, mask, options):
        return (*(one[0].transpose(0, 1) for one in (q, k, v)), mask), options

    taken = lambda self, args, options: ((*(one.transpose(0, 1)[None] for one in args[:3]), args[3]), options)  # noqa: E731


class Packed(Convention):
    """All three in one list."""

    def given(self, q, k, v, mask, options):
        return ([q, k, v], mask), options

    def taken(self, args, options):
        return (*args[0], args[1]), options


class Extra(Convention):
    """One more argument by place."""

    def given(self, q, k, v, mask, options):
        return (q, k, v, mask, "cache"), options

    def taken(self, args, options):
        return args[:4], options


class OtherMask(Convention):
    """The mask under another name."""

    def given(self, q, k, v, mask, options):
        return (q, k, v), options | {"mask": mask}

    def taken(self, args, options):
        return (*args, options.pop("mask")), options


class Inverted(Convention):
    """True where attention is not allowed; where there is no mask, that of a causal model is made."""

    def given(self, q, k, v, mask, options):
        if mask is None:
            mask = q.new_ones(q.shape[2], k.shape[2]).bool().tril(k.shape[2] - q.shape[2])[None, None]
        return (q, k, v, ~mask if mask.dtype.is_floating_point is False else mask < 0), options

    def taken(self, args, options):
        return (*args[:3], ~args[3]), options


class OtherScale(Convention):
    """The scale under another name."""

    def given(self, q, k, v, mask, options):
        options = dict(options)
        return (q, k, v, mask), options | {"softmax_scale": options.pop("scaling") * 3}

    def taken(self, args, options):
        return args, options | {"scaling": options.pop("softmax_scale") / 3}


class Scaled(Convention):
    """Queries that were multiplied by the scale before."""

    def given(self, q, k, v, mask, options):
        return (q * options["scaling"], k, v, mask), options | {"scaling": 1.0}


class Repeated(Convention):
    """Keys and values repeated for each head already."""

    def given(self, q, k, v, mask, options):
        times = q.shape[1] // k.shape[1]
        return (q, *(one.repeat_interleave(times, 1) for one in (k, v)), mask), options

    def taken(self, args, options):
        return args, options


class HeadsFirst(Convention):
    """The output as (batch, head, position, channel)."""

    def returned(self, output, weights):
        return output.transpose(1, 2), weights

    def unpacked(self, result):
        return result[0].transpose(1, 2), result[1]


class Named(Convention):
    """The output in an object."""

    def returned(self, output, weights):
        return {"output": output, "weights": weights}

    def unpacked(self, result):
        return result["output"], result["weights"]


class Three(Convention):
    """One more thing that comes back."""

    def returned(self, output, weights):
        return output, weights, "cache"

    def unpacked(self, result):
        return result[:2]


class Joined(Convention):
    """The output with its heads joined."""

    def returned(self, output, weights):
        self.heads = output.shape[2]
        return output.flatten(2), weights

    def unpacked(self, result):
        return result[0].unflatten(2, (self.heads, -1)), result[1]


#: Each convention, and whether today's tap understands it; every other one has to be refused.
CONVENTIONS = {
    "as today": (Convention, True), "by name": (Keywords, True), "scaled before": (Scaled, True), "three come back": (Three, True),
    "other names": (Names, False), "keys first": (ordered(1, 0, 2, 3), False), "values first": (ordered(2, 1, 0, 3), False),
    "values before keys": (ordered(0, 2, 1, 3), False), "mask first": (ordered(3, 0, 1, 2), False), "other layout": (Layout, False),
    "flat": (Flat, False), "packed": (Packed, False), "one more": (Extra, False), "mask of another name": (OtherMask, False),
    "mask the other way round": (Inverted, False), "scale of another name": (OtherScale, False), "heads first": (HeadsFirst, False),
    "an object": (Named, False), "heads joined": (Joined, False),
}  # fmt: skip


def as_called(kind):
    """transformers' look-up of attention functions, as if models and functions kept to this convention."""
    convention = kind()

    def get_interface(interface, name, default):
        kernel = taps._original(interface, name, default)

        def function(module, *args, **options):
            args, options = convention.taken(args, dict(options))
            return convention.returned(*kernel(module, *args, **options))

        def call(module, q, k, v, mask, **options):
            args, options = convention.given(q, k, v, mask, dict(options))
            return convention.unpacked(taps._pass_through(function, name or "eager", module, *args, **options))

        return call

    return get_interface


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.promises("R36")
def test_another_signature_is_refused_not_misread(line, monkeypatch, attention):
    refused = line("R36", target="each other signature refused or read right", least=2 * len(CONVENTIONS))
    # As many keys as queries, so that nothing but the numbers can tell one from the other.
    subject = tiny_llava(seed=11, attention=attention, num_key_value_heads=4)
    inputs, rng = inputs_of(subject, picture(seed=3)), random.Random(11)
    ids = random_answer(subject, rng, longest=6) * 2
    maps = eager_maps(subject, with_answer(inputs, ids))
    rows = [inputs["input_ids"].shape[1] + i - 1 for i in range(len(ids))]
    for name, (kind, understood) in CONVENTIONS.items():
        for verify in ("sample", "all"):
            with monkeypatch.context() as patch:
                patch.setattr(taps, "_get_interface", as_called(kind))
                try:
                    record = read(subject, inputs, ids, verify=verify)
                except CaptureError:
                    refused.trial(not understood, what=f"{name}, {verify}: refused")
                    continue
            error = largest_difference(record, maps, rows, with_answer(inputs, ids))
            refused.trial(error < 1e-5, silent=True, what=f"{name}, {verify}: off by {error}")
    refused.settle()
