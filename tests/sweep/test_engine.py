"""What the engine gives for every ablation is what a whole pass under the same ablation gives, and the model is left as found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.modeling_utils import AttentionInterface

import probe
from probe.analysis.metrics import score
from probe.analysis.targets import Target
from probe.capture import resuming, taps
from probe.capture.ablation import ablate, mean_outputs
from probe.capture.edges import Edge, cut_edges
from probe.capture.hooks import hook_tables
from probe.capture.passes import inputs_with_answer
from probe.capture.recorder import Recorder
from probe.capture.references import head_outputs
from probe.errors import CertificateError, InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.sweep.ablations import CUT, Ablation
from probe.sweep.engine import Engine
from tests.tiny import picture, tiny_llava

PROMPT = "Describe the image."
TEXT = "a man with a red ball"
LAYERS, HEADS, IMAGE = 3, 4, 16

EDGE_NAMES = (
    "answer to image",
    "text to image",
    "prompt to image",
    "image to image",
    "answer to prompt",
    "answer to answer",
)
EVERY = [
    *(Ablation("head", layer, head, how=how) for layer in range(LAYERS) for head in range(HEADS)
      for how in ("zero", "mean", "uniform", "other image")),
    *(Ablation("layer", layer, how=how) for layer in range(LAYERS) for how in ("zero", "mean", "uniform", "other image")),
    *(Ablation("edge", layer, head, edge=edge, how=CUT) for layer in range(LAYERS) for head in (None, 1) for edge in EDGE_NAMES),
]  # fmt: skip


def _example(seed: int = 0, **changes) -> Example:
    mask = np.zeros((40, 56), bool)
    mask[5:30, 10 + seed : 40] = True
    phrases = (ExamplePhrase("man", 2, 5, mask), ExamplePhrase("red ball", 13, 21, ~mask))
    return replace(Example(f"image {seed}", picture(seed=seed), TEXT, phrases), **changes)


def _means(subject):
    return mean_outputs(subject, [(picture(seed=3), PROMPT, "two dogs")], name="one picture")


def _positions(subject):
    """Token ids, where the answer begins, and the rows that are image."""
    inputs, start = inputs_with_answer(subject, picture(), PROMPT, TEXT)
    ids = inputs["input_ids"][0].tolist()
    image = [i for i, one in enumerate(ids) if one == subject.model.config.image_token_id]
    assert len(image) == IMAGE
    return ids, start, image


def _context(subject, one, *, means, other):
    """The same ablation, spelled out: positions of an edge by hand."""
    heads = list(range(HEADS)) if one.head is None else [one.head]
    if one.kind != "edge":
        reference = {"mean": means, "other image": other}.get(one.how)
        return ablate(subject, heads=[(one.layer, head) for head in heads], how=one.how, reference=reference)
    ids, start, image = _positions(subject)
    everything = set(range(len(ids)))
    queries = {
        "answer": set(range(start - 1, len(ids))), "text": everything - set(image), "image": set(image),
        "prompt": everything - set(image) - set(range(start - 1, len(ids))),
    }[one.edge.split(" to ")[0]]  # fmt: skip
    keys = {"image": set(image), "prompt": set(range(start)) - set(image), "answer": set(range(start, len(ids)))}
    picked = [tuple(sorted(some)) for some in (queries, keys[one.edge.split(" to ")[1]])]
    return cut_edges(subject, [Edge(one.layer, *picked, tuple(heads))])


def _whole(subject, one, **references):
    """(token,) log-probabilities of the answer by a plain whole pass, and the text's spans by recording."""
    inputs, start = inputs_with_answer(subject, picture(), PROMPT, TEXT)
    with torch.inference_mode(), _context(subject, one, **references):
        logits = subject.model(**inputs).logits[0].double()
    rows = torch.log_softmax(logits[start - 1 : -1], -1)
    return rows[torch.arange(len(rows)), inputs["input_ids"][0, start:]]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-5),
        ({"seed": 1, "num_key_value_heads": 1}, 1e-5),
        ({"seed": 2, "attention": "eager"}, 1e-5),
        ({"seed": 3, "text": "qwen2"}, 1e-5),
        ({"seed": 4, "dtype": torch.float64, "num_key_value_heads": 4}, 1e-10),
    ],
)
def test_every_ablation_is_a_whole_pass_under_it(options, tolerance):
    subject = tiny_llava(**options)
    means = _means(subject)
    other = head_outputs(subject, picture(seed=9), PROMPT, TEXT, name="other")
    effects = ("log_probability", "caption_log_probability")
    engine = Engine(subject, EVERY, effects, batch=5, reference=means, others=[picture(seed=9)], verify="off")
    table = engine([_example()])
    assert engine.notes == []
    assert table[table["kind"] != "none"]["resumed"].all()
    captions = table[table["phrase"] == "man"]["caption_log_probability"].to_numpy()
    wanted = [float(_whole(subject, one, means=means, other=other).sum()) for one in EVERY]
    np.testing.assert_allclose(captions[1:], wanted, atol=tolerance * len(TEXT.split()), rtol=0)
    # Every one changes something, but edges that end in the last layer on rows that nothing reads.
    silent = {
        number for number, one in enumerate(EVERY)
        if one.layer == LAYERS - 1 and one.edge in ("prompt to image", "image to image")
    }  # fmt: skip
    changed = np.abs(captions[1:] - captions[0]) > 1e-4
    assert all(changed[number] != (number in silent) for number in range(len(EVERY)))


