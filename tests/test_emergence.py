"""Grounding over training: checkpoints from a glob, the measurements of each, and the callback in a real Trainer."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from probe.callbacks import GroundingCallback
from probe.capture.passes import inputs_with_answer
from probe.checkpoints import Checkpoint, find_checkpoints, lab_checkpoints
from probe.errors import InputError, ModelError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.lab import read_lab, reword_scene
from probe.lab.llava import folder
from probe.measurements import MEASURED, measure, read_example
from probe.runs import score_examples
from probe.training_curves import emergence
from probe.training_tables import TrainingTable
from tests.tiny import picture, tiny_llava

TEXT = "a man with a red ball"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make_examples(count=3, *, size=(40, 40)):
    found = []
    for index in range(count):
        masks = np.zeros((2, *size), dtype=bool)
        masks[0, 4 * index : 4 * index + 16, :20] = masks[1, 20:, 16:36] = True
        phrases = (ExamplePhrase("man", 2, 5, masks[0]), ExamplePhrase("red ball", 13, 21, masks[1]))
        found.append(Example(f"picture {index}", picture(*size, seed=index), TEXT, phrases))
    return found


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A training of three steps, each a folder as Trainer saves it."""
    home = tmp_path_factory.mktemp("run")
    for step, seed in ((20, 1), (5, 0), (100, 2)):
        subject = tiny_llava(seed=seed)
        subject.model.save_pretrained(home / f"checkpoint-{step}")
        subject.processor.save_pretrained(home / f"checkpoint-{step}")
    return home


def test_a_glob_gives_checkpoints_by_rising_step_and_each_is_its_own_model(run_folder):
    found = find_checkpoints(run_folder / "checkpoint-*")
    assert [one.step for one in found] == [5, 20, 100]
    curve = emergence(found, make_examples(), replicates=20)
    for one, seed in zip(curve.measurements, (0, 1, 2), strict=True):
        alone = measure(tiny_llava(seed=seed), make_examples(), replicates=20)
        assert str(one.intervals["minus_mean"]) == str(alone.intervals["minus_mean"])
        assert one.intervals["caption_loss"].value == pytest.approx(alone.intervals["caption_loss"].value, abs=1e-5)
    assert len(curve.to_frame()) == 3 * len(MEASURED)
    values, drawn = curve.curve("caption_loss")
    assert values.shape == (3,)
    assert drawn.shape == (20, 3)


def test_losses_are_the_models_own_and_scores_those_of_score_examples():
    subject, examples = tiny_llava(seed=1), make_examples()
    found = measure(subject, examples, replicates=20)
    losses = []
    for one in examples:
        inputs, start = inputs_with_answer(subject, one.image, "Describe the image.", one.text)
        labels = inputs["input_ids"].clone()
        labels[:, :start] = -100
        losses.append(float(subject.model(**inputs, labels=labels).loss.detach()))
    # Every caption here has the same number of tokens.
    assert found.intervals["caption_loss"].value == pytest.approx(np.mean(losses), abs=1e-5)
    record, _, each = read_example(subject, examples[0], "Describe the image.")
    tokens = [*record.tokens_of(2, 5), *record.tokens_of(13, 21)]
    one = measure(subject, examples[:1], replicates=20).intervals["phrase_loss"]
    assert one.value == pytest.approx(float(each[tokens].mean()), abs=1e-6)
    scores = score_examples(subject, examples, metric="pointing")
    for name in ("mean_map", "minus_mean", "best_head_held_out", "other_phrase", "shuffled", "chance"):
        assert found.intervals[name].value == pytest.approx(scores.reading(name).value, nan_ok=True), name
    row = scores.to_frame().query("metric == 'pointing' and name == 'minus_mean'").iloc[0]
    for name in ("top1_share", "border_share", "sink_share"):
        assert found.intervals[name].value == row[name], name


def test_the_floor_is_zero_noise_where_the_words_do_not_change():
    subject, examples = tiny_llava(seed=1), make_examples()
    same = measure(subject, examples, reword=lambda one: one, metric="auroc", replicates=20).intervals
    assert same["paraphrase"].value == 0
    assert same["floor"].value == pytest.approx(same["other_phrase"].value)
    other = measure(subject, examples, metric="auroc", replicates=20).intervals
    assert other["paraphrase"].value > 0
    assert other["margin"].value == pytest.approx(other["minus_mean"].value - other["floor"].value)


