"""The lab's LLaVA: a real model and processor, trained on captions alone, the same for the same seed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from probe.errors import InputError, ModelError
from probe.lab import trainers, training
from probe.lab.captions import Captions, Collator, answer_ids, pixels, prompt_ids
from probe.lab.grammar import COLOURS, OPENINGS, PROMPTS, RELATIONS, SIZES
from probe.lab.llava import (
    MODELS,
    LlavaSettings,
    build,
    folder,
    load,
    make_processor,
    save_folder,
    save_snapshot,
    snapshot_folders,
)
from probe.lab.scenes import SHAPES, SceneSettings, scene, scenes
from probe.lab.training import snapshot_steps, train_llava

TINY = LlavaSettings(
    image=32, vision_width=16, vision_inner=32, vision_layers=2, vision_heads=2, width=16, inner=32, layers=2, heads=2
)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor()


def turn(text: str, *, image: bool = True) -> list[dict[str, Any]]:
    parts = [{"type": "image"}] * image + [{"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize(
    "text",
    [
        "Ein großes Haus – 東京 🦜🏽",
        "tabs\tand\r\nlines  ",
        "\x00\u202e",
        "a   spaced  out red  circle",
        "ALL CAPS!?",
        "",
    ],
)
def test_any_text_round_trips(processor: Any, text: str) -> None:
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text
    assert len(ids) <= max(1, len(text.encode()))


def test_every_word_of_the_grammar_is_one_token(processor: Any) -> None:
    words = processor.tokenizer
    for word in (*COLOURS, *SHAPES, *SIZES, "a", "and", "which", "is", *" ".join(RELATIONS).split()):
        assert len(words(f" {word}")["input_ids"]) == 1, word
    for opening in OPENINGS:
        text = f"{opening}a large red circle, "
        assert len(words(text.strip())["input_ids"]) == len(text.split()) + 1  # the comma
    for prompt in PROMPTS:
        assert len(words(prompt)["input_ids"]) == len(prompt.split()) + 1  # the full stop
    for relations in (False, True):
        for example in scenes(50, settings=SceneSettings(size=16, relations=relations)):
            assert len(words(example.caption)["input_ids"]) == len(example.caption.replace(",", " ,").split())


def test_chat_template_ends_where_the_answer_starts(processor: Any) -> None:
    text = processor.apply_chat_template(turn("What is it?"), add_generation_prompt=True)
    assert text == "<s>USER: <image>\nWhat is it?\nASSISTANT:\n"
    told = [*turn("What is it?"), {"role": "assistant", "content": [{"type": "text", "text": "a small red star"}]}]
    whole = processor.apply_chat_template(told)
    assert whole == text + "a small red star</s>"
    # Tokens of prompt and answer apart, as in training, are the tokens of both together.
    ids = processor(text=whole, images=scene(0).image)["input_ids"][0]
    assert list(ids) == prompt_ids(processor, "What is it?") + answer_ids(processor, "a small red star")
    assert processor.apply_chat_template(turn("Hello", image=False)) == "<s>USER: Hello\n"


def test_training_pixels_are_those_of_the_image_processor(processor: Any) -> None:
    images = [example.image for example in scenes(4, settings=SceneSettings(size=64))]
    real = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert pixels(processor, images).dtype == real.dtype == torch.float32
    torch.testing.assert_close(pixels(processor, images), real, rtol=0, atol=2e-6)
    # And a picture of the default size arrives as nearly the same.
    resized = processor.image_processor([example.image for example in scenes(4)], return_tensors="pt")["pixel_values"]
    assert (resized - real).abs().mean() < 0.03  # where one is the spread of pixel values


def test_a_batch_holds_captions_and_nothing_about_places(processor: Any) -> None:
    examples = [scene(index, split="train", settings=SceneSettings(size=64)) for index in range(7)]
    batch = Collator(processor)(examples)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    for row, example in enumerate(examples):
        kept = batch["labels"][row] != -100
        assert processor.tokenizer.decode(batch["labels"][row][kept]) == example.caption + "</s>"
        assert torch.equal(batch["labels"][row][kept], batch["input_ids"][row][kept])
        whole = processor.tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row] == 1])
        prompt = PROMPTS[example.index % len(PROMPTS)]
        assert whole == f"<s>USER: {'<image>' * 64}\n{prompt}\nASSISTANT:\n{example.caption}</s>"


def test_training_scenes_are_those_of_the_training_split() -> None:
    stream = iter(Captions(size=32, seed=4, start=9))
    for index in (9, 10):
        expected = scene(index, split="train", seed=4, settings=SceneSettings(size=32))
        assert np.array_equal(np.asarray(next(stream).image), np.asarray(expected.image))


def test_the_model_is_small_and_its_heads_differ(processor: Any) -> None:
    model = build(processor)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert sum(value.numel() for value in model.parameters()) <= 1_080_000
    text = model.config.text_config
    assert text.num_hidden_layers >= 4
    assert text.num_attention_heads >= 8
    query = model.model.language_model.layers[0].self_attn.q_proj.weight.unflatten(0, (8, -1))
    assert not torch.allclose(query[0], query[1])
    again, other = build(processor), build(processor, seed=1)
    first = model.model.language_model.embed_tokens.weight
    assert torch.equal(first, again.model.language_model.embed_tokens.weight)
    assert not torch.equal(first, other.model.language_model.embed_tokens.weight)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="image=60 is not a multiple of patch=8"):
        LlavaSettings(image=60)
    with pytest.raises(InputError, match="width=100 is not a multiple of heads=8"):
        LlavaSettings(width=100)


def test_a_saved_folder_loads_as_any_other_model_does(tmp_path: Path) -> None:
    small = make_processor(TINY)
    model = build(small, settings=TINY).eval()
    save_folder(tmp_path, model, small)
    save_snapshot(tmp_path, 20, model)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    ours, read = load(tmp_path, step=20)
    assert isinstance(read, LlavaProcessor)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in loaded.state_dict().items())
    read = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    text = read.apply_chat_template(turn("Describe the image."), add_generation_prompt=True)
    inputs = read(text=text, images=scene(0).image, return_tensors="pt")
    expected = small(text=text, images=scene(0).image, return_tensors="pt")
    assert all(torch.equal(inputs[name], expected[name]) for name in ("input_ids", "pixel_values"))
    assert ours.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_unknown_names_and_steps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"There is no lab model 'lab/lava'.*Did you mean 'lab/llava'"):
        folder("lab/lava")
    for name in ("step-00020", "step-last"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
        (tmp_path / "snapshots" / name / "model.safetensors").touch()
    assert list(snapshot_folders(tmp_path)) == [20]
    with pytest.raises(ModelError, match="no snapshot of step 30; it has 20"):
        load(tmp_path, step=30)
    monkeypatch.setitem(MODELS, "lab/llava", tmp_path)
    with pytest.raises(ModelError, match="weights of lab/llava are missing"):
        folder("lab/llava")


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load(out)[0].state_dict()


def train(out: Path, **options: Any) -> Path:
    return train_llava(out, **{"steps": 6, "batch_size": 4, "save_every": 2, "settings": TINY} | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"))


def test_training_leaves_a_model_a_curve_and_no_checkpoints(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        "model.safetensors",
        "tokenizer.json",
        "config.json",
        "loss.csv",
    }
    assert not (trained / "checkpoints").exists()
    with (trained / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5]
    assert 3.0 < float(rows[0]["loss"]) < 7.0  # the logarithm of 398 tokens is 6.0
    small = make_processor(TINY)
    start = build(small, settings=TINY).state_dict()
    assert not torch.equal(weights(trained)["lm_head.weight"], start["lm_head.weight"].half().float())


def test_the_same_seed_gives_the_same_weights_whatever_is_measured(trained: Path, tmp_path: Path) -> None:
    taken: list[tuple[int, float]] = []

    def measure(step: int, model: Any, processor: Any, loss: float) -> None:
        assert not model.training
        torch.rand(3)
        taken.append((step, loss))

    losses: list[float] = []
    again = train(tmp_path / "again", on_snapshot=measure, on_step=lambda step, loss: losses.append(loss))
    other = train(tmp_path / "other", seed=1)
    assert [step for step, _ in taken] == [0, 6]
    assert len(losses) == 6
    assert losses[-1] == taken[-1][1]
    assert all(3.0 < loss < 7.0 for _, loss in taken)
    expected = weights(trained)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
    assert not all(torch.equal(value, expected[name]) for name, value in weights(other).items())


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "SPACED", (0, 3, 5))
    monkeypatch.setattr(training, "SHIPPED", (3, 5))
    steps: list[int] = []

    def killed(step: int, *_: Any) -> None:
        steps.append(step)
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_snapshot=killed)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    unfinished = tmp_path / "checkpoints" / "checkpoint-6"  # as if killed while it was being written
    unfinished.mkdir()
    (unfinished / "trainer_state.json").write_text('{"global_st')
    train(tmp_path, on_snapshot=lambda step, *_: steps.append(step))
    assert steps == [0, 3, 5, 5, 6]
    assert list(snapshot_folders(tmp_path)) == [3, 5]
    expected = weights(trained)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())


def test_a_finished_run_is_not_trained_again_and_no_other_run_replaces_it(trained: Path) -> None:
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert train(trained) == trained
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"holds a run with seed=0\. Give another folder"):
        train(trained, seed=7)
    with pytest.raises(InputError, match="must be 1 or more"):
        train(trained, steps=0)


def test_snapshots_are_spaced_evenly_on_a_log_scale() -> None:
    for steps in (1, 6, 150, 2500, 9000):
        found = snapshot_steps(steps)
        assert found[0] == 0
        assert found[-1] == steps
        assert sorted(set(found)) == list(found)
    ratios = np.diff(np.log(snapshot_steps(2500)[1:]))
    assert 0.18 < ratios.min() < ratios.max() < 0.70


def test_the_shipped_model_is_small_and_describes_unseen_scenes() -> None:
    home = folder("lab/llava")
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) <= 11_500_000
    assert len(snapshot_folders("lab/llava")) >= 4
    model, processor = load("lab/llava")
    assert model.dtype == torch.float32
    found = named = 0
    for example in scenes(10):
        text = processor.apply_chat_template(turn("Describe the image."), add_generation_prompt=True)
        inputs = processor(text=text, images=example.image, return_tensors="pt")
        answer = processor.tokenizer.decode(
            model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        named += len(example.phrases)
        found += sum(phrase.text in answer for phrase in example.phrases)
    assert found > 0.5 * named
