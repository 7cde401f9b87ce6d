"""The lab's Stable Diffusion: real parts in diffusers' layout, trained to tell noise from scenes given their captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from probe.analysis.stats import PoissonBootstrap
from probe.errors import InputError, ModelError
from probe.lab import trainers
from probe.lab.autoencoding import canvases, train_autoencoder
from probe.lab.clip import build_clip, make_clip_processor, save_clip
from probe.lab.denoising import NoisyLatents, noise_weights, noisy_batch, text_parts, train_diffusion
from probe.lab.diffusion import (
    DiffusionSettings,
    build_autoencoder,
    build_unet,
    make_pipeline,
    make_scheduler,
    save_pipeline,
)
from probe.lab.scenes import Scene, SceneSettings, scene, scenes
from probe.lab.storage import folder
from tests.lab.test_clip import TINY as TINY_CLIP

TINY = DiffusionSettings(image=32, pixel_widths=(8, 8, 8), widths=(8, 16), heads=2, groups=2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("clip")
    processor = make_clip_processor(TINY_CLIP)
    save_clip(home, build_clip(processor, settings=TINY_CLIP), processor)
    return home


@pytest.fixture(scope="module")
def pipeline(clip: Path) -> Any:
    text_encoder, tokenizer = text_parts(clip)
    unet = build_unet(text_width=text_encoder.config.hidden_size, settings=TINY)
    return make_pipeline(build_autoencoder(settings=TINY).eval(), unet.eval(), text_encoder, tokenizer)


def drawn(count: int, *, start: int = 0) -> list[Scene]:
    return list(scenes(count, start=start, split="train", settings=SceneSettings(size=32)))


def test_every_resolution_of_the_unet_attends_to_text_on_the_way_down_and_up() -> None:
    unet = build_unet(text_width=96)
    sides: dict[str, int] = {}
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            assert module.heads == 4
            module.register_forward_pre_hook(
                lambda module, given, name=name: sides.__setitem__(name, round(given[0].shape[1] ** 0.5))
            )
    with torch.no_grad():
        unet(torch.zeros(1, 4, 16, 16), 0, torch.zeros(1, 40, 96))
    grids = {name.split(".attentions")[0]: side for name, side in sides.items()}
    assert grids == {
        "down_blocks.0": 16,
        "down_blocks.1": 8,
        "down_blocks.2": 4,
        "mid_block": 4,
        "up_blocks.0": 4,
        "up_blocks.1": 8,
        "up_blocks.2": 16,
    }
    assert sum(value.numel() for value in unet.parameters()) < 2_200_000


def test_one_latent_stands_for_four_pixels() -> None:
    autoencoder = build_autoencoder()
    with torch.no_grad():
        latents = autoencoder.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
    assert latents.shape == (1, 4, 64 // DiffusionSettings().factor, 16)
    again, other = build_autoencoder(), build_autoencoder(seed=1)
    first = autoencoder.encoder.conv_in.weight
    assert torch.equal(first, again.encoder.conv_in.weight)
    assert not torch.equal(first, other.encoder.conv_in.weight)


def test_noise_is_that_of_stable_diffusion() -> None:
    steps = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    scheduler = make_scheduler()
    assert scheduler.alphas_cumprod.numpy() == pytest.approx(np.cumprod(1.0 - steps), rel=1e-4)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[:2].tolist() == [981, 961]  # "leading", one step off
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    kept = np.cumprod(1.0 - steps)[[10, 900]]
    expected = [5.0 / (kept[0] / (1.0 - kept[0])), 1.0]
    assert noise_weights(scheduler, torch.tensor([10, 900])).tolist() == pytest.approx(expected, rel=1e-3)


def test_pictures_run_from_minus_one_to_one() -> None:
    example = scene(0, settings=SceneSettings(size=32))
    expected = np.asarray(example.image).astype(float)[5, 7] / 255 * 2 - 1
    assert canvases([example])[0, :, 5, 7].numpy() == pytest.approx(expected, abs=1e-6)


def test_a_batch_depends_on_the_seed_and_the_scenes_alone(pipeline: Any) -> None:
    collate = NoisyLatents(pipeline, seed=3)
    batch, moved, other = collate(drawn(3)), collate(drawn(3, start=1)), NoisyLatents(pipeline, seed=4)(drawn(3))
    for name in ("timestep", "noise"):
        assert torch.equal(batch[name][1:], moved[name][:2]), name
        assert not torch.equal(batch[name], other[name]), name
    # Latents and noise are mixed as the timestep says.
    with torch.no_grad():
        clean = pipeline.vae.encode(canvases(drawn(3))).latent_dist.mean * pipeline.vae.config.scaling_factor
    kept = pipeline.scheduler.alphas_cumprod[batch["timestep"]][:, None, None, None]
    torch.testing.assert_close(batch["sample"], kept**0.5 * clean + (1 - kept) ** 0.5 * batch["noise"])
    assert batch["encoder_hidden_states"].shape == (3, 40, 16)


def test_one_caption_in_ten_is_left_out(pipeline: Any) -> None:
    collate = NoisyLatents(pipeline, seed=0)
    empty = pipeline.tokenizer([""], padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        blank = pipeline.text_encoder(empty).last_hidden_state[0]
    one = drawn(1)[0]
    many = [Scene(index, one.image, one.caption, one.objects, one.phrases) for index in range(400)]
    left = [torch.allclose(states, blank, atol=1e-6) for states in collate(many)["encoder_hidden_states"]]
    assert 20 <= sum(left) <= 62  # 40 expected; three and a half standard deviations either way


def test_the_text_encoder_is_that_of_the_clip(clip: Path) -> None:
    from transformers import CLIPModel

    text_encoder, tokenizer = text_parts(clip)
    whole = CLIPModel.from_pretrained(clip)
    words = tokenizer(["a small red star"], return_tensors="pt")
    with torch.no_grad():
        found = text_encoder(words["input_ids"]).pooler_output
        expected = whole.text_model(**words).pooler_output
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not any(value.requires_grad for value in text_encoder.parameters())


def state(out: Path) -> dict[str, torch.Tensor]:
    """The trained weights in a folder."""
    unet = UNet2DConditionModel.from_pretrained(out / "unet").state_dict()
    vae = AutoencoderKL.from_pretrained(out / "vae").state_dict()
    return {f"unet.{name}": value for name, value in unet.items()} | {f"vae.{name}": vae[name] for name in vae}


def train(out: Path, clip: Path, **options: Any) -> Path:
    short = {"steps": 6, "batch_size": 4, "save_every": 2, "settings": TINY, "autoencoder_steps": 5}
    return train_diffusion(out, clip=clip, **short | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    return train(tmp_path_factory.mktemp("trained"), clip)


def test_training_leaves_a_pipeline_in_the_layout_of_diffusers(trained: Path, clip: Path) -> None:
    loaded = StableDiffusionPipeline.from_pretrained(trained)
    assert {part.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder)} == {torch.float32}
    assert isinstance(loaded.scheduler, DDIMScheduler)
    texts = text_parts(clip)[0].state_dict()
    assert all(torch.equal(value, texts[name]) for name, value in loaded.text_encoder.state_dict().items())
    start = build_unet(text_width=16, settings=TINY).state_dict()
    moved = loaded.unet.state_dict()["conv_out.weight"]
    assert not torch.equal(moved, start["conv_out.weight"].half().float())
    # Nobody else's folders are written down, and everybody can read what is.
    for path in trained.rglob("*.json"):
        assert str(trained.parent) not in path.read_text(), path
    assert {oct(path.stat().st_mode)[-3:] for path in trained.rglob("*.safetensors")} == {"644"}
    assert (trained / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size < 2.2 * sum(
        value.numel() for value in start.values()
    ) + 60_000
    assert [row["step"] for row in trainers.read_curve(trained / "loss.csv")] == [5]
    assert [row["step"] for row in trainers.read_curve(trained / "autoencoder" / "loss.csv")] == [5]


def test_latents_are_scaled_to_a_spread_of_one(tmp_path: Path) -> None:
    autoencoder = AutoencoderKL.from_pretrained(train_autoencoder(tmp_path, steps=3, batch_size=2, settings=TINY))
    with torch.no_grad():
        latents = autoencoder.encode(canvases(drawn(64))).latent_dist.mean * autoencoder.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1.0, abs=0.15)  # other scenes than those it was measured on


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    trained: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "SPACED", (0, 3, 5))
    steps: list[int] = []

    def killed(step: int, pipeline: Any, *_: Any) -> None:
        assert not pipeline.unet.training
        steps.append(step)
        if step == 5:
            raise KeyboardInterrupt

    def killed_early(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(tmp_path / "autoencoder", steps=5, save_every=2, settings=TINY, on_step=killed_early)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, clip, on_snapshot=killed)
    train(tmp_path, clip, on_snapshot=lambda step, *_: steps.append(step))
    assert steps == [0, 3, 5, 5, 6]
    expected = state(trained)
    assert all(torch.equal(value, expected[name]) for name, value in state(tmp_path).items())
    with pytest.raises(InputError, match=r"holds a run with steps=6\. Give another folder"):
        train(tmp_path, clip, steps=7)


def test_another_seed_gives_other_weights_and_no_text_encoder_is_refused(
    trained: Path, clip: Path, tmp_path: Path
) -> None:
    other, expected = state(train(tmp_path / "other", clip, seed=1)), state(trained)
    for part in ("unet.conv_out.weight", "vae.decoder.conv_out.weight"):
        assert not torch.equal(other[part], expected[part])
    with pytest.raises(ModelError, match=r"There is no CLIP in .*model\.safetensors is missing"):
        train(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match="must be 1 or more"):
        train(tmp_path / "none", clip, steps=0)
    with pytest.raises(ModelError, match="no lab model 'lab/clap'"):
        train(tmp_path / "none", "lab/clap")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_saving_leaves_the_pipeline_in_full_precision(pipeline: Any, tmp_path: Path) -> None:
    before = pipeline.unet.conv_in.weight.clone()
    save_pipeline(tmp_path, pipeline)
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32
    assert torch.equal(pipeline.unet.conv_in.weight, before)


@pytest.fixture(scope="module")
def shipped() -> Any:
    found = StableDiffusionPipeline.from_pretrained(folder("lab/diffusion"))
    found.set_progress_bar_config(disable=True)
    return found


def test_the_shipped_pipeline_is_small_and_brings_pictures_back(shipped: Any) -> None:
    home = folder("lab/diffusion")
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) <= 8_000_000
    pictures = canvases(list(scenes(16, settings=SceneSettings(size=64))))
    with torch.no_grad():
        back = shipped.vae.decode(shipped.vae.encode(pictures).latent_dist.mean).sample
    assert (back - pictures).square().mean() < 0.1 * pictures.var()
    rows, plan = trainers.read_curve(home / "loss.csv"), json.loads((home / "training.json").read_text())
    assert rows[-1]["step"] == plan["steps"]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_its_text_encoder_is_that_of_lab_clip(shipped: Any) -> None:
    expected = text_parts(folder("lab/clip"))[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in shipped.text_encoder.state_dict().items())


def test_the_caption_helps_to_find_the_noise(shipped: Any) -> None:
    examples = list(scenes(48, settings=SceneSettings(size=64)))
    captions = [example.caption for example in examples]
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((48, 4, 16, 16), dtype=np.float32))
    timesteps = torch.arange(48) * 10 + 400
    errors = []
    for said in (captions, captions[1:] + captions[:1]):
        batch = noisy_batch(shipped, examples, said, timesteps, noise)
        with torch.no_grad():
            found = shipped.unet(batch["sample"], timesteps, batch["encoder_hidden_states"]).sample
        errors.append((found - noise).square().mean(dim=(1, 2, 3)).numpy())
    bootstrap = PoissonBootstrap(cells=1)
    for index, (own, other) in enumerate(zip(*errors, strict=True)):
        bootstrap.add(index, np.array([float(other - own)]), np.ones(1))
    assert bootstrap.intervals().low[0] > 0


def test_what_it_draws_follows_from_the_seed(shipped: Any) -> None:
    def draw(seed: int, text: str) -> np.ndarray[Any, Any]:
        generator = torch.Generator().manual_seed(seed)
        picture = shipped(text, num_inference_steps=10, generator=generator, output_type="np").images[0]
        assert picture.shape == (64, 64, 3)
        return np.asarray(picture)

    first = draw(0, "a large red circle and a large green square")
    assert np.array_equal(first, draw(0, "a large red circle and a large green square"))
    assert not np.array_equal(first, draw(1, "a large red circle and a large green square"))
    assert np.abs(first - draw(0, "a large blue cross and a large yellow star")).mean() > 0.02
