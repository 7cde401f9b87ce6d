"""Loading models: what is found, what is refused in one clear line, and what shows on the screen meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

import probe
from probe.errors import ModelError
from probe.tiny import tiny_model
from tests.tiny import picture, tiny_llava, tiny_processor


def _refused(model, **options):
    """The message of the refusal; it is one line and says what was asked."""
    with pytest.raises(ModelError) as caught:
        probe.load_model(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A copy of a good checkpoint folder, to be damaged."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


def _edit(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def test_a_saved_folder_comes_back_as_it_was(checkpoint):
    original, loaded = tiny_llava(), probe.load_model(checkpoint())
    assert (loaded.family.name, loaded.model.training, str(loaded.model.device)) == ("llava", False, "cpu")
    assert loaded.name == str(checkpoint())
    assert "llava" in repr(loaded)
    assert "float32" in repr(loaded)
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    with torch.inference_mode():
        assert torch.equal(original.model(**inputs).logits, loaded.model(**inputs).logits)
    first, second = (
        one.processor(images=picture(), text="<image>a", return_tensors="pt") for one in (original, loaded)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_shipped_model_is_loaded_in_single_precision_unless_asked_otherwise():
    subject = probe.load_model("lab/llava")
    assert subject.model.dtype == torch.float32
    assert subject.name == "lab/llava"
    assert probe.load_model("lab/llava", dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_number_type_can_be_chosen(checkpoint, dtype):
    assert probe.load_model(checkpoint(), dtype=dtype).model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", ["float33", "int8", "nn", "cat", "bool", ""])
def test_a_number_type_that_is_none_is_refused(checkpoint, dtype):
    message = _refused(checkpoint(), dtype=dtype)
    assert f"dtype={dtype!r}" in message
    assert "'float32'" in message


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(checkpoint, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    assert "device='cuba'" in _refused(checkpoint(), device="cuba")
    if not torch.cuda.is_available():
        message = _refused(checkpoint(), device="cuda")
        assert "device='cuda' cannot be used" in message
        assert "'cpu'" in message


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "llava", "a/b/c", "~/no-such-folder"])
def test_a_missing_folder_is_refused(name):
    message = _refused(name)
    assert message.startswith(f"No model folder {name!r}")
    assert "lab/llava" in message


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    message = _refused(tmp_path)
    assert str(tmp_path) in message
    assert "has no config.json or model_index.json" in message


def test_an_unknown_lab_model_is_refused_with_what_might_have_been_meant():
    message = _refused("lab/lava")
    assert "'lab/lava'" in message
    assert "Did you mean 'lab/llava'" in message


def test_a_text_model_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    LlamaForCausalLM(settings).save_pretrained(tmp_path)
    message = _refused(tmp_path)
    assert "model_type 'llama'" in message
    assert "not a vision-language model" in message


@pytest.mark.parametrize("kind", ["blip", "kosmos-2", "llava_next_video"])
def test_a_family_that_is_not_known_is_refused_by_name_without_its_weights(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    message = _refused(tmp_path)
    assert f"model_type {kind!r}" in message
    assert "nown families: llava" in message
    if kind == "llava_next_video":
        assert "Did you mean 'llava_next'" in message
    assert "CONTRIBUTING.md" in message


@pytest.mark.parametrize("family", ["mllama", "blip_2", "instructblip"])
def test_a_folder_of_a_family_whose_images_are_not_in_the_sequence_loads(tmp_path, family):
    made = tiny_model(family)
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    found = probe.load_model(tmp_path, dtype="float32")
    assert found.family.name == family
    assert type(found.model) is type(made.model)
    assert type(found.processor) is type(made.processor)
    assert probe.check(found).passed


def _broken_json(folder):
    (folder / "config.json").write_text('{"model_type": "llava",', encoding="utf-8")


def _no_type(folder):
    (folder / "config.json").write_text("{}", encoding="utf-8")


def _no_object(folder):
    (folder / "config.json").write_text("[1, 2]", encoding="utf-8")


def _cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _text_weights(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _broken_processor(folder):
    (folder / "processor_config.json").write_text("{", encoding="utf-8")


DAMAGE = {
    _broken_json: r"config\.json.*valid JSON",
    _no_type: "model_type",
    _no_object: "could not be loaded",
    _cut_weights: "SafetensorError",
    _text_weights: "SafetensorError",
    _no_weights: r"no file named model\.safetensors",
    _broken_processor: r"processor_config\.json.*valid JSON",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_a_damaged_folder_is_refused_with_the_reason(damaged, damage):
    probe.load_model(damaged)
    damage(damaged)
    with pytest.raises(ModelError, match=DAMAGE[damage]) as caught:
        probe.load_model(damaged)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{str(damaged)!r}")
    assert "save_pretrained" in str(caught.value)


def test_weights_that_the_checkpoint_lacks_are_not_made_up(damaged, capfd):
    # The library fills them with random numbers and goes on: a model that was never trained would be studied.
    text = json.loads((damaged / "config.json").read_text(encoding="utf-8"))["text_config"]
    _edit(damaged / "config.json", text_config=text | {"num_hidden_layers": 4})
    message = _refused(damaged)
    assert "of its weights are not in its checkpoint, the first 'model.language_model.layers.3." in message
    assert capfd.readouterr().err == ""


def test_weights_of_another_shape_are_not_made_up(damaged, capfd):
    text = json.loads((damaged / "config.json").read_text(encoding="utf-8"))["text_config"]
    _edit(damaged / "config.json", text_config=text | {"intermediate_size": 96})
    message = _refused(damaged)
    # Three layers of up, down and gate.
    assert "9 of its weights have another shape in its checkpoint" in message
    assert capfd.readouterr().err == ""


def test_a_folder_without_a_processor_is_refused(damaged):
    (damaged / "processor_config.json").unlink()
    message = _refused(damaged)
    assert "image processor" in message
    assert "preprocessor_config.json" in message


def test_a_folder_with_a_tokenizer_alone_is_refused_before_its_weights_are_read(damaged, monkeypatch):
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *a, **k: tiny_processor().tokenizer)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", None)
    assert "no image processor beside its tokenizer" in _refused(damaged)


def test_a_live_model_needs_its_processor_and_stays_where_and_as_it_is():
    subject = tiny_llava(dtype=torch.bfloat16)
    with pytest.raises(
        ModelError, match=r"live LlavaForConditionalGeneration needs its processor.*load_model\(model, processor\)"
    ):
        probe.load_model(subject.model)
    again = probe.load_model(subject.model, subject.processor)
    assert again.model is subject.model
    assert again.processor is subject.processor
    assert again.family is subject.family
    assert again.model.dtype == torch.bfloat16


def test_a_live_model_of_another_kind_is_refused():
    with pytest.raises(ModelError, match=r"Linear .* is not a vision-language model"):
        probe.load_model(torch.nn.Linear(1, 1), tiny_processor())


def test_a_hub_name_without_a_network_is_refused_quickly():
    began = time.perf_counter()
    message = _refused("no-such-owner/no-such-model")
    assert time.perf_counter() - began < 5
    assert message.startswith("'no-such-owner/no-such-model' could not be loaded")
    assert "network" in message


def test_nothing_shows_on_the_screen_and_the_librarys_own_settings_stay(checkpoint):
    code = (
        "import probe, transformers, logging\n"
        "from transformers.utils import logging as library\n"
        "before = library.is_progress_bar_enabled(), [list(one.filters) for one in logging.getLogger('transformers').handlers]\n"
        "probe.load_model('lab/llava'); probe.load_model({folder!r})\n"
        "try: probe.load_model('lab/lama')\n"
        "except probe.ProbeError: pass\n"
        "after = library.is_progress_bar_enabled(), [list(one.filters) for one in logging.getLogger('transformers').handlers]\n"
        "assert before == after == (True, [[]]), after\n"
    ).replace("{folder!r}", repr(str(checkpoint())))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
