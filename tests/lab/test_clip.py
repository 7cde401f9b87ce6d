"""The lab's CLIP: a real model and processor, trained to tell which caption belongs to which scene."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from probe.errors import InputError
from probe.lab import trainers
from probe.lab.captions import Captions
from probe.lab.clip import ClipSettings, build_clip, make_clip_processor, save_clip
from probe.lab.contrastive import Pairs, in_batch_accuracy, train_clip
from probe.lab.grammar import COLOURS, SIZES
from probe.lab.llava import LlavaSettings, make_processor
from probe.lab.scenes import SHAPES, Scene, SceneSettings, scene, scenes
from probe.lab.storage import folder

TINY = ClipSettings(
    image=32,
    vision_width=16,
    vision_inner=32,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_inner=32,
    text_heads=2,
    shared_width=16,
)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_clip_processor()


def test_texts_stand_between_start_and_end_with_the_words_of_the_other_lab_models(processor: Any) -> None:
    words, plain = processor.tokenizer, make_processor().tokenizer
    batch = words(["a large red circle", "a star"], padding=True, return_tensors="pt")
    assert words.batch_decode(batch["input_ids"]) == ["<s>a large red circle</s>", "<s>a star</s><pad><pad>"]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    for word in (*COLOURS, *SHAPES, *SIZES):
        assert words(f" {word}")["input_ids"][1:-1] == plain(f" {word}")["input_ids"]
    assert words("")["input_ids"] == [words.bos_token_id, words.eos_token_id]
    # Cut texts keep their end, and no caption is cut.
    assert words("a star " * 40, truncation=True)["input_ids"][-1] == words.eos_token_id
    for relations in (False, True):
        for example in scenes(40, settings=SceneSettings(size=16, relations=relations, objects=(4, 4))):
            assert len(words(example.caption)["input_ids"]) <= words.model_max_length


def test_a_text_is_pooled_at_its_end(processor: Any) -> None:
    model = build_clip(processor).eval()
    batch = processor.tokenizer(["a small blue star", "a ring"], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.text_model(**batch)
        longer = model.text_model(batch["input_ids"][:, :4], attention_mask=batch["attention_mask"][:, :4])
    ends = batch["attention_mask"].sum(dim=1) - 1
    assert (batch["input_ids"] > processor.tokenizer.eos_token_id).any()  # the end is not the highest id
    for row, end in enumerate(ends):
        assert batch["input_ids"][row, end] == processor.tokenizer.eos_token_id
        assert torch.equal(found.pooler_output[row], found.last_hidden_state[row, end])
    # Padding changes nothing.
    torch.testing.assert_close(longer.pooler_output[1], found.pooler_output[1], rtol=0, atol=1e-6)


def test_the_image_encoder_has_the_size_of_the_one_in_lab_llava(processor: Any) -> None:
    model, theirs = build_clip(processor), LlavaSettings()
    vision = model.config.vision_config
    assert (vision.hidden_size, vision.intermediate_size) == (theirs.vision_width, theirs.vision_inner)
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (theirs.vision_layers, theirs.vision_heads)
    assert (vision.image_size, vision.patch_size) == (theirs.image, theirs.patch)
    assert model.config.text_config.num_hidden_layers == 2
    assert sum(value.numel() for value in model.parameters()) < 600_000
    again, other = build_clip(processor), build_clip(processor, seed=1)
    first = model.text_projection.weight
    assert torch.equal(first, again.text_projection.weight)
    assert not torch.equal(first, other.text_projection.weight)
    with pytest.raises(InputError, match="text_width=50 is not a multiple of text_heads=4"):
        ClipSettings(text_width=50)


def test_a_batch_holds_scenes_and_captions_and_nothing_about_places(processor: Any) -> None:
    examples = [scene(index, split="train", settings=SceneSettings(size=64)) for index in range(5)]
    batch = Pairs(processor)(examples)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    read = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert read == [example.caption for example in examples]
    real = processor.image_processor([example.image for example in examples], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], real, rtol=0, atol=2e-6)


def test_accuracy_counts_the_pictures_whose_own_caption_fits_best() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [4.0, 5.0, 0.0, 0.0], [9.0, 0.0, 8.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert in_batch_accuracy(logits) == 0.75


def test_a_saved_folder_loads_as_any_other_model_does(tmp_path: Path) -> None:
    small = make_clip_processor(TINY)
    model = build_clip(small, settings=TINY).eval()
    save_clip(tmp_path, model, small)
    loaded = CLIPModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        # Positions are counted and not learned, and are not saved.
        assert torch.equal(loaded.state_dict()[name], value.half().float().to(value.dtype)), name
    read = CLIPProcessor.from_pretrained(tmp_path)
    text, picture = ["a small red star"], scene(0).image
    inputs, expected = (one(text=text, images=picture, return_tensors="pt") for one in (read, small))
    assert all(torch.equal(inputs[name], expected[name]) for name in ("input_ids", "attention_mask", "pixel_values"))
    assert oct((tmp_path / "model.safetensors").stat().st_mode)[-3:] == "644"


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = CLIPModel.from_pretrained(out).state_dict()
    return found


def train(out: Path, **options: Any) -> Path:
    return train_clip(out, **{"steps": 6, "batch_size": 4, "save_every": 2, "settings": TINY} | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"))


def test_training_leaves_a_model_and_a_curve_with_accuracy(trained: Path) -> None:
    assert not (trained / "checkpoints").exists()
    with (trained / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5]
    assert 0.7 < float(rows[0]["loss"]) < 2.5  # the logarithm of four is 1.4
    assert float(rows[0]["accuracy"]) * 20 == pytest.approx(round(float(rows[0]["accuracy"]) * 20))  # 5 batches of 4
    start = build_clip(make_clip_processor(TINY), settings=TINY).state_dict()
    assert not torch.equal(weights(trained)["text_projection.weight"], start["text_projection.weight"].half().float())


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "SPACED", (0, 3, 5))
    steps: list[int] = []

    def killed(step: int, model: Any, *_: Any) -> None:
        assert isinstance(model, CLIPModel)
        steps.append(step)
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_snapshot=killed)
    assert json.loads((tmp_path / "training.json").read_text())["finished"] is False
    train(tmp_path, on_snapshot=lambda step, *_: steps.append(step))
    assert steps == [0, 3, 5, 5, 6]
    expected = weights(trained)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())
    other = weights(train(tmp_path / "other", seed=1))
    assert not all(torch.equal(value, expected[name]) for name, value in other.items())
    with pytest.raises(InputError, match=r"holds a run with seed=0\. Give another folder"):
        train(tmp_path, seed=7)


def accuracy(model: Any, processor: Any, examples: list[Scene]) -> float:
    """The share of scenes whose own caption, of all, fits best, by cosine."""
    batch = Pairs(processor)(examples)
    with torch.no_grad():
        pictures = model.get_image_features(pixel_values=batch.pop("pixel_values")).pooler_output
        texts = model.get_text_features(**batch).pooler_output
    cosines = torch.nn.functional.normalize(pictures) @ torch.nn.functional.normalize(texts).T
    return float(np.mean([int(row.argmax()) == number for number, row in enumerate(cosines)]))


def test_the_shipped_model_is_small_and_finds_the_captions_of_unseen_scenes(processor: Any) -> None:
    home = folder("lab/clip")
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) <= 2_500_000
    examples = list(scenes(128, settings=SceneSettings(size=64)))
    shipped = CLIPModel.from_pretrained(home).eval()
    assert shipped.dtype == torch.float32
    assert accuracy(shipped, CLIPProcessor.from_pretrained(home), examples) > 0.8
    assert accuracy(build_clip(processor).eval(), processor, examples) < 0.1


def test_its_curve_shows_the_training(processor: Any) -> None:
    rows = trainers.read_curve(folder("lab/clip") / "loss.csv")
    plan = json.loads((folder("lab/clip") / "training.json").read_text())
    assert rows[-1]["step"] == plan["steps"]
    assert rows[0]["accuracy"] < 0.1 < 0.8 < rows[-1]["accuracy"]
    start = next(iter(Captions(size=32, seed=plan["seed"])))
    assert start.caption == scene(0, split="train", seed=plan["seed"], settings=SceneSettings(size=32)).caption
