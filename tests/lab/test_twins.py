"""The twins: trained on cached features of frozen towers, and afterwards models that take pictures like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import probe
from probe.difflmm import DiffLMMForConditionalGeneration
from probe.errors import InputError, ModelError
from probe.lab import features, trainers, twins
from probe.lab.arms import ARMS, Arm, TwinSettings, build_twin
from probe.lab.captions import Collator
from probe.lab.clip import ClipSettings, build_clip, make_clip_processor, save_clip
from probe.lab.denoising import text_parts
from probe.lab.diffusion import DiffusionSettings, build_autoencoder, build_unet, make_pipeline, save_pipeline
from probe.lab.features import CachedScenes, cache_features, encode
from probe.lab.scenes import SceneSettings, scenes
from probe.lab.storage import WEIGHTS_FILE
from probe.lab.towers import FROZEN, Towers
from probe.lab.twins import FeatureBatch, FromFeatures, TwinRun, train_twin, train_twins

CLIP = ClipSettings(
    image=32, vision_width=16, vision_inner=32, vision_layers=2, vision_heads=2, text_width=16, text_inner=32, text_heads=2,
    shared_width=16,
)  # fmt: skip
# Latents 8, 4 and 2 cells wide: the first block on the way up ends on 4 x 4 features, as many as CLIP has patches.
DIFFUSION = DiffusionSettings(image=32, pixel_widths=(8, 8, 8), widths=(8, 8, 16), heads=2, groups=2)
SETTINGS = TwinSettings(width=16, inner=32, layers=2, heads=2, diffusion_features=8, draws=2)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    """Random towers in folders of their own; 4 x 4 patches of 8 pixels, and as many cells of features."""
    home = tmp_path_factory.mktemp("towers")
    processor = make_clip_processor(CLIP)
    save_clip(home / "clip", build_clip(processor, settings=CLIP), processor)
    text_encoder, tokenizer = text_parts(home / "clip")
    unet = build_unet(text_width=16, settings=DIFFUSION)
    save_pipeline(
        home / "sd", make_pipeline(build_autoencoder(settings=DIFFUSION).eval(), unet, text_encoder, tokenizer)
    )
    return Towers(clip=str(home / "clip"), diffusion=str(home / "sd"))


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 8)


def drawn(count: int, *, start: int = 0, seed: int = 0) -> list[Any]:
    return list(scenes(count, start=start, split="train", seed=seed, settings=SceneSettings(size=32)))


def train(out: Path, towers: Towers, arm: Arm = "difflmm", **options: Any) -> Path:
    given = {"steps": 6, "batch_size": 4, "save_every": 2, "settings": SETTINGS, "features": out.parent / "features"}
    return train_twin(out, arm, towers=towers, **given | options)


def weights(home: Path) -> dict[str, torch.Tensor]:
    return load_file(home / WEIGHTS_FILE)


@pytest.fixture(scope="module")
def trained(towers: Towers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one twin of each arm, and the features that they were trained on."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SHARD", 8)
        for arm in ARMS:
            train(home / arm, towers, arm, seed=3)
    return home


def test_arms_share_the_language_model_to_the_last_bit_and_the_seed_decides(towers: Towers) -> None:
    built = {arm: build_twin(arm, towers, settings=SETTINGS, seed=5)[0] for arm in ARMS}
    first = built["llava-clip"].model.language_model.state_dict()
    for arm in ("difflmm", "diffusion", "clip"):
        other = built[arm].model.language_model.state_dict()
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
        head = built[arm].lm_head.weight
        assert head is built[arm].model.language_model.embed_tokens.weight
    seed = build_twin("llava-clip", towers, settings=SETTINGS, seed=6)[0].model.language_model.state_dict()
    assert not torch.equal(first["embed_tokens.weight"], seed["embed_tokens.weight"])
    with pytest.raises(InputError, match="no arm 'vision'"):
        build_twin("vision", towers)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="width=10 is not a multiple of heads=8"):
        TwinSettings(width=10)


def test_arms_see_the_same_pixels(towers: Towers) -> None:
    image = next(scenes(1)).image
    text = "USER: <image>\nDescribe the image.\nASSISTANT:\n"
    plain, both = (build_twin(arm, towers, settings=SETTINGS)[1] for arm in ("llava-clip", "difflmm"))
    first, second = (one(text=text, images=image, return_tensors="pt") for one in (plain, both))
    assert torch.equal(first["input_ids"], second["input_ids"])
    # One is resized in whole levels and the other is not: half a level of 255, over the smallest spread.
    torch.testing.assert_close(first["pixel_values"], second["pixel_values"], rtol=0, atol=1.01 / 255 / 0.26)


def test_features_are_those_of_the_models_own_towers_at_the_scenes_draw(towers: Towers) -> None:
    model, processor = build_twin("difflmm", towers, settings=SETTINGS, seed=2)
    examples = drawn(5, start=3)
    patches, found = encode(model, processor, examples, draws=2, batch=2)
    assert model.config.diffusion_config.first_draw == 0
    assert patches.shape == (5, 16, 16)
    assert found.shape == (5, 16, 4, 4)
    for place, example in enumerate(examples):
        model.config.diffusion_config.first_draw = example.index % 2
        batch = processor(text="<image>", images=example.image, return_tensors="pt")
        with torch.no_grad():
            seen = model.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
            own = model.model.diffusion_tower(batch["diffusion_pixel_values"], seen)
        torch.testing.assert_close(patches[place], seen[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(found[place], own[0], rtol=0, atol=1e-4)
    model.config.diffusion_config.first_draw = 0
    other = encode(model, processor, drawn(1, start=4), draws=5)[1]  # draw 4 and not 0
    assert (other[0] - found[1]).abs().max() > 1e-3


def test_the_cache_goes_on_where_it_was_and_refuses_others(towers: Towers, tmp_path: Path) -> None:
    model, processor = build_twin("difflmm", towers, settings=SETTINGS)
    options: dict[str, Any] = {"seed": 0, "draws": 2, "frozen": {"clip": "x"}}
    told: list[tuple[int, int]] = []
    cache_features(tmp_path, model, processor, count=9, on_scenes=lambda *one: told.append(one), **options)
    assert told == [(8, 16), (16, 16)]
    files = sorted(tmp_path.glob("*.safetensors"))
    before = [one.read_bytes() for one in files]
    kept = files[0].stat().st_mtime_ns
    files[1].write_bytes(before[1][:-50])  # cut short
    with pytest.raises(InputError, match="is cut short"):
        list(CachedScenes(tmp_path, start=8))
    cache_features(tmp_path, model, processor, count=9, **options)
    assert [one.read_bytes() for one in files] == before
    assert files[0].stat().st_mtime_ns == kept
    with pytest.raises(InputError, match="features of other towers or settings"):
        cache_features(tmp_path, model, processor, count=9, **options | {"draws": 3})
    read = list(CachedScenes(tmp_path, start=6))
    assert [one.index for one in read] == list(range(6, 16))
    expected = drawn(10, start=6)
    assert [one.caption for one in read] == [one.caption for one in expected]
    patches, found = encode(model, processor, expected, draws=2)
    # Half precision keeps eleven bits; batches of another size differ in the last of single precision.
    torch.testing.assert_close(torch.stack([one.patches for one in read]).float(), patches, rtol=2**-10, atol=1e-4)
    torch.testing.assert_close(torch.stack([one.features for one in read]).float(), found, rtol=2**-10, atol=1e-4)
    with pytest.raises(InputError, match="no features in"):
        CachedScenes(tmp_path / "nowhere")


@pytest.mark.parametrize("arm", ARMS)
def test_a_saved_twin_says_of_pictures_what_training_said_of_their_features(trained: Path, arm: Arm) -> None:
    subject = probe.load_model(str(trained / arm))
    model, examples = subject.model, drawn(8, seed=3)
    cached = list(CachedScenes(trained / "features"))[:8]
    for draw in (0, 1):
        if arm != "llava-clip":
            model.config.diffusion_config.first_draw = draw
        texts = Collator(subject.processor).texts(examples[draw::2])
        images = [example.image for example in examples[draw::2]]
        pictures = subject.processor.image_processor(images, return_tensors="pt")
        batch = FeatureBatch(subject.processor, arm)(cached[draw::2])
        with torch.no_grad():
            own = model(**texts, **pictures)
            ours = FromFeatures(model)(**batch)
        # The cache is in half precision: a relative 2 ** -11 in each feature.
        torch.testing.assert_close(own.logits, ours.logits, rtol=0, atol=2e-3 * float(own.logits.abs().max()))
        assert float(own.loss) == pytest.approx(float(ours.loss), abs=1e-3)
        assert own.logits.std() > 0.01


@pytest.mark.parametrize("arm", ARMS)
def test_a_folder_has_no_frozen_towers_and_loading_puts_them_in(trained: Path, towers: Towers, arm: Arm) -> None:
    home = trained / arm
    kept = weights(home)
    assert not [name for name in kept if any(part in name for part in ("vision_tower", ".vae.", ".unet."))]
    assert {path.name for path in home.iterdir()} >= {
        "config.json",
        "loss.csv",
        "training.json",
        "tokenizer.json",
        FROZEN,
    }
    assert not (home / "checkpoints").exists()
    loaded = probe.load_model(home).model
    start = build_twin(arm, towers, settings=SETTINGS, seed=3)[0]
    for name, value in start.state_dict().items():
        same = torch.equal(loaded.state_dict()[name], value)
        if any(part in name for part in ("vision_tower", ".vae.", ".unet.")):
            assert same, name
        elif "q_proj" in name or "projector.linear_1.weight" in name:
            assert not same, name
    assert isinstance(loaded, DiffLMMForConditionalGeneration) == (arm != "llava-clip")
    assert loaded.generation_config.max_new_tokens == 64


def test_either_encoder_alone_is_blind_to_the_other_and_difflmm_to_neither(trained: Path) -> None:
    text = "USER: <image>\nDescribe the image.\nASSISTANT:\n"
    for arm, blind in (("diffusion", "clip"), ("clip", "diffusion"), ("difflmm", "neither")):
        subject = probe.load_model(trained / arm)
        batch = subject.processor(text=text, images=drawn(1)[0].image, return_tensors="pt")
        with torch.no_grad():
            first = subject.model(**batch).logits
            second = subject.model(**dict(batch) | {"pixel_values": -batch["pixel_values"]}).logits
            third = subject.model(**dict(batch) | {"diffusion_pixel_values": -batch["diffusion_pixel_values"]}).logits
        assert torch.equal(first, second) == (blind == "clip")
        assert torch.equal(first, third) == (blind == "diffusion")
    projector = probe.load_model(trained / "diffusion").model.model.multi_modal_projector
    assert torch.count_nonzero(projector.linear_1.weight[:, SETTINGS.diffusion_features :]) == 0
    assert torch.count_nonzero(projector.linear_1.weight[:, : SETTINGS.diffusion_features]) > 0
    projector = probe.load_model(trained / "clip").model.model.multi_modal_projector
    assert torch.count_nonzero(projector.linear_1.weight[:, : SETTINGS.diffusion_features]) == 0
    assert torch.count_nonzero(projector.conv.weight) == torch.count_nonzero(projector.conv.bias) == 0
    assert torch.count_nonzero(projector.linear_1.weight[:, SETTINGS.diffusion_features :]) > 0


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    trained: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "SPACED", (0, 3, 5))
    steps: list[int] = []

    def killed(step: int, model: Any, processor: Any, loss: float) -> None:
        assert not model.training
        torch.rand(3)
        steps.append(step)
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "one", towers, seed=3, on_snapshot=killed)
    train(tmp_path / "one", towers, seed=3, on_snapshot=lambda step, *_: steps.append(step))
    assert steps == [0, 3, 5, 5, 6]
    expected, found = weights(trained / "difflmm"), weights(tmp_path / "one")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    with pytest.raises(InputError, match="holds a run with seed=3"):
        train(tmp_path / "one", towers, seed=4)


def test_all_runs_are_made_and_made_once(towers: Towers, tmp_path: Path) -> None:
    steps: list[tuple[TwinRun, int]] = []
    encoded: list[tuple[int, int, int]] = []
    options: dict[str, Any] = {"towers": towers, "settings": SETTINGS, "steps": 2, "batch_size": 4, "seeds": (1, 0)}
    options |= {"arms": ("llava-clip", "difflmm"), "on_features": lambda *one: encoded.append(one)}
    runs = train_twins(tmp_path, on_step=lambda run, step, loss: steps.append((run, step)), **options)
    assert [(run.seed, run.arm) for run in runs] == [
        (1, "llava-clip"), (1, "difflmm"), (0, "llava-clip"), (0, "difflmm")
    ]  # fmt: skip
    assert steps == [(run, step) for run in runs for step in (1, 2)]
    assert encoded == [(seed, 8, 8) for seed in (1, 1, 0, 0)]
    assert sorted(one.name for one in tmp_path.rglob("features")) == []
    steps.clear()
    assert train_twins(tmp_path, **options | {"on_features": None}) == runs
    assert steps == []
    with pytest.raises(InputError, match=r"seeds must be one or more that differ, not \[0, 0\]"):
        train_twins(tmp_path, seeds=(0, 0))
    with pytest.raises(InputError, match="arms must be one or more"):
        train_twins(tmp_path, arms=())


def test_other_or_absent_towers_are_refused(trained: Path, towers: Towers, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no clip model in"):
        train(tmp_path / "one", Towers(clip=str(tmp_path), diffusion=towers.diffusion))
    home = tmp_path / "twin"
    home.mkdir()
    for path in (trained / "difflmm").iterdir():
        (home / path.name).write_bytes(path.read_bytes())
    note = json.loads((home / FROZEN).read_text())
    for change, message in (
        ({"clip": note["clip"] | {"sha256": "0"}}, "is not the one that this model was trained on"),
        ({"clip": note["clip"] | {"name": str(tmp_path)}}, "no clip model in"),
        ({"sound": note["clip"]}, "names a tower that is none"),
        ({"clip": "lab/clip"}, "does not say where the frozen towers are"),
    ):
        (home / FROZEN).write_text(json.dumps(note | change))
        with pytest.raises(ModelError, match=message):
            probe.load_model(home)
    (home / FROZEN).write_text(json.dumps({"clip": note["clip"]}))
    with pytest.raises(ModelError, match="are not in its checkpoint"):
        probe.load_model(home)
    (home / FROZEN).unlink()
    with pytest.raises(ModelError, match="are not in its checkpoint"):
        probe.load_model(home)


def test_only_what_is_trained_is_a_part_of_the_trained_module(towers: Towers) -> None:
    model, _ = build_twin("difflmm", towers, settings=SETTINGS)
    module = FromFeatures(model)
    assert {name.split(".")[0] for name in module.state_dict()} == {"projector", "language_model"}
    assert all(value.requires_grad for value in module.parameters())
    assert module.train().model.model.diffusion_tower.unet.training is False
    assert twins.STEPS == 750
