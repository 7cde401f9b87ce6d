"""Converting a synthetic release: against peft and a plain writing, and everything that is refused."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPTextModel,
    CLIPVisionModel,
)

import probe.difflmm  # noqa: F401 - makes the Auto classes know the model
from probe.difflmm.conversion import convert
from probe.difflmm.encoder import draw_noise
from probe.errors import FileError, ModelError
from tests.difflmm.reference import released_pixels, visual_tokens
from tests.difflmm.released import LENGTH, PREFIX, as_safetensors, loose_tensors, write_release
from tests.tiny import picture


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    return convert(release["adapter"], release["base"], tmp_path_factory.mktemp("made") / "difflmm")


@pytest.fixture
def adapter(release, tmp_path):
    """A copy of the adapter that may be spoilt."""
    return shutil.copytree(release["adapter"], tmp_path / "adapter")


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_loose(adapter, change):
    path = adapter / "non_lora_trainables.bin"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def test_logits_are_those_of_peft_on_plainly_written_visual_tokens(release, converted):
    from peft import PeftModel

    model = AutoModelForImageTextToText.from_pretrained(converted)
    processor = AutoProcessor.from_pretrained(converted)
    image = picture(40, 56)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=image, text=prompt, return_tensors="pt")

    encoder = CLIPTextModel.from_pretrained(release["diffusion"], subfolder="text_encoder").eval()
    with torch.no_grad():  # start, end, and padding, which is the end token
        empty = encoder(torch.tensor([[0] + [1] * (LENGTH - 1)])).last_hidden_state[0].mean(0)
        tokens = visual_tokens(
            loose_tensors(),
            CLIPVisionModel.from_pretrained(release["clip"]).eval(),
            UNet2DConditionModel.from_pretrained(release["diffusion"], subfolder="unet").eval(),
            AutoencoderKL.from_pretrained(release["diffusion"], subfolder="vae").eval(),
            released_pixels(image, large=64, small=56),
            noise=draw_noise((4, 8, 8), seed=0, draw=0),
            empty_prompt=empty,
        )
        wrapped = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(release["base"]), release["adapter"]
        ).eval()
        ids, words = inputs["input_ids"][0], wrapped.get_input_embeddings()
        first = int((ids == 12).nonzero()[0])
        embeds = torch.cat([words(ids[:first]), tokens, words(ids[first + 64 :])])
        expected = wrapped(inputs_embeds=embeds[None]).logits
        found = model(**inputs).logits
    assert expected.shape == (1, len(ids), 12)
    torch.testing.assert_close(found[..., :12], expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    assert empty.abs().max() > 0.1  # so that leaving it out would show


def test_the_folder_says_how_it_came_about(converted):
    model = AutoModelForImageTextToText.from_pretrained(converted)
    config = model.config
    assert config.normalisation == "as-released"
    assert config.origin == "converted from the adapter adapter; pixels normalised as released"
    assert (config.diffusion_config.timestep, config.diffusion_config.image_size, config.diffusion_config.block) == (
        100,
        64,
        1,
    )
    assert config.image_token_id == 12
    processor = AutoProcessor.from_pretrained(converted)
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == 12
    assert {one.stat().st_mode & 0o777 for one in converted.iterdir()} == {0o644}


def test_the_placeholder_is_never_said(converted):
    model, processor = AutoModelForImageTextToText.from_pretrained(converted), AutoProcessor.from_pretrained(converted)
    inputs = processor(images=picture(), text="USER : <image> Describe", return_tensors="pt")

    def first_word(**options):
        return int(model.generate(**inputs, max_new_tokens=1, do_sample=False, **options)[0, -1])

    with torch.no_grad():
        assert model.lm_head.weight[12].abs().max() == 0
        # So that it would like to say it.
        model.lm_head.weight[12] = 100 * model.model(**inputs).last_hidden_state[0, -1]
        assert first_word(suppress_tokens=[]) == 12
        assert first_word() != 12


def test_both_kinds_of_files_are_read(release, adapter, converted, tmp_path):
    as_safetensors(adapter / "non_lora_trainables.bin")
    from safetensors.torch import load_file

    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    again = AutoModelForImageTextToText.from_pretrained(convert(adapter, release["base"], tmp_path / "out"))
    first = AutoModelForImageTextToText.from_pretrained(converted)
    for (name, one), (_, other) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_half_precision_is_kept_but_for_the_vae(release, tmp_path):
    found = convert(release["adapter"], release["base"], tmp_path / "out", dtype="float16")
    model = AutoModelForImageTextToText.from_pretrained(found)
    assert model.dtype == torch.float16
    assert next(model.model.diffusion_tower.vae.parameters()).dtype == torch.float32


def refused(match, release, adapter, out, error=ModelError, **options):
    with pytest.raises(error, match=match):
        convert(adapter, options.pop("base", release["base"]), out, **options)
    assert not out.exists()
    assert not [one for one in out.parent.iterdir() if one.name.startswith(".out")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(PREFIX + "vt_pe"), r"non_lora_trainables lacks 1 tensors, the first 'vt_pe'"),
        (
            lambda t: t.update({PREFIX + "vt_pos": torch.zeros(1)}),
            r"the first '.*mm_projector.vt_pos'.*Did you mean 'vt_pe'",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": torch.zeros(1)}),
            r"not known, the first 'model.embed_tokens.weight'",
        ),
        (
            lambda t: t.update({PREFIX + "linear.0.bias": torch.zeros(3)}),
            r"'linear.0.bias' has shape \(3,\), expected \(32,\)",
        ),
        (
            lambda t: t.update({PREFIX + "clip_pe": torch.zeros(64, 9)}),
            r"clip_pe has width \(9,\), the text encoder of .* \(12,\)",
        ),
        (lambda t: t.update({PREFIX + "vt_pe": 3}), r"holds something other than named tensors"),
    ],
)
def test_loose_tensors_that_are_missing_unknown_or_misshapen(release, adapter, tmp_path, change, message):
    edit_loose(adapter, change)
    refused(message, release, adapter, tmp_path / "out")


@pytest.mark.parametrize("spoil", ["missing", "unknown", "shape", "nan"])
def test_lora_tensors_that_are_missing_unknown_or_misshapen(release, adapter, tmp_path, spoil):
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    messages = {
        "missing": rf"adapter_model lacks 1 tensors, the first '{name}'",
        "unknown": r"adapter_model holds 1 tensors that are not known, the first '.*k_proj.lora_A.weight'",
        "shape": rf"adapter_model: '{name}' has shape \(4, 5\), expected \(4, 32\)",
        "nan": "The adapter cannot be merged",
    }
    if spoil == "missing":
        del tensors[name]
    elif spoil == "unknown":
        tensors[name.replace("q_proj", "k_proj")] = tensors[name].clone()
    else:
        tensors[name] = torch.zeros(4, 5) if spoil == "shape" else tensors[name] * float("nan")
    save_file(tensors, path)
    refused(messages[spoil], release, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("adapter_config.json", {"peft_type": "IA3"}, r"of a 'IA3' adapter, expected 'LORA'"),
        ("adapter_config.json", {"use_dora": True}, r"sets use_dora=True, which is not understood"),
        ("adapter_config.json", {"megatron_config": {"a": 1}}, r"sets megatron_config="),
        ("adapter_config.json", {"target_modules": ["nowhere"]}, r"does not fit the base model"),
        ("adapter_config.json", {"target_modules": None}, r"names no target_modules"),
        (
            "config.json",
            {"mm_projector_type": "mlp2x_gelu"},
            r"mm_projector_type='mlp2x_gelu'; a DiffLMM has 'SDCLIPBlock'",
        ),
        (
            "config.json",
            {"mm_vision_sd_clip": None},
            r"does not say which model to take \(mm_vision_sd_clip\); name it with clip=",
        ),
        (
            "config.json",
            {"mm_vision_tower": "no-such-folder/x/y"},
            r"Stable Diffusion could not be loaded from 'no-such-folder",
        ),
        ("config.json", {"mm_vision_resolution": 96}, r"gives a grid of 12 x 12 but CLIP has 8 x 8"),
        ("config.json", {"mm_vision_sd_timestep": "100"}, r"says mm_vision_sd_timestep='100'; expected a whole number"),
        ("config.json", {"mm_vision_select_layer": 5}, r"block=5 does not exist"),
    ],
)
def test_settings_that_are_not_understood(release, adapter, tmp_path, file, values, message):
    edit_json(adapter / file, **values)
    refused(message, release, adapter, tmp_path / "out")


def test_files_that_are_missing_or_hostile(release, adapter, tmp_path, capsys):
    loose = adapter / "non_lora_trainables.bin"

    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    loose.write_bytes(pickle.dumps({"x": Hostile()}))
    refused("non_lora_trainables.bin cannot be read as tensors", release, adapter, tmp_path / "out")
    assert "executed" not in capsys.readouterr().out
    loose.unlink()
    refused(r"has no non_lora_trainables.safetensors or non_lora_trainables.bin", release, adapter, tmp_path / "out")
    (adapter / "adapter_config.json").write_text("[1]")
    refused("adapter_config.json holds a list, expected an object", release, adapter, tmp_path / "out")
    (adapter / "adapter_config.json").write_text("{")
    refused("adapter_config.json cannot be read as JSON", release, adapter, tmp_path / "out")
    (adapter / "adapter_config.json").unlink()
    refused("The adapter has no adapter_config.json", release, adapter, tmp_path / "out")


def test_parts_that_cannot_be_had(release, adapter, tmp_path):
    refused(
        "The base language model could not be loaded", release, adapter, tmp_path / "out", base=tmp_path / "nothing"
    )
    refused("CLIP could not be loaded from", release, adapter, tmp_path / "out", clip=str(tmp_path))
    bare = shutil.copytree(release["diffusion"], tmp_path / "bare")
    shutil.rmtree(bare / "text_encoder")
    refused("has no text_encoder: the released caption starts", release, adapter, tmp_path / "out", diffusion=str(bare))
    refused("dtype='int8' is not one that weights are kept in", release, adapter, tmp_path / "out", dtype="int8")


def test_a_folder_that_holds_something_is_left_alone(release, adapter, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(FileError, match="exists already"):
        convert(adapter, release["base"], tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_nothing_is_left_of_a_folder_that_could_not_be_finished(release, adapter, tmp_path, monkeypatch):
    from transformers import LlavaProcessor

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlavaProcessor, "save_pretrained", full)
    refused("cannot be written to .*No space left", release, adapter, tmp_path / "out", error=FileError)