def test_phrases_are_their_tokens_and_the_unablated_pass_comes_first():
    subject, one = tiny_llava(), Ablation("head", 1, 2)
    table = Engine(subject, [one], attributes={"red"})([_example()])
    assert list(table["kind"]) == ["none", "none", "head", "head"]
    inputs, start = inputs_with_answer(subject, picture(), PROMPT, TEXT)
    record = probe.run(subject, picture(), PROMPT, answer=TEXT).record
    taken = _whole(subject, one, means=None, other=None)
    for phrase, number in (("man", 2), ("red ball", 3)):
        low = TEXT.index(phrase)
        wanted = float(taken[list(record.tokens_of(low, low + len(phrase)))].sum())
        assert table["log_probability"][number] == pytest.approx(wanted, abs=1e-5)
        change = table["log_probability"][number] - table["log_probability"][number - 2]
        assert table["log_probability_change"][number] == pytest.approx(change, abs=1e-12)
    with torch.inference_mode():
        first = subject.model(**inputs).logits[0, start - 1 : -1].argmax(-1)
    red = list(record.tokens_of(TEXT.index("red"), TEXT.index("red") + 3))
    right = bool((first[red] == inputs["input_ids"][0, start:][red]).all())
    assert np.isnan(table["exact_match"][0])
    assert table["exact_match"][1] == float(right)


@pytest.mark.parametrize(
    ("one", "left"),
    [
        (Ablation("head", 0, 2), [(0, 2)]),
        (Ablation("layer", 1), [(1, head) for head in range(HEADS)]),
        (Ablation("head", 2, 0), [(2, 0)]),
        (Ablation("edge", 1, 3, edge="answer to image", how=CUT), [(1, 3)]),
        (Ablation("edge", 1, 3, edge="answer to prompt", how=CUT), []),
    ],
)
def test_where_the_heads_that_are_left_look(one, left):
    subject, example = tiny_llava(seed=5), _example()
    table = Engine(subject, [one], ("pointing", "auroc"), verify="off")([example])
    inputs, start = inputs_with_answer(subject, picture(), PROMPT, TEXT)
    with (
        torch.inference_mode(),
        Recorder(subject.model, subject.processor, answer_start=start) as recorder,
        _context(subject, one, means=None, other=None),
    ):
        subject.model(**inputs)
    found = recorder.result(image=picture())
    maps = found.stack().squeeze()  # (layer, head, token, row, col)
    for layer, head in left:
        maps[layer, head] = torch.nan
    mean = maps.flatten(0, 1).nanmean(0)
    mean = mean - mean.mean(0)
    target = Target.from_masks(found.layers[0].grid, np.stack([phrase.mask for phrase in example.phrases]))
    of_phrases = [mean[list(found.tokens_of(phrase.start, phrase.end))].mean(0) for phrase in example.phrases]
    wanted = score(["pointing", "auroc"], torch.stack(of_phrases), target)
    np.testing.assert_allclose(table["auroc"][2:], wanted["auroc"], atol=1e-9)
    np.testing.assert_array_equal(table["pointing"][2:], wanted["pointing"])


def test_an_example_gives_the_same_in_any_company_and_batch():
    subject = tiny_llava()
    options = {"effects": ("log_probability",), "others": [picture(seed=9), picture(seed=8)], "verify": "off"}
    cells = [Ablation("head", layer, head, how="other image") for layer in range(LAYERS) for head in range(HEADS)]
    alone = Engine(subject, cells, batch=1, **options)([_example(1)])
    among = Engine(subject, cells, batch=16, **options)([_example(0), _example(2, phrases=()), _example(1)])
    assert set(among["example"]) == {"image 0", "image 1"}
    own = among[among["example"] == "image 1"].reset_index(drop=True)
    np.testing.assert_allclose(own["log_probability"], alone["log_probability"], atol=1e-5)
    assert own.drop(columns=["log_probability", "log_probability_change"]).equals(
        alone.drop(columns=["log_probability", "log_probability_change"])
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"text": "mistral", "sliding_window": 8}, "slides over the sequence"),
        ({"text": "gemma"}, "GemmaModel is not known"),
    ],
)
def test_a_model_that_cannot_be_entered_is_read_whole_and_says_so(options, reason):
    subject = tiny_llava(**options)
    cells = [Ablation("head", 1, 2), Ablation("edge", 0, edge="answer to image", how=CUT)]
    engine = Engine(subject, cells)
    table = engine([_example()])
    assert not table["resumed"].any()
    assert len(engine.notes) == 1
    assert reason in engine.notes[0]
    wanted = [float(_whole(subject, one, means=None, other=None).sum()) for one in cells]
    captions = table[table["phrase"] == "man"]["caption_log_probability"].to_numpy()
    np.testing.assert_allclose(captions[1:], wanted, atol=1e-4)


