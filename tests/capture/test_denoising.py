"""Real pictures seen by a diffusion model: encoded, noised and denoised as a plain writing does, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.capture.conditioning import PADDING
from probe.capture.denoising import draw_noise, noise_and_record
from probe.errors import InputError
from probe.families import family_of
from probe.models import Subject
from tests.capture.test_diffusion import words_of
from tests.names import shown
from tests.tiny import picture, tiny_clip
from tests.tiny_diffusion import LENGTH, eager_maps, heard, tiny_sd, tiny_sdxl

TEXT = "a red circle"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _subject(pipeline):
    return Subject(pipeline, pipeline.image_processor, family_of(pipeline), "tiny")


def _values(record):
    return [layer.values for layer in record.layers]


@torch.no_grad()
def _plain_inputs(pipeline, image, timestep, noise):
    """What the U-Net is to be given, step by step with the pipeline's parts."""
    size = (32, 32)
    squashed = image.resize(size, resample=1)  # Lanczos, the default of the pipeline's own processor
    pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None] / 255 * 2 - 1
    posterior = pipeline.vae.encode(pixels.to(pipeline.vae.dtype)).latent_dist
    latents = posterior.mean * pipeline.vae.config.scaling_factor
    share = pipeline.scheduler.alphas_cumprod[timestep].to(latents)
    return share.sqrt() * latents + (1 - share).sqrt() * noise.to(latents)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_the_unet_is_given_what_a_plain_writing_gives_it(make):
    pipeline = make(dtype=torch.float64, seed=5)
    image = picture(50, 71, seed=1)
    with heard(pipeline.unet) as calls:
        found = noise_and_record(_subject(pipeline), image, TEXT, timesteps=(100, 900), seed=3, verify="all")
    record, noise = found.record, draw_noise((1, 4, 8, 8), seed=3, draw=0)
    assert found.variance is None
    for (args, kwargs), timestep in zip(calls, (100, 900), strict=True):
        assert (args[0] - _plain_inputs(pipeline, image, timestep, noise)).abs().max() <= 1e-6  # tables of float32
        assert int(args[1]) == timestep
        states = pipeline.encode_prompt(TEXT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        assert torch.equal(kwargs["encoder_hidden_states"], states[0])
        if make is tiny_sdxl:
            assert torch.equal(kwargs["added_cond_kwargs"]["text_embeds"], states[2])
            assert kwargs["added_cond_kwargs"]["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]
    maps = eager_maps(pipeline, calls, crossed=True)
    for layer in record.layers:
        for step, one in enumerate(maps):
            expected = words_of(one[layer.name][0], len(record.tokens) - 1)
            assert (layer.values[step].flatten(2) - expected).abs().max() <= 1e-12
        assert layer.timesteps == (100, 900)
    assert (record.source.seed, record.source.preparation) == (3, "squash to 32 x 32")
    assert record.tokens[-1] == PADDING


def test_the_grid_lies_in_the_picture_as_it_was_given():
    record = noise_and_record(_subject(tiny_sd(size=(8, 6))), picture(50, 71), TEXT).record
    assert record.image_size == (50, 71)
    large = record.layers[0].grid
    assert large.shape == (8, 6)
    assert large.row_edges == pytest.approx([50 / 8 * i for i in range(9)])
    assert large.col_edges == pytest.approx([71 / 6 * i for i in range(7)])
    # Layers of three grids in one picture, each counted once.
    each = [layer.grid.upsample(layer.values[:, :, 1:4].mean((0, 1, 2))) for layer in record.layers]
    np.testing.assert_allclose(record[TEXT].heatmap(reading="attention"), np.mean(each, axis=0), atol=1e-6)


def test_the_same_seed_gives_the_same_maps_to_the_bit_and_another_does_not():
    subject, image = _subject(tiny_sd()), picture(seed=2)
    torch.manual_seed(0)
    first = noise_and_record(subject, image, TEXT, seed=7).record
    torch.manual_seed(1)
    torch.rand(5)
    again = noise_and_record(subject, image, TEXT, seed=7).record
    other = noise_and_record(subject, image, TEXT, seed=8).record
    assert all(torch.equal(one, two) for one, two in zip(_values(first), _values(again), strict=True))
    assert any((one - two).abs().max() > 1e-2 for one, two in zip(_values(first), _values(other), strict=True))


def test_a_timestep_is_seen_alike_alone_and_among_others():
    subject, image = _subject(tiny_sd()), picture(seed=2)
    both = noise_and_record(subject, image, TEXT, timesteps=(50, 300)).record
    alone = noise_and_record(subject, image, TEXT, timesteps=300).record
    mean = noise_and_record(subject, image, TEXT, timesteps=(50, 300), reduce="mean").record
    for one, two, three in zip(both.layers, alone.layers, mean.layers, strict=True):
        assert torch.equal(one.values[1:], two.values)
        assert (one.values.mean(0) - three.values[0]).abs().max() <= 1e-7
        assert three.timesteps == (-1,)
    assert mean.history == ("mean over 2 timesteps",)


def test_noise_depends_on_seed_and_draw_and_is_not_shared_by_neighbours():
    noises = {(seed, draw): draw_noise((1, 4, 8, 8), seed=seed, draw=draw) for seed in range(3) for draw in range(3)}
    assert all(torch.equal(one, draw_noise((1, 4, 8, 8), seed=s, draw=d)) for (s, d), one in noises.items())
    flat = torch.stack([one.flatten() for one in noises.values()])
    assert (torch.corrcoef(flat) - torch.eye(9)).abs().max() < 0.3
    assert abs(float(flat.mean())) < 0.1
    assert abs(float(flat.std()) - 1) < 0.1


def test_draws_are_averaged_and_their_variance_is_that_of_a_sample(monkeypatch):
    from probe.capture import denoising

    subject, image, kept = _subject(tiny_sd(dtype=torch.float64)), picture(seed=2), []
    real = denoising._one_draw

    def keep(*args, **options):
        kept.append(real(*args, **options))
        return kept[-1]

    monkeypatch.setattr(denoising, "_one_draw", keep)
    found = noise_and_record(subject, image, TEXT, timesteps=(100, 500), draws=5)
    assert len(kept) == 5
    assert found.variance is not None
    for number, (mean, variance) in enumerate(zip(found.record.layers, found.variance.layers, strict=True)):
        for part in ("values", "token_mean"):
            every = np.stack([getattr(one.layers[number], part).numpy() for one in kept])
            np.testing.assert_allclose(getattr(mean, part), every.mean(0), atol=1e-14)
            np.testing.assert_allclose(getattr(variance, part), every.var(0, ddof=1), atol=1e-14)
        assert variance.timesteps == (100, 500)
    assert found.record.history == ("mean over 5 draws of noise",)
    assert found.variance.history == ("variance over 5 draws of noise",)
    assert found.record.certificate.rows == sum(one.certificate.rows for one in kept)
    # The first draw is the one that is there without others.
    alone = noise_and_record(subject, image, TEXT, timesteps=(100, 500)).record
    assert all(torch.equal(one, two) for one, two in zip(_values(alone), _values(kept[0]), strict=True))


def test_self_attention_of_a_picture_is_read_from_its_patches():
    found = noise_and_record(
        _subject(tiny_sd()), picture(), TEXT, place="self-attention", patches=[(3, 4)], layers="up_blocks", heads=[0]
    )
    record = found.record
    assert (record.tokens, record.query_kind, len(record.layers)) == (("(3, 4)",), "patch", 4)
    assert all((layer.values.sum((-2, -1)) - 1).abs().max() <= 1e-5 for layer in record.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": (1000,)}, "timestep 1000 does not exist: there are 1000, numbered 0 to 999"),
        ({"timesteps": (-1,)}, "0 to 999; they are not negative"),
        ({"timesteps": ()}, "chooses none"),
        ({"timesteps": (5, 5)}, "more than once"),
        ({"timesteps": (0.5,)}, "not a whole number"),
        ({"seed": -1}, "seed must be a whole number of 0 or more"),
        ({"draws": 0}, "draws must be a whole number of 1 or more"),
        ({"reduce": "last"}, "reduce must be 'all' or 'mean'"),
        ({"layers": "up_blocks.9"}, "No block 'up_blocks.9'"),
        ({"heads": [7]}, "head 7 does not exist"),
        ({"text": "a " * LENGTH}, "shorten it"),
        ({"text": ""}, "holds no word"),
        ({"text": " \n "}, "holds no word"),
        ({"text": ["a red circle"]}, "must be a text, found a list"),
        ({"place": "self-attention", "patches": [(0, 8)]}, r"\(0, 8\) does not exist in latents of 8 rows and 8 cols"),
        ({"picture": picture(3, 40)}, r"3 x 40 pixels \(height x width\), less than the 4 x 4 of one latent"),
    ],
    ids=shown,
)
def test_bad_input_is_refused_before_anything_is_computed(options, message):
    pipeline, ran = tiny_sd(), []
    for one in (pipeline.unet, pipeline.text_encoder, pipeline.vae, pipeline.vae.encoder):
        one.register_forward_pre_hook(lambda module, args: ran.append(module))
    given = {"picture": picture(), "text": TEXT} | options
    with pytest.raises(InputError, match=message):
        noise_and_record(_subject(pipeline), given.pop("picture"), given.pop("text"), **given)
    assert not ran


@pytest.mark.parametrize("make", [tiny_clip, tiny_sd])
def test_only_the_subject_of_a_pipeline_can_be_denoised(make):
    with pytest.raises(InputError, match="needs the Subject of a diffusion pipeline"):
        noise_and_record(make(), picture(), TEXT)


def test_a_long_prompt_is_said_once(capfd):
    with pytest.raises(InputError, match="shorten it"):
        noise_and_record(_subject(tiny_sd()), picture(), "a " * LENGTH)
    assert "longer than" not in capfd.readouterr().err


def test_the_mean_over_draws_keeps_the_seed(tmp_path):
    found = noise_and_record(_subject(tiny_sd()), picture(), TEXT, seed=7, draws=2)
    for record in (found.record, found.variance):
        assert probe.load(probe.save(record, tmp_path / "record.safetensors")).source.seed == 7
    assert "\n  timestep: 100" in repr(found.record)