def test_the_labs_training_learns_to_ground_after_its_loss_has_fallen():
    found = [one for one in lab_checkpoints("lab/llava") if one.step in (0, 200, 2500)]
    curve = emergence(found, read_lab(limit=16), reword=reword_scene, replicates=200)
    assert curve.measurements[0].intervals["caption_loss"].value == pytest.approx(
        6.0, abs=0.1
    )  # step 0 is training.csv's
    assert not curve.measurements[0].grounds
    assert curve.measurements[-1].grounds
    assert curve.beats_floor_from == 2500 or curve.beats_floor_from == 200
    assert curve.lag("minus_mean", "caption_loss")[1] == "after"


def test_the_shipped_table_is_one_that_a_training_writes():
    path = folder("lab/llava") / "training.csv"
    rows = TrainingTable(path, list(read_lab(limit=1)) * 200).rows()
    assert [row["step"] for row in rows] == [one.step for one in lab_checkpoints("lab/llava")]
    first, last = rows[0], rows[-1]
    assert last["caption_loss_high"] < first["caption_loss_low"]
    assert last["margin_low"] > 0 > first["margin_high"]


def test_other_wordings_keep_the_phrases():
    for one in read_lab(limit=8):
        other = reword_scene(one)  # an Example refuses phrases that do not stand where they should
        assert other.text != one.text
        assert [two.text for two in other.phrases] == [two.text for two in one.phrases]


def spoil(home, what):
    last = home / "checkpoint-100"
    if what == "shape":
        shutil.rmtree(last)
        other = tiny_llava(num_hidden_layers=2)
        other.model.save_pretrained(last)
        other.processor.save_pretrained(last)
    elif what == "cut":
        file = last / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
    elif what == "no config":
        (last / "config.json").unlink()
    elif what == "name":
        last.rename(home / "checkpoint-last")
    elif what == "twice":
        shutil.copytree(last, home / "checkpoint-again-20")


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (
            "shape",
            InputError,
            r"checkpoint-100' has another shape than .*checkpoint-5': .*num_hidden_layers is 2 instead of 3",
        ),
        ("cut", ModelError, r"checkpoint-100/model.safetensors' cannot be read .* cut short"),
        ("no config", ModelError, r"checkpoint-100' has no readable config.json"),
        ("name", InputError, r"checkpoint-last' has no number in its name"),
        ("twice", InputError, r"are both of step 20"),
    ],
)
def test_checkpoints_that_do_not_fit_are_named_before_any_is_scored(run_folder, tmp_path, what, error, message):
    home = tmp_path / "run"
    shutil.copytree(run_folder, home)
    spoil(home, what)
    with pytest.raises(error, match=message):
        find_checkpoints(home / "checkpoint-*")


def test_a_checkpoint_without_its_processor_is_named_when_its_turn_comes(run_folder, tmp_path):
    shutil.copytree(run_folder / "checkpoint-5", tmp_path / "checkpoint-5")
    for file in (tmp_path / "checkpoint-5").glob("*oken*"):
        file.unlink()
    with pytest.raises(ModelError, match="checkpoint-5"):
        emergence(find_checkpoints(tmp_path / "checkpoint-*"), make_examples())


def test_nothing_to_compare_is_said(tmp_path, run_folder):
    with pytest.raises(InputError, match=r"No folder matches .*in quotes"):
        find_checkpoints(tmp_path / "checkpoint-*")
    with pytest.raises(InputError, match="holds no snapshots of its training"):
        lab_checkpoints(run_folder)
    with pytest.raises(InputError, match="steps must rise"):
        emergence([], make_examples())
    twice = [Checkpoint(1, "one", tiny_llava), Checkpoint(1, "two", tiny_llava)]
    with pytest.raises(InputError, match=r"steps must rise.*found \[1, 1\]"):
        emergence(twice, make_examples())
    with pytest.raises(InputError, match="no example to measure"):
        emergence(twice[:1], [])
    shallow = Checkpoint(2, "shallow", partial(tiny_llava, num_hidden_layers=2))
    with pytest.raises(InputError, match="shallow: the record has 2 layers"):
        emergence([twice[0], shallow], make_examples())


