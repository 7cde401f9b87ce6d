"""One line for one image, and scores over a data set, for models that answer nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import probe
from probe.analysis import score_heads
from probe.capture.denoising import noise_and_record
from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.runs import profile_examples, score_examples
from tests.tiny import picture, tiny_clip, tiny_llava, tiny_siglip
from tests.tiny_diffusion import tiny_sd

TEXT = "a red circle and two blue squares"
PHRASES = ((0, 12), (17, 33))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def example(seed, *, text=TEXT, spans=PHRASES):
    rng = np.random.default_rng(seed)
    phrases = []
    for start, end in spans:
        mask = np.zeros((40, 56), dtype=bool)
        top, left = rng.integers(0, 24), rng.integers(8, 32)
        mask[top : top + 12, left : left + 14] = True
        phrases.append(ExamplePhrase(text[start:end], start, end, mask))
    return Example(f"example {seed}", picture(seed=seed), text, tuple(phrases))


EXAMPLES = [example(seed) for seed in range(3)]


def by_hand(records, **options):
    masks = [[((one.start, one.end), one.mask) for one in example.phrases] for example in EXAMPLES]
    return score_heads(records, masks, **options).to_frame()


def test_clip_compares_the_image_with_the_noun_phrases_of_the_prompt():
    subject = tiny_clip()
    run = probe.run(subject, picture(), TEXT, layers=[1], heads=[2])
    assert (run.text, run.prompt, run.record.text) == (TEXT, TEXT, TEXT)
    assert run.record.tokens == ("a red circle", "two blue squares")
    assert run.record.spans == PHRASES
    plain = probe.contributions(subject, picture(), ["a red circle", "two blue squares"])
    torch.testing.assert_close(run.record.layers[0].values, plain.layers[1].values[:, [2]])
    assert probe.run(subject, picture(), "quickly ").record.tokens == ("quickly",)
    with pytest.raises(InputError, match="There is no text to compare the image with"):
        probe.run(subject, picture(), "  ")


def test_a_pipeline_denoises_the_image():
    subject = probe.load_model(tiny_sd())
    run = probe.run(subject, picture(), TEXT, timesteps=[100, 300], seed=4, draws=2, layers=[0, 3])
    plain = noise_and_record(subject, picture(), TEXT, timesteps=(100, 300), seed=4, draws=2).record
    assert (run.text, run.record["red circle"].query_kind) == (TEXT, "text token")
    assert [one.name for one in run.record.layers] == [plain.layers[i].name for i in (0, 3)]
    assert torch.equal(run.record.layers[1].values, plain.layers[3].values)
    assert run.record.layers[0].timesteps == (100, 300)


@pytest.mark.parametrize("make", [tiny_clip, lambda: probe.load_model(tiny_sd())])
@pytest.mark.parametrize(
    "option",
    [{"answer": "x"}, {"max_new_tokens": 3}, {"queries": "prompt"}, {"query_row": "own"}, {"offload": True}],
    ids=str,
)
def test_options_that_mean_nothing_for_a_model_are_refused(make, option):
    [name] = option
    with pytest.raises(InputError, match=f"^{name}=.* means nothing for .* answers nothing; leave it out"):
        probe.run(make(), picture(), TEXT, **option)


def test_options_of_one_kind_are_refused_by_the_others():
    for subject in (tiny_clip(), tiny_llava()):
        for option in ({"timesteps": [100]}, {"seed": 0}, {"draws": 2}):
            with pytest.raises(InputError, match="means nothing for"):
                probe.run(subject, picture(), TEXT, **option)
        with pytest.raises(InputError, match=r"timesteps=.*means nothing for"):
            score_examples(subject, EXAMPLES, timesteps=[100])
    with pytest.raises(InputError, match=r"verify='off' means nothing"):
        probe.run(tiny_clip(), picture(), TEXT, verify="off")
    for subject in (probe.load_model(tiny_sd()), tiny_llava()):
        with pytest.raises(InputError, match="quantity='attention' means nothing for"):
            score_examples(subject, EXAMPLES, quantity="attention")
    with pytest.raises(InputError, match=r"prompt='What is this\?' means nothing for"):
        score_examples(tiny_clip(), EXAMPLES, prompt="What is this?")
    with pytest.raises(InputError, match="quantity must be 'contribution' or 'attention', found 'relevance'"):
        score_examples(tiny_clip(), EXAMPLES, quantity="relevance")


def test_clip_is_scored_by_the_contributions_of_each_phrase():
    subject = tiny_clip()
    scores = score_examples(subject, EXAMPLES, metric="auroc")
    records = [
        probe.contributions(subject, one.image, [phrase.text for phrase in one.phrases], text=TEXT) for one in EXAMPLES
    ]
    assert (scores.quantity, scores.phrases, scores.reading_name) == ("contribution", 6, "contribution minus mean")
    expected = by_hand(records, metric="auroc")
    np.testing.assert_allclose(scores.to_frame().value, expected.value, atol=1e-6)
    assert score_examples(subject, EXAMPLES, metric="auroc", reading="attention").reading_name == "contribution"


def test_a_phrase_inside_another_keeps_its_own_map():
    subject = tiny_clip()
    nested = [example(seed, spans=((0, 12), (2, 12))) for seed in range(2)]
    scores = score_examples(subject, nested, metric="auroc", reading="attention").to_frame()
    records = [probe.contributions(subject, one.image, ["a red circle", "red circle"]) for one in nested]
    masks = [[((0, 12), one.phrases[0].mask), ((14, 24), one.phrases[1].mask)] for one in nested]
    expected = score_heads(records, masks, metric="auroc", reading="attention").to_frame()
    np.testing.assert_allclose(scores.value, expected.value, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_the_row_of_the_class_token_is_one_map_for_every_phrase(make):
    subject = make()
    scores = score_examples(subject, EXAMPLES, metric="auroc", quantity="attention")
    assert (scores.settings.reading, scores.quantity, scores.phrases) == ("attention", "attention", 6)
    frame = scores.to_frame().set_index("name").value
    # Another phrase's map is this phrase's map.
    assert frame["other_phrase"] == frame["mean_map"]
    assert np.isnan(frame["minus_mean"])
    assert scores.to_frame().query("kind == 'layer'").value.notna().all()
    assert not scores.left_out
    profile = profile_examples(subject, EXAMPLES, metric="auroc", quantity="attention").to_frame()
    assert profile.query("kind == 'up to layer'").value.iloc[-1] == pytest.approx(frame["mean_map"])
    with pytest.raises(InputError, match="no mean over tokens to subtract; score it with reading='attention'"):
        score_examples(subject, EXAMPLES, quantity="attention", reading="minus mean")
    with pytest.raises(InputError, match="no mean over tokens to subtract"):
        profile_examples(subject, EXAMPLES, quantity="attention", reading="minus mean")


def test_a_pipeline_is_scored_with_the_caption_as_its_prompt():
    subject = probe.load_model(tiny_sd())
    scores = score_examples(subject, EXAMPLES, metric="auroc", seed=3)
    records = [noise_and_record(subject, one.image, one.text, timesteps=(100,), seed=3).record for one in EXAMPLES]
    np.testing.assert_allclose(scores.to_frame().value, by_hand(records, metric="auroc").value, atol=1e-6)
    assert scores.timesteps == (100,)
    assert "timestep" not in set(scores.to_frame().kind)
    again = score_examples(subject, EXAMPLES, metric="auroc", seed=3)
    assert (again.to_frame().value == scores.to_frame().value).all()


def test_each_timestep_has_rows_of_its_own():
    subject = probe.load_model(tiny_sd())
    both = score_examples(subject, EXAMPLES, metric="auroc", timesteps=[100, 700]).to_frame()
    profile = profile_examples(subject, EXAMPLES, metric="auroc", timesteps=[100, 700], over="timestep").to_frame()
    assert profile.number.tolist() == [100, 700]
    for step in (100, 700):
        alone = score_examples(subject, EXAMPLES, metric="auroc", timesteps=[step]).to_frame()
        heads = both.query("kind == 'head at timestep' and timestep == @step").value
        np.testing.assert_allclose(heads, alone.query("kind == 'head'").value, atol=1e-6)
        mean = alone.query("name == 'minus_mean' and kind == 'reading'").value.item()
        assert both.query("kind == 'timestep' and timestep == @step").value.item() == pytest.approx(mean, abs=1e-6)
        assert profile.query("number == @step").value.item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(("make", "over"), [(tiny_clip, "timestep"), (tiny_llava, "timestep"), (tiny_clip, "token")])
def test_a_profile_is_refused_over_what_a_model_does_not_have(make, over):
    with pytest.raises(InputError, match=f"has no profile over {over}s: an? .*; take it over layers"):
        profile_examples(make(), EXAMPLES, over=over)


def test_scores_of_an_image_encoder_take_no_check_that_is_not_made():
    with pytest.raises(InputError, match="verify='off' means nothing"):
        score_examples(tiny_clip(), EXAMPLES, metric="auroc", verify="off")


def test_one_timestep_may_be_given_as_a_number():
    subject = probe.load_model(tiny_sd())
    one, listed = (score_examples(subject, EXAMPLES, metric="auroc", timesteps=steps) for steps in (100, (100,)))
    pd.testing.assert_frame_equal(one.to_frame(), listed.to_frame())
