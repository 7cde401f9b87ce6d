"""Loading what is no language model: image encoders and diffusion pipelines, all of their weights or none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import probe
from probe.errors import ModelError
from tests.difflmm.tiny_difflmm import tiny_difflmm
from tests.tiny import tiny_clip, tiny_siglip
from tests.tiny_diffusion import tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(tiny_clip)``: the folder of that model as `save_pretrained` makes it."""
    made = {}

    def make(build):
        if build not in made:
            made[build] = tmp_path_factory.mktemp(build.__name__) / "model"
            found = build()
            for one in (found.model, found.processor) if hasattr(found, "processor") else [found]:
                one.save_pretrained(made[build])
        return made[build]

    return make


@pytest.fixture
def damaged(saved, tmp_path):
    return shutil.copytree(saved(tiny_sd), tmp_path / "model")


def refused(folder, match, **options):
    with pytest.raises(ModelError, match=match) as caught:
        probe.load_model(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("build", "name"), [(tiny_clip, "clip"), (tiny_siglip, "siglip")])
def test_image_encoders_come_back_as_they_were(saved, build, name):
    loaded = probe.load_model(saved(build))
    assert (loaded.family.name, loaded.family.kind, loaded.model.training) == (name, "image encoder", False)
    original = build().model.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.model.config.name_or_path == str(saved(build))


@pytest.mark.parametrize(
    ("build", "kind"), [(tiny_sd, "StableDiffusionPipeline"), (tiny_sdxl, "StableDiffusionXLPipeline")]
)
def test_pipelines_come_back_as_they_were(saved, build, kind):
    loaded = probe.load_model(saved(build))
    assert (type(loaded.model).__name__, loaded.family.name, loaded.family.kind) == (
        kind,
        "stable_diffusion",
        "diffusion",
    )
    assert loaded.processor is loaded.model.image_processor
    assert loaded.name == loaded.model.config["_name_or_path"] == str(saved(build))
    assert repr(loaded) == f"Subject({str(saved(build))!r}, family 'stable_diffusion', torch.float32, cpu)"
    original = build()
    for name in ("unet", "vae", "text_encoder"):
        found, expected = getattr(loaded.model, name), getattr(original, name).state_dict()
        assert not found.training
        assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    half = probe.load_model(saved(build), dtype="bfloat16").model
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.bfloat16}


def test_a_live_pipeline_brings_its_own_processor():
    pipeline = tiny_sd()
    subject = probe.load_model(pipeline)
    assert subject.model is pipeline
    assert subject.processor is pipeline.image_processor
    assert subject.name == "StableDiffusionPipeline"
    with pytest.raises(ModelError, match="live CLIPModel needs its processor too"):
        probe.load_model(tiny_clip().model)


def test_a_safety_checker_is_left_out(damaged):
    index = json.loads((damaged / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (damaged / "model_index.json").write_text(json.dumps(index))
    assert probe.load_model(damaged).model.safety_checker is None


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_weights_that_are_missing_or_of_another_shape_are_not_made_up(damaged, capfd, part, file):
    path = damaged / part / file
    weights = load_file(path)
    name = next(key for key in sorted(weights) if key.endswith("weight"))
    save_file({key: value for key, value in weights.items() if key != name}, path, metadata={"format": "pt"})
    capfd.readouterr()
    refused(damaged, rf"1 of the {part}'s weights are not in its checkpoint, the first '.*{name[-12:]}'")
    save_file(weights | {name: torch.zeros(3, 7)}, path, metadata={"format": "pt"})
    refused(damaged, "shape")
    assert capfd.readouterr().err == ""


def _another_pipeline(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionXXLPipeline"}))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            _another_pipeline,
            "StableDiffusionXXLPipeline' cannot be recorded yet.*Did you mean 'StableDiffusionXLPipeline'",
        ),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json is not valid JSON"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "model_index.json holds no parts"),
        (lambda folder: shutil.rmtree(folder / "unet"), "could not be loaded"),
        (lambda folder: (folder / "vae" / "config.json").write_text("{"), "could not be loaded"),
    ],
)
def test_a_damaged_pipeline_is_refused_in_one_line(damaged, damage, match):
    probe.load_model(damaged)
    damage(damaged)
    refused(damaged, match)


def test_a_difflmm_folder_is_loaded_without_importing_it_first(tmp_path):
    model, processor = tiny_difflmm()
    for one in (model, processor):
        one.save_pretrained(tmp_path)
    code = (
        "import sys, probe\n"
        f"subject = probe.load_model({str(tmp_path)!r})\n"
        "print(subject.family.name, subject.family.kind, type(subject.processor.image_processor).__name__)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout == "difflmm language model DiffLMMImageProcessorPil\n", found.stderr
    assert found.stderr == ""


def test_nothing_shows_on_the_screen(saved):
    code = "import sys, probe\nfor one in sys.argv[1:]: probe.load_model(one)\n"
    folders = [str(saved(one)) for one in (tiny_clip, tiny_siglip, tiny_sd, tiny_sdxl)]
    found = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_a_hub_name_of_a_pipeline_is_fetched_and_loaded(saved, monkeypatch):
    folder = saved(tiny_sd)
    monkeypatch.setattr("transformers.utils.cached_file", lambda *a, **k: str(folder / "model_index.json"))
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda name: str(folder))
    subject = probe.load_model("some-owner/some-pipeline")
    assert (subject.name, subject.family.kind) == ("some-owner/some-pipeline", "diffusion")