class Pairs(torch.utils.data.Dataset):
    """What a Trainer reads: the same two conversations again and again, with noise that only its random state decides."""

    def __init__(self, subject):
        self.inputs, _ = inputs_with_answer(subject, picture(), "Describe the image.", TEXT)

    def __len__(self):
        return 64

    def __getitem__(self, index):
        found = {key: value[0] for key, value in self.inputs.items()}
        found["pixel_values"] = found["pixel_values"] + 0.1 * torch.randn(found["pixel_values"].shape)
        return found | {"labels": found["input_ids"]}


def train(folder, *, callbacks=()):
    from transformers import PrinterCallback, Trainer, TrainingArguments

    subject = tiny_llava(seed=3)
    subject.model.model.vision_tower.eval()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=2, learning_rate=1e-3, seed=0, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=subject.model,
        args=arguments,
        train_dataset=Pairs(subject),
        processing_class=subject.processor,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return subject.model


def greedy(example):
    """The same example; draws random numbers on the way, as somebody's own rewording may."""
    torch.rand(3)
    return example


def test_a_callback_measures_a_training_and_leaves_it_as_it_was(tmp_path):
    plain = train(tmp_path / "plain").state_dict()
    callback = GroundingCallback(make_examples(), every=2, out=tmp_path / "grounding.csv", reword=greedy, replicates=10)
    watched = train(tmp_path / "watched", callbacks=[callback])
    assert all(torch.equal(value, plain[name]) for name, value in watched.state_dict().items())
    assert watched.training
    rows = callback.rows()
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert rows[0]["caption_loss"] == pytest.approx(
        measure(tiny_llava(seed=3), make_examples(), replicates=10).intervals["caption_loss"].value
    )
    assert rows[-1]["caption_loss"] < rows[0]["caption_loss"]
    assert all((row["images"], row["phrases"]) == (3, 6) for row in rows)
    assert rows[0]["caption_loss_low"] <= rows[0]["caption_loss"] <= rows[0]["caption_loss_high"]


def test_a_callback_that_can_measure_nothing_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="every=0 and 3 examples"):
        GroundingCallback(make_examples(), every=0)
    with pytest.raises(InputError, match="every=1 and 0 examples"):
        GroundingCallback([], every=1)
    (tmp_path / "other.csv").write_text("step,loss\n0,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.csv is no table of these measurements"):
        GroundingCallback(make_examples(), out=tmp_path / "other.csv")
    with pytest.raises(InputError, match="No metric 'pointin'"):
        GroundingCallback(make_examples(), metric="pointin")


def test_the_shell_prints_the_curve_the_loss_and_the_floor(shell, run_folder, tmp_path):
    pattern = str(run_folder / "checkpoint-*")
    code, out, noise = shell(
        "emergence", "--checkpoints", pattern, "--limit", 2, "--data", "lab", "--out", tmp_path / "out", "--json"
    )
    # The tiny tokenizer does not know the lab's words but spells them in bytes.
    assert code == 0, noise
    data = json.loads(out)
    assert [row["step"] for row in data["steps"]] == [5, 20, 100]
    for row in data["steps"]:
        assert {"value", "low", "high"} == set(row["caption_loss"]) == set(row["floor"])
    assert {row["order"] for row in data["order"]} <= {"before", "with", "after", "unknown"}
    assert (tmp_path / "out" / "emergence.parquet").is_file()
    assert Image.open(tmp_path / "out" / "emergence.png").size[0] > 500


@pytest.mark.parametrize("over", ["layer", "token"])
def test_the_shell_looks_into_one_model(shell, over):
    code, out, noise = shell("emergence", "--over", over, "--limit", 3, "--json")
    assert code == 0, noise
    positions = json.loads(out)["positions"]
    assert {row["over"] for row in positions} == {over}
    assert {"value", "low", "high", "floor", "beats_floor"} <= set(positions[0])
    assert shell("emergence", "--over", over, "--limit", 3)[0] == 0


def test_the_shell_refuses_in_one_line(refused, tmp_path):
    assert "No folder matches" in refused("emergence", "--checkpoints", tmp_path / "none-*")
    assert "looks into one model" in refused("emergence", "--over", "layer", "--checkpoints", tmp_path / "none-*")
    assert "brings no checkpoints of its training" in refused("emergence", "--model", "some/model")
