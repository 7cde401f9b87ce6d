"""What users of a GPU run, as far as a CPU can show it: half precision, spread-out models, quantised weights, flash attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import probe
from probe.capture.checks import check
from probe.tiny import tiny_model
from tests.capture.families import LANGUAGE, batch_of
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _flash(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, sliding_window=None, softcap=None, **options
):
    """What flash attention computes, told by the padding mask alone: each row from the last keys on, within its window."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    length = key.shape[2] if attention_mask is None else attention_mask.shape[1]
    key, value = key[:, :, :length], value[:, :, :length]
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    row = torch.arange(query.shape[2])[:, None] + length - query.shape[2]
    column = torch.arange(length)
    hidden = column > row
    if sliding_window is not None:
        hidden = hidden | (column <= row - sliding_window)
    scores = scores.masked_fill(hidden, -torch.inf)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask[:, None, None].bool(), -torch.inf)
    # Rows of padding see nothing, and are left at zero.
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _under(subject, kernel):
    """The same subject, told to use a kernel that needs a GPU."""
    for part in (subject.model.get_decoder().config, subject.model.config.get_text_config()):
        part._attn_implementation = kernel
    return subject


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_value_heads": 1},
        {"text": "mistral", "sliding_window": 11},
        {"text": "gemma2", "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 5, "sliding_window": 9},
    ],
    ids=str,
)
def test_flash_attention_is_seen_under_its_name(kernel, options, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, kernel, _flash)
    shown = [picture(seed=1), picture(seed=2)]
    records = []
    for name in (kernel, "eager"):
        subject = _under(tiny_llava(seed=4, attention="eager", **options), name)
        inputs = batch_of(subject, [([shown[0]], "a dog"), ([shown[1]], "Describe the image. a man")])
        with torch.inference_mode(), probe.record(subject, verify="all") as recorder:
            subject.model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=[2, 3])
        records.append(recorder.results(images=shown))
    for one, other in zip(*records, strict=True):
        assert (one.source.kernel, other.source.kernel) == (kernel, "eager")
        assert one.certificate.passed
        assert one.token_ids == other.token_ids
        for layer, reference in zip(one.layers, other.layers, strict=True):
            torch.testing.assert_close(layer.values, reference.values, atol=1e-5, rtol=0)
            torch.testing.assert_close(layer.rest, reference.rest, atol=1e-5, rtol=0)


def test_packed_sequences_are_refused(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", _flash)
    subject = _under(tiny_llava(), "flash_attention_2")
    inputs = inputs_of(subject, picture())
    ends = torch.tensor([0, 10, inputs["input_ids"].shape[1]], dtype=torch.int32)
    with (
        pytest.raises(probe.ProbeError, match="'cu_seq_lens_q', which is not understood"),
        probe.record(subject, queries="prompt"),
    ):
        subject.model(**inputs, cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=20, max_length_k=20)


class _Int8Linear(nn.Module):
    """A linear layer whose weights are kept in 8 bits, as bitsandbytes and torchao keep them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.detach())
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale, self.bias)


def test_quantised_weights_are_recorded_since_attention_itself_is_not_quantised():
    subject = tiny_llava(seed=2)
    for layer in subject.model.get_decoder().layers:
        for part in (layer.self_attn, layer.mlp):
            for name, one in list(part.named_children()):
                if isinstance(one, nn.Linear):
                    setattr(part, name, _Int8Linear(one))
    assert any(one.dtype == torch.int8 for one in subject.model.state_dict().values())
    report = check(subject, image=picture(), max_new_tokens=4)
    assert report.passed, report


def _with_torchao(decoder):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(decoder, quantization.Int8WeightOnlyConfig())


def _with_bitsandbytes(decoder):
    layers = pytest.importorskip("bitsandbytes").nn
    for layer in decoder.layers:
        for name, one in list(layer.self_attn.named_children()):
            if isinstance(one, nn.Linear):
                small = layers.Linear8bitLt(one.in_features, one.out_features, bias=False, has_fp16_weights=False)
                small.weight = layers.Int8Params(one.weight.data, requires_grad=False, has_fp16_weights=False)
                setattr(layer.self_attn, name, small.to("cpu"))


@pytest.mark.parametrize("quantise", [_with_torchao, _with_bitsandbytes])
def test_weights_that_a_library_quantised_are_recorded(quantise):
    subject = tiny_llava(seed=2)
    plain = subject.model.get_decoder().layers[0].self_attn.q_proj.weight
    quantise(subject.model.get_decoder())
    assert type(subject.model.get_decoder().layers[0].self_attn.q_proj.weight) is not type(plain)
    report = check(subject, image=picture(), max_new_tokens=4)
    assert report.passed, report


def test_a_model_spread_over_memory_and_disk_is_recorded(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    plain, spread = tiny_llava(seed=3), tiny_llava(seed=3)
    inputs = inputs_of(plain, picture())
    parts = {f"model.language_model.layers.{number}": "cpu" if number else "disk" for number in range(3)}
    rest = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    rest += [f"model.language_model.{name}" for name in ("embed_tokens", "norm", "rotary_emb")]
    accelerate.dispatch_model(
        spread.model, parts | dict.fromkeys(rest, "cpu"), main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    found = []
    for subject in (plain, spread):
        with torch.inference_mode(), probe.record(subject, verify="all") as recorder:
            subject.model.generate(**inputs, max_new_tokens=5, do_sample=False)
        found.append(recorder.result(image=picture()))
    assert spread.model.get_decoder().layers[0].self_attn.q_proj.weight.device.type == "meta", "it lies on the disk"
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("name", [one for one in LANGUAGE if one != "llava"])
def test_half_precision_passes_its_certificate(name):
    subject = tiny_model(name)
    subject.model.to(torch.bfloat16)
    shown = picture(60, 90)
    inputs = batch_of(subject, [([shown], "a dog")])
    with torch.inference_mode(), probe.record(subject, verify="all") as recorder:
        subject.model.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=[3])
    record = recorder.result(image=shown)
    assert record.certificate.passed
    assert record.source.dtype == "bfloat16"
    assert record.layers[0].values.dtype == torch.float32


def test_offloaded_rows_are_the_same():
    subject = tiny_model("llava_next")
    shown = picture(60, 90)
    inputs = batch_of(subject, [([shown], "a dog")])
    found = []
    for offload in (False, True):
        with torch.inference_mode(), probe.record(subject, offload=offload) as recorder:
            subject.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        found.append(recorder.result(image=shown))
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.rest, other.rest)
