"""What a record does with what it holds: every reduction against a plain line."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import probe
from probe.errors import InputError
from tests.records import make_grid, make_record

TEXT = "a red circle and a blue square"  # tokens: a| red| circle| and| a| blue| square|</s>


def _values(record):
    return torch.stack([one.values for one in record.layers])


def test_selections_are_plain_indexing_and_keep_the_whole_answers_mean():
    record, rng = make_record(layers=3, heads=4), random.Random(0)
    whole = _values(record)
    for _ in range(40):
        layers, heads, tokens = (rng.sample(range(n), rng.randint(1, n)) for n in (3, 4, 8))
        part = record.select(layers=layers, heads=heads, tokens=tokens, timesteps=0, view="image 0")
        assert torch.equal(_values(part), whole[layers][:, :, heads][:, :, :, tokens])
        assert part.tokens == tuple(record.tokens[i] for i in tokens)
        assert part.token_ids == tuple(tokens)
        assert part.spans == tuple(record.spans[i] for i in tokens)
        assert [one.heads for one in part.layers] == [tuple(heads)] * len(layers)
        for one, number in zip(part.layers, layers, strict=True):
            assert torch.equal(one.token_mean, record.layers[number].values.mean(2)[:, heads])
            assert torch.equal(one.rest, record.layers[number].rest[:, heads][:, :, tokens])
    # Head numbers stay the model's own, through a selection of a selection.
    assert record.select(heads=[3, 1]).select(heads=1).layers[0].heads == (1,)


@pytest.mark.parametrize(
    ("phrase", "tokens"),
    [
        ("red circle", (1, 2)),
        ("RED", (1,)),
        ("square", (6,)),
        (("a", 0), (0,)),
        (("a", 1), (4,)),
        (("a", -1), (4,)),
        ("circle and", (2, 3)),
        (TEXT, (0, 1, 2, 3, 4, 5, 6)),
    ],
)
def test_phrases_are_the_tokens_that_spell_them(phrase, tokens):
    assert make_record(text=TEXT)[phrase].token_ids == tokens


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("green circle", "'green circle' is not in the text 'a red circle .* Did you mean 'red circle'"),
        ("red cirle", "Did you mean 'red circle'"),
        ("circ", "is not in the text"),
        ("", "is not in the text"),
        (
            "a",
            r"'a' is 2 times in .*; choose one by its number, \('a', 0\) to \('a', 1\), at characters \(0, 1\), \(17, 18\)",
        ),
        (("a", 2), "occurrence of 'a' 2 does not exist: there are 2"),
        (0, r"record\[0\] is not a phrase; .* select\(tokens="),
        (("a", 0, 1), "is not a phrase"),
    ],
)
def test_phrases_that_cannot_be_found_say_why(phrase, message):
    with pytest.raises(InputError, match=message):
        make_record(text=TEXT)[phrase]


def test_a_phrase_whose_tokens_were_not_kept_is_refused():
    record = make_record(text=TEXT).select(tokens=[0, 1])
    with pytest.raises(
        InputError, match=r"Characters 24 to 30 \('square'\) are not covered by any of the 2 recorded tokens"
    ):
        record["square"]


def test_special_tokens_inside_a_phrase_are_not_part_of_it():
    record = make_record(text=TEXT)
    # A special token between "red" and "circle" spells nothing: its span is empty, at the end of "red".
    spans = (*record.spans[:2], (5, 5), *record.spans[2:7])
    assert replace(record, spans=spans)["red circle"].token_ids == (1, 3)


def test_the_mean_is_subtracted_once_and_of_the_whole_answer():
    record = make_record(layers=2, heads=3)
    whole = _values(record)
    expected = whole - whole.mean(3, keepdim=True)
    torch.testing.assert_close(_values(record.minus_mean()), expected)
    torch.testing.assert_close(_values(record["red circle"].minus_mean()), expected[:, :, :, 1:3])
    torch.testing.assert_close(_values(record.minus_mean()["red circle"]), expected[:, :, :, 1:3])
    twice = record.minus_mean().minus_mean()
    assert twice.history == ("minus mean",)
    torch.testing.assert_close(_values(twice), expected)
    torch.testing.assert_close(
        _values(record["red"].mean("head").minus_mean()), expected[:, :, :, 1:2].mean(2, keepdim=True)
    )


def test_a_whole_answer_minus_its_own_mean_is_refused_not_drawn_as_noise():
    record = make_record(text=TEXT)
    for whole in (record, record.minus_mean(), record.select(layers=1, heads=[0, 2])):
        with pytest.raises(InputError, match=r"8 tokens are the whole answer, whose mean minus itself is zero"):
            whole.heatmap()
    with pytest.raises(InputError, match="is the whole answer, and a map minus its own mean is zero"):
        record.mean("token").heatmap()
    with pytest.raises(InputError, match=r"only token here \('dog'\) is the whole answer"):
        probe.AttentionRecord.minus_mean(_one_token())
    assert record.heatmap(reading="attention").std() > 0
    assert record.select(tokens=range(7)).heatmap().std() > 0  # all but one is a question with an answer


def _one_token():
    record = make_record(text="dog").select(tokens=0)
    layers = tuple(replace(one, token_mean=one.values[:, :, 0]) for one in record.layers)
    return replace(record, layers=layers)


def test_means_over_each_dimension():
    record = make_record(layers=3, heads=4)
    whole = _values(record)
    for dims in (["layer"], ["head"], ["token"], ["layer", "head"], ["token", "head", "layer", "timestep"]):
        axes = [["layer", "timestep", "head", "token"].index(one) for one in dims]
        found = record.mean(*dims)
        torch.testing.assert_close(_values(found), whole.mean(axes, keepdim=True))
        assert found.history == (f"mean over {', '.join(dims)}",)
        rest = torch.stack([one.rest for one in record.layers]).mean(axes, keepdim=True)
        torch.testing.assert_close(torch.stack([one.rest for one in found.layers]), rest)
    assert record.mean("head").layers[0].heads == (-1,)
    assert record["red circle"].mean("token").tokens == ("red circle",)
    assert record["red circle"].mean("token").spans == ((2, 12),)
    with pytest.raises(InputError, match=r"takes 'layer', .* found \['row'\]"):
        record.mean("row")
    with pytest.raises(InputError, match="found nothing"):
        record.mean()


def test_a_mean_over_layers_with_other_heads_gives_no_head_a_number():
    record = make_record(layers=2, heads=4)
    mixed = replace(record, layers=(record.select(heads=[0, 1]).layers[0], record.select(heads=[2, 3]).layers[1]))
    assert mixed.mean("layer").layers[0].heads == (-1, -1)
    assert record.select(heads=[2, 3]).mean("layer").layers[0].heads == (2, 3)


def test_stacks_are_dense_or_name_what_differs():
    record = make_record(layers=3)
    assert torch.equal(record.stack(), _values(record))
    other = make_record(layers=1, grid=make_grid(2, 3, image_size=(32, 32)))
    mixed = replace(record, layers=(*record.layers, replace(other.layers[0], name="layers.9")))
    with pytest.raises(
        InputError,
        match=r"'layers\.0\.self_attn' has .*\(4, 4\)\) but 'layers\.9' has .*\(2, 3\)\); .*grid=\(rows",
    ):
        mixed.stack()
    with pytest.raises(InputError, match=r"mean over layers needs layers alike .*'layers\.9'"):
        mixed.mean("layer")
    stacked = mixed.stack(grid=(2, 2))
    assert stacked.shape == (4, 1, 3, 8, 2, 2)
    plain = record.layers[1].values.unflatten(-1, (2, 2)).unflatten(-3, (2, 2)).mean((-1, -3))
    torch.testing.assert_close(stacked[1], plain)
    fewer = replace(record, layers=(record.layers[0], record.select(heads=[0]).layers[1]))
    with pytest.raises(InputError, match="needs equal timesteps and heads in every layer"):
        fewer.stack(grid=(2, 2))


def test_heatmaps_are_the_mean_upsampled_in_the_images_own_pixels():
    record = make_record(grid=make_grid(4, 4, image_size=(24, 40)))
    whole = _values(record)
    for reading, values in (("attention", whole), ("minus mean", whole - whole.mean(3, keepdim=True))):
        flat = values[:, :, :, 1:3].mean((0, 1, 2, 3))
        for size in (None, (7, 9)):
            plain = torch.nn.functional.interpolate(flat[None, None], size=size or (24, 40), mode="bicubic")[0, 0]
            np.testing.assert_allclose(record["red circle"].heatmap(size, reading=reading), plain, atol=1e-5)
    with pytest.raises(InputError, match="reading must be 'minus mean' or 'attention', found 'raw'"):
        record.heatmap(reading="raw")


def test_what_does_not_fit_together_is_refused():
    record = make_record()
    with pytest.raises(InputError, match="at least one layer"):
        replace(record, layers=())
    with pytest.raises(InputError, match="8 tokens, 8 ids, 7 spans"):
        replace(record, spans=record.spans[:-1])
    with pytest.raises(InputError, match=r"'layers\.0\.self_attn': token_mean has shape"):
        replace(record.layers[0], token_mean=record.layers[0].token_mean[:, :2])
    with pytest.raises(InputError, match=r"values has shape .* with 2 head numbers"):
        replace(record.layers[0], heads=(0, 1))
    with pytest.raises(
        InputError, match=r"No view 'image' in this record, which has \['image 0'\]\. Did you mean 'image 0'\?"
    ):
        record.select(view="image")
    for options in ({"layers": 2}, {"heads": 3}, {"tokens": 8}, {"timesteps": 1}):
        with pytest.raises(InputError, match=r"does not exist: there (is|are)"):
            record.select(**options)


def test_the_picture_in_words_names_sizes_and_escapes_what_it_shows():
    record = make_record(text="a <b>bold</b> dog")
    shown = repr(record)
    for part in (
        "2 layers",
        "3 heads",
        "4 x 4",
        "32 x 32 (height x width)",
        "MB",
        "predicting rows",
        "largest error 1.0e-07",
    ):
        assert part in shown
    assert "<b>" not in record._repr_html_()
    assert "&lt;b&gt;" in record._repr_html_()


def test_what_was_taken_away_is_shown_where_something_was():
    record = make_record()
    assert "ablation" not in repr(record) + record._repr_html_()
    ablated = replace(record, source=replace(record.source, ablation="zero: (1, 4), (2, 0)"))
    for one in (ablated, ablated["red circle"].minus_mean().mean("head")):
        assert "\n  ablation: zero: (1, 4), (2, 0)\n" in repr(one)
        assert "<tr><th>ablation</th><td>zero: (1, 4), (2, 0)</td></tr>" in one._repr_html_()


def test_moving_moves_everything():
    moved = make_record().to(torch.float64)
    assert {t.dtype for one in moved.layers for t in (one.values, one.token_mean, one.rest)} == {torch.float64}
