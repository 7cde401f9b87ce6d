"""What is recorded of a diffusion transformer is what it computed: against a plain softmax of what its attention was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.capture.denoising import draw_noise, noise_and_record
from probe.files import load, save
from tests.tiny import picture
from tests.tiny_diffusion import LENGTH, heard
from tests.tiny_transformers import PIPELINES, T5_LENGTH, generate, plain_maps, tiny_flux, tiny_pixart, tiny_sd3

ALLOWED = {torch.float32: 1e-6, torch.float64: 1e-12}
PATCHES = 16  # 4 x 4 of them
CLIP = ["<|startoftext|>", "a", "red", "circle", "<|endoftext|>", "[padding]"]
T5 = ["a", "red", "circle", "</s>", "[padding]"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def words_of(name):
    """Tokens of "a red circle", and where the keys of each of them are among the words."""
    clip = [[0], [1], [2], [3], [4], list(range(5, LENGTH))]
    t5 = [[0], [1], [2], [3], list(range(4, T5_LENGTH))]
    if name.startswith("sd3"):
        late = [[LENGTH + one for one in places] for places in t5]
        if "without" in name:
            return [*CLIP, "[padding]"], [*clip, list(range(LENGTH, LENGTH + T5_LENGTH))]
        return CLIP + T5, clip + late
    return T5, t5


def expected(name, place, maps):
    """(head, token, patch) of one layer by hand, from its (head, query, key) weights."""
    tokens, places = words_of(name)
    count = sum(len(one) for one in places)
    if name.startswith("pixart"):
        if place == "self-attention":
            return maps[:, [0, 6]]
        return torch.stack([maps[:, :, one].sum(-1) for one in places], 1)
    words, image = (range(count), range(count, count + PATCHES))
    if name.startswith("sd3"):
        words, image = range(PATCHES, PATCHES + count), range(PATCHES)
    patches = maps[:, list(image)]
    if place == "image to text":
        each = [patches[:, :, [words[i] for i in one]].sum(-1) for one in places]
        return torch.stack([*each, patches[:, :, list(image)].sum(-1)], 1)
    if place == "text to image":
        asked = [words[one[0]] for one, token in zip(places, tokens, strict=True) if token != "[padding]"]
        return maps[:, asked][..., list(image)]
    return patches[:, [0, 6]][..., list(image)]


def places(name):
    if name.startswith("pixart"):
        return ("cross-attention", "self-attention")
    return ("image to text", "text to image", "image to image")


CASES = [(name, place) for name in PIPELINES for place in places(name)]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_record_says_what_looks_at_what(name):
    pipeline = PIPELINES[name]()
    tokens, _ = words_of(name)
    kinds = {
        "cross-attention": ("text token", "tokens"),
        "self-attention": ("patch", "patches"),
        "image to text": ("patch reading text", "sequence"),
        "text to image": ("text reading patches", "sequence"),
        "image to image": ("patch", "sequence"),
    }
    for place in places(name):
        with probe.record(pipeline, place=place) as recorder:
            generate(pipeline)
        record = recorder.result()
        assert (record.query_kind, record.softmax_over) == kinds[place]
        if place == "cross-attention":
            assert list(record.tokens) == tokens
        elif place == "image to text":
            assert list(record.tokens) == [*tokens, "[image]"]
        elif place == "text to image":
            assert list(record.tokens) == [one for one in tokens if one != "[padding]"]
        if place in ("cross-attention", "image to text", "text to image"):
            assert set(record["red circle"].tokens) == {"red", "circle"}
            layer = record.layers[0]
            words = [i for i, one in enumerate(record.tokens) if one in ("a", "red", "circle")]
            assert torch.allclose(layer.token_mean, layer.values[:, :, words].mean(2))
    with probe.record(pipeline) as recorder:
        generate(pipeline)
    assert recorder.result().query_kind == kinds[places(name)[0]][0]


def test_the_layers_of_flux_are_those_of_both_kinds_of_blocks():
    pipeline = tiny_flux()
    with probe.record(pipeline) as recorder:
        generate(pipeline)
    names = [
        f"{kind}.{number}.attn" for kind in ("transformer_blocks", "single_transformer_blocks") for number in (0, 1)
    ]
    assert [one.name for one in recorder.result().layers] == names
    with probe.record(pipeline, layers="single_transformer_blocks", heads=[1]) as recorder:
        generate(pipeline)
    assert [one.name for one in recorder.result().layers] == names[2:]


@pytest.mark.parametrize("name", ["pixart", "sd3.5", "flux"])
@pytest.mark.parametrize("guidance", ["conditional", "unconditional"])
def test_the_half_that_is_read_is_the_one_asked_for(name, guidance):
    pipeline = PIPELINES[name](dtype=torch.float64, seed=2)
    given = {"negative_prompt": "two blue squares"} | ({"true_cfg_scale": 4.0} if name == "flux" else {})
    plain = generate(pipeline, **given)
    with heard(pipeline.transformer) as calls, probe.record(pipeline, guidance=guidance, timesteps="all") as recorder:
        assert (generate(pipeline, **given) == plain).all()
    record = recorder.result()
    assert record.text == ("a red circle" if guidance == "conditional" else "two blue squares")
    maps = plain_maps(pipeline, calls)
    if name == "flux":  # a pass for each half, the conditional one first
        assert len(maps) == 4
        maps = maps[0::2] if guidance == "conditional" else maps[1::2]
    row = 0 if name == "flux" or guidance == "unconditional" else 1
    number = record.tokens.index("red" if guidance == "conditional" else "blue")
    column = {"pixart": number, "sd3.5": PATCHES + number, "flux": number}[name]
    for step, one in enumerate(maps):
        for layer in record.layers:
            image = {"pixart": slice(None), "sd3.5": slice(0, PATCHES), "flux": slice(T5_LENGTH, None)}[name]
            by_hand = one[layer.name][row][:, image, column]
            assert (layer.values[step][:, number].flatten(1) - by_hand).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["pixart", "sd3", "flux"])
def test_grids_lie_in_pictures_that_are_not_square(name):
    pipeline = PIPELINES[name](size=12 if name == "sd3" else 8)
    with probe.record(pipeline) as recorder:
        images = generate(pipeline, height=32, width=48)
    record = recorder.result(image=(images[0] * 255).astype("uint8"))
    grid = record.layers[0].grid
    assert (record.image_size, grid.shape, grid.patch_size) == ((32, 48), (4, 6), 8)
    assert grid.col_edges == tuple(range(0, 49, 8))


@torch.no_grad()
def _plain_latents(pipeline, image, timestep, noise):
    squashed = image.resize((32, 32), resample=1)  # Lanczos, the default of the pipeline's own processor
    pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None] / 255 * 2 - 1
    latents = pipeline.vae.encode(pixels.to(pipeline.vae.dtype)).latent_dist.mean
    config = pipeline.vae.config
    latents = (latents - (config.shift_factor or 0)) * config.scaling_factor
    if hasattr(pipeline.scheduler, "alphas_cumprod"):
        share = pipeline.scheduler.alphas_cumprod[timestep].to(latents)
        return share.sqrt() * latents + (1 - share).sqrt() * noise.to(latents)
    return (1 - timestep / 1000) * latents + timestep / 1000 * noise.to(latents)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_real_picture_is_noised_as_in_training(name):
    pipeline = PIPELINES[name](dtype=torch.float64, seed=5)
    image = picture(50, 71, seed=1)
    with heard(pipeline.transformer) as calls:
        found = noise_and_record(
            probe.load_model(pipeline), image, "A Red circle", timesteps=(100, 900), seed=3, verify="all"
        )
    noise = draw_noise((1, 4, 8, 8), seed=3, draw=0)
    for (args, kwargs), timestep in zip(calls, (100, 900), strict=True):
        latents = _plain_latents(pipeline, image, timestep, noise)
        given = args[0] if args else kwargs["hidden_states"]
        scale = 1.0
        if name.startswith("flux"):
            scale = 1000.0
            # Each patch holds its two by two latents, channel by channel.
            latents = latents.reshape(1, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 16)
        assert (given - latents).abs().max() <= 1e-6
        assert float(kwargs["timestep"]) * scale == pytest.approx(timestep)
    record = found.record
    assert (record.text, record["red circle"].text) == ("A Red circle", "A Red circle")
    assert record.image_size == (50, 71)
    assert record.layers[0].grid.row_edges == pytest.approx([50 / 4 * i for i in range(5)])
    assert record.layers[0].timesteps == (100, 900)
    assert (record.source.seed, record.source.preparation) == (3, "squash to 32 x 32")
    assert record.source.family == {"pi": "pixart", "sd": "stable_diffusion_3", "fl": "flux"}[name[:2]]


def test_the_shift_of_a_sampler_does_not_move_what_a_timestep_means():
    from diffusers import FlowMatchEulerDiscreteScheduler

    values = []
    for scheduler in (
        FlowMatchEulerDiscreteScheduler(shift=1.0),
        FlowMatchEulerDiscreteScheduler(shift=7.0),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ):
        pipeline = tiny_sd3()
        pipeline.scheduler = scheduler
        found = noise_and_record(probe.load_model(pipeline), picture(), "a red circle", timesteps=300)
        values.append(found.record.layers[0].values)
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_a_record_of_joint_attention_is_the_same_after_a_file(tmp_path):
    pipeline = tiny_sd3()
    with probe.record(pipeline, place="text to image", timesteps="all") as recorder:
        generate(pipeline)
    record = recorder.result()
    again = load(save(record, tmp_path / "record.safetensors"))
    assert (again.query_kind, again.softmax_over) == ("text reading patches", "sequence")
    for one, saved in zip(record.layers, again.layers, strict=True):
        assert torch.equal(one.values, saved.values)
        assert torch.equal(one.rest, saved.rest)


def test_masked_words_of_pixart_get_nothing():
    pipeline = tiny_pixart()
    with probe.record(pipeline) as recorder:
        generate(pipeline)
    record = recorder.result()
    assert record.tokens[-1] == "[padding]"
    assert all(layer.values[:, :, -1].abs().max() == 0 for layer in record.layers)


@pytest.mark.parametrize("name", ["pixart", "sd3.5", "flux"])
def test_check_passes(name):
    report = probe.check(probe.load_model(PIPELINES[name]()))
    assert report.passed, report
    assert report.numbers["parity"] <= 1e-6
    assert report.numbers["state_differences"] == report.numbers["geometry_wrong_cells"] == 0
