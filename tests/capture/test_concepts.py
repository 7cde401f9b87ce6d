"""ConceptAttention's map is that of a pass in which nothing sees the concepts, written plainly with a mask."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

import probe
from probe.capture import concepts
from probe.errors import CaptureError, CertificateError, InputError
from probe.files import load, save
from tests.names import shown
from tests.tiny import picture
from tests.tiny_diffusion import LENGTH, heard, tiny_sd
from tests.tiny_transformers import tiny_flux, tiny_pixart, tiny_sd3

NAMES = ["circle", "blue squares", "grass"]
MAKE = {"sd3": tiny_sd3, "flux": tiny_flux}
T5 = {"sd3": 256, "flux": 512}  # the pipelines' own defaults
PATCHES = 16


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Masked(TorchFunctionMode):
    """Joint attention in which prompt and patches do not see the concepts, nor concepts the prompt; keeps what it gives out."""

    def __init__(self, name, text):
        super().__init__()
        self.name, self.text, self.outputs = name, text, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        total = given["query"].shape[2]
        if total != self.text + len(NAMES) + PATCHES:
            return function(*args, **kwargs)  # T5, CLIP, or patches alone
        begin = self.text + (PATCHES if self.name == "sd3" else 0)
        asked = torch.zeros(total, dtype=torch.bool)
        asked[begin : begin + len(NAMES)] = True
        words = torch.zeros(total, dtype=torch.bool)
        words[begin - self.text : begin] = True
        allowed = ~(asked[None, :] & ~asked[:, None]) & ~(asked[:, None] & words[None, :])
        weights = (given["query"] @ given["key"].mT / given["query"].shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        output = weights.softmax(-1) @ given["value"]
        self.outputs.append((output, asked, ~asked & ~words))
        return output


@pytest.mark.parametrize("name", MAKE)
def test_maps_are_those_of_a_plain_pass_under_a_mask(name):
    pipeline = MAKE[name](dtype=torch.float64, seed=3)
    with heard(pipeline.transformer) as calls:
        record = probe.concept_maps(
            probe.load_model(pipeline), picture(50, 71), "a red circle", NAMES, timesteps=(200, 700), seed=4
        )
    text = T5[name] + (LENGTH if name == "sd3" else 0)
    # Each timestep plainly, and with the concepts.
    assert [one[1]["encoder_hidden_states"].shape[1] for one in calls] == [text, text + 3] * 2
    for step, (args, kwargs) in enumerate(calls[1::2]):
        with torch.no_grad(), Masked(name, text) as mode:
            pipeline.transformer(*args, **kwargs)
        for layer, (output, asked, image) in zip(record.layers, mode.outputs, strict=False):
            flat = output[0].transpose(0, 1).flatten(1)
            expected = (flat[asked] @ flat[image].T).softmax(0)
            assert (layer.values[step, 0].flatten(1) - expected).abs().max() <= 1e-12
    assert (record.quantity, record.query_kind, record.softmax_over) == ("concept similarity", "concept", "tokens")
    assert record.tokens == tuple(NAMES)
    assert record["blue squares"].tokens == ("blue squares",)
    assert len(record.layers) == {"sd3": 3, "flux": 2}[name]
    assert record.layers[0].timesteps == (200, 700)
    assert all((layer.values.sum(2) - 1).abs().max() <= 1e-12 for layer in record.layers)
    assert record.certificate.passed
    assert record.certificate.max_error <= 1e-12
    assert (record.image_size, record.layers[0].grid.shape) == ((50, 71), (4, 4))


@pytest.mark.parametrize("name", MAKE)
def test_patches_and_prompt_are_what_they_are_without_concepts(name):
    pipeline = MAKE[name](seed=3)
    record = probe.concept_maps(probe.load_model(pipeline), picture(), "a red circle", NAMES, layers=[0])
    assert record.certificate.passed
    assert record.certificate.max_error <= 1e-5
    other = probe.concept_maps(probe.load_model(pipeline), picture(), "a red circle", NAMES, layers=[0])
    assert torch.equal(record.layers[0].values, other.layers[0].values)
    assert torch.nn.functional.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


def test_concepts_that_are_seen_fail_the_certificate(monkeypatch):
    real = concepts._Stream.__call__

    def seen(self, module, call):
        real(self, module, call)
        return call.output

    monkeypatch.setattr(concepts._Stream, "__call__", seen)
    with pytest.raises(CertificateError, match="gives out something else"):
        probe.concept_maps(probe.load_model(tiny_flux()), picture(), "a red circle", NAMES)


def test_a_concept_is_not_a_word_of_the_prompt_and_survives_a_file(tmp_path):
    record = probe.concept_maps(probe.load_model(tiny_sd3()), picture(), "a red circle", NAMES)
    again = load(save(record, tmp_path / "record.safetensors"))
    assert (again.quantity, again.source.prompt, again.text) == ("concept similarity", "a red circle", ", ".join(NAMES))
    assert torch.equal(again.layers[0].values, record.layers[0].values)


@pytest.mark.parametrize(
    ("make", "given", "error", "message"),
    [
        (tiny_sd3, {"concepts": ["cat"]}, InputError, "two or more different texts"),
        (tiny_sd3, {"concepts": ["cat", "cat"]}, InputError, "two or more different texts"),
        (tiny_sd3, {"concepts": ["cat", " "]}, InputError, "holds no word"),
        (tiny_sd3, {"timesteps": 0}, InputError, "1 to 1000"),
        (tiny_sd3, {"layers": "up_blocks"}, InputError, "No block 'up_blocks'"),
        (tiny_pixart, {}, CaptureError, "needs the Subject of a pipeline with joint attention"),
        (tiny_sd, {}, CaptureError, "needs the Subject of a pipeline with joint attention"),
        (lambda: tiny_sd3(t5=False), {}, CaptureError, "has no T5"),
    ],
    ids=shown,
)
def test_what_has_no_concept_maps_is_refused(make, given, error, message):
    options = {"concepts": NAMES} | given
    with pytest.raises(error, match=message):
        probe.concept_maps(probe.load_model(make()), picture(), "a red circle", options.pop("concepts"), **options)