def test_a_resumed_pass_that_differs_is_an_error_with_its_layer(monkeypatch):
    subject, own = tiny_llava(), resuming.read_trunk

    def elsewhere(*given):
        trunk = own(*given)
        trunk.states[1] = trunk.states[1] * 1.01
        return trunk

    monkeypatch.setattr("probe.sweep.conversations.read_trunk", elsewhere)
    with pytest.raises(CertificateError, match=r"image 0: .* resumed at layer 1 \(head in layer 1, head 2 \(zero\)\)"):
        Engine(subject, [Ablation("head", 0, 1), Ablation("head", 1, 2)])([_example()])
    # Later examples are held against whole passes too, one ablation each.
    engine = Engine(subject, [Ablation("head", 1, 2)])
    engine._verified.add(("head", 1, "", "zero"))
    with pytest.raises(CertificateError, match="resumed at layer 1"):
        engine([_example(1)])
    monkeypatch.undo()
    engine = Engine(subject, [Ablation("head", 1, 2)])
    engine([_example()])
    assert 0 <= engine.max_difference < 1e-5


def _snapshot(model):
    parts = {
        name: (sorted(vars(one)), one.training, id(vars(one).get("_modules"))) for name, one in model.named_modules()
    }
    ours = (
        dict(taps._watchers),
        dict(taps._editors),
        dict(taps._forestallers),
        vars(AttentionInterface)["get_interface"],
    )
    return parts, hook_tables(model), model.config.to_json_string(), ours


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_the_model_is_left_as_found_after_an_error_at_any_layer(error):
    subject = tiny_llava()
    cells = [Ablation("head", 0, 1), Ablation("head", 2, 1), Ablation("edge", 1, edge="answer to image", how=CUT)]
    engine = Engine(subject, cells, verify="off")
    engine([_example()])
    before, plain = _snapshot(subject.model), engine([_example()])
    layers = list(subject.model.get_decoder().layers)
    calls = []
    handle = register_module_forward_pre_hook(lambda module, args: calls.append(module) if module in layers else None)
    engine([_example()])
    handle.remove()
    # The unablated pass; from layer 0; the last layer, whose own ablation needs no more; the answer's rows from layer 1.
    assert [layers.index(one) for one in calls] == [0, 1, 2, 0, 1, 2, 2, 2, 1, 2]
    for moment in range(len(calls)):
        left = iter(range(moment, -1, -1))

        def fail(module, args, left=left):
            if module in layers and next(left) == 0:
                raise error("planted")

        handle = register_module_forward_pre_hook(fail)
        with pytest.raises(error):
            engine([_example()])
        handle.remove()
        assert _snapshot(subject.model) == before
    assert engine([_example()]).equals(plain)


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ([], {}, "nothing to take away"),
        ([Ablation("head", 3, 0)], {}, r"Head \(3, 0\) does not exist"),
        ([Ablation("layer", -1)], {}, "does not exist"),
        ([Ablation("head", 1)], {}, "kind 'head' needs head"),
        ([Ablation("layer", 1, 2)], {}, "kind 'layer' takes no head"),
        ([Ablation("heads", 1, 2)], {}, "no ablation of kind 'heads'.*Did you mean 'head'"),
        ([Ablation("head", 1, 2, how="zeros")], {}, "found how='zeros'.*Did you mean 'zero'"),
        ([Ablation("edge", 1, edge="answer to images", how=CUT)], {}, "no edge 'answer to images'.*Did you mean 'answer to image'"),
        ([Ablation("edge", 1, edge="answer to image")], {}, "An edge is always cut"),
        ([Ablation("head", 1, 2, edge="answer to image")], {}, "belongs to an ablation of kind 'edge'"),
        ([Ablation("head", 1, 2), Ablation("head", 1, 2)], {}, "named twice"),
        ([(1, 2)], {}, "must be Ablation objects, found a tuple"),
        ([Ablation("head", 1, 2, how="mean")], {}, "needs reference"),
        ([Ablation("head", 1, 2, how="other image")], {}, "needs others"),
        ([Ablation("head", 1, 2)], {"effects": ["pointng"]}, "No effect 'pointng'.*Did you mean 'pointing'"),
        ([Ablation("head", 1, 2)], {"effects": []}, "effects is empty"),
        ([Ablation("head", 1, 2)], {"batch": 0}, "batch must be 1 or more"),
        ([Ablation("head", 1, 2)], {"verify": "none"}, "verify must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_says_why(cells, options, message):
    with pytest.raises(InputError, match=message):
        Engine(tiny_llava(), cells, **options)


def test_the_only_other_picture_may_not_be_the_examples_own():
    example = _example()
    engine = Engine(tiny_llava(), [Ablation("head", 1, 2, how="other image")], others=[example.image])
    with pytest.raises(InputError, match="image 0: all pictures of others are the example's own"):
        engine([example])
