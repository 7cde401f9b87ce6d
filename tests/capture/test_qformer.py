"""BLIP-2 and InstructBLIP: what learned queries gather, by plain lines; and that nothing gives it out for maps of words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import probe
from probe.capture import projections, qformer_checks
from probe.capture.projections import watch_projections
from probe.capture.qformer import QFormerRecorder, qformer_of
from probe.capture.weights import attention_rows
from probe.errors import CaptureError, CertificateError, InputError
from probe.family_checks import check_family
from probe.grounding.segment import attend_and_segment
from probe.plots.maps import phrase_map
from probe.tiny import tiny_model
from tests.tiny import picture

NAMES = ["blip_2", "instructblip"]
QUERIES, PATCHES = 6, 16


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _inputs(subject, shown, text="Describe the image."):
    made = dict(subject.processor(images=shown, text=text, return_tensors="pt"))
    made["pixel_values"] = made["pixel_values"].to(subject.model.dtype)
    return made


def _read(subject, inputs, **options):
    with torch.inference_mode(), probe.record(subject, **options) as recorder:
        subject.model(**inputs)
    return recorder


@pytest.mark.parametrize("name", [*NAMES, "blip_2_vision"])
def test_check_passes_in_both_number_types(name):
    report = check_family(name)
    assert report.passed, report.report or report.why
    assert report.parity <= 1e-6
    assert report.parity_float64 <= 1e-12
    assert report.certificate <= 1e-5
    assert (report.state_differences, report.geometry_wrong_cells) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_rows_equal_a_plain_softmax(name, dtype):
    subject = tiny_model(name)
    subject = replace(subject, model=subject.model.to(dtype))
    shown, given = picture(40, 56), []
    _, modules = qformer_of(subject.model)
    handles = [
        one.register_forward_pre_hook(lambda m, args, kwargs: given.append((m, kwargs)), with_kwargs=True)
        for _, one in modules
    ]
    record = _read(subject, _inputs(subject, shown), verify="all").result(image=shown)
    for one in handles:
        one.remove()
    assert (record.query_kind, record.softmax_over, record.text) == ("query token", "patches", "")
    assert record.tokens == tuple(f"[query {i}]" for i in range(QUERIES))
    assert [one.name for one in record.layers] == [name for name, _ in modules]
    assert len(record.layers) == len(given) == 2
    for layer, (module, kwargs) in zip(record.layers, given, strict=True):
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            with torch.inference_mode():
                query = module.query(kwargs["hidden_states"])[0, :, part]
                key = module.key(kwargs["encoder_hidden_states"])[0, :, part]
            plain = ((query @ key.T) / 8**0.5).softmax(-1)
            allowed = 1e-12 if dtype == torch.float64 else 1e-6
            assert plain.shape == (QUERIES, 1 + PATCHES)
            assert float((layer.values[0, head].flatten(-2) - plain[:, 1:]).abs().max()) <= allowed
            assert float((layer.rest[0, head].sum(-1) - plain[:, 0]).abs().max()) <= allowed
        assert float((layer.values[0, 0] - layer.values[0, 1]).abs().max()) > 0.01, "heads must differ"
    # 40 x 56 pixels squashed to 4 x 4 patches.
    assert record.layers[0].grid.row_edges == (0, 10, 20, 30, 40)
    assert record.layers[0].grid.col_edges == (0, 14, 28, 42, 56)


@pytest.mark.parametrize("name", NAMES)
def test_generating_leaves_the_same_record_and_answer(name):
    subject, shown = tiny_model(name), picture()
    inputs = _inputs(subject, shown)
    options = {"max_new_tokens": 4, "do_sample": False}
    plain = subject.model.generate(**inputs, **options)
    with probe.record(subject, verify="all") as recorder:
        watched = subject.model.generate(**inputs, **options)
    assert torch.equal(plain, watched)
    for one, other in zip(
        recorder.result(image=shown).layers, _read(subject, inputs).result(image=shown).layers, strict=True
    ):
        assert torch.equal(one.values, other.values)


def test_only_instructblip_gathers_by_what_is_asked():
    shown = picture()
    for name, alike in (("blip_2", True), ("instructblip", False)):
        subject = tiny_model(name)
        maps = [
            _read(subject, _inputs(subject, shown, text)).result().layers[-1].values for text in ("a dog", "a red ball")
        ]
        assert torch.equal(*maps) is alike


@pytest.mark.parametrize("name", NAMES)
def test_no_map_is_given_out_for_a_word(name, tmp_path):
    subject, shown = tiny_model(name), picture()
    for options in ({}, {"answer": "a dog"}, {"queries": "prompt"}):
        with pytest.raises(InputError, match="no map belongs to a word of its answer"):
            probe.run(subject, shown, "Describe the image.", **options)
    with pytest.raises(InputError, match="'language model' is not in a model of family"):
        probe.record(subject, place="language model")
    with pytest.raises(InputError, match="queries= is no option of place 'q-former', which takes nothing besides"):
        probe.record(subject, queries="answer")
    record = _read(subject, _inputs(subject, shown)).result(image=shown)
    with pytest.raises(InputError, match="dog"):
        record["dog"]
    assert attend_and_segment(record, shown).phrases == ()
    assert "which stand for no word" in phrase_map(record, reading="attention", view=None).label
    assert "query token" in repr(record)
    with pytest.raises(InputError, match="language model"), probe.ablate(subject, heads=[(0, 0)]):
        pass
    probe.save(record, tmp_path / "record.safetensors")
    assert probe.load(tmp_path / "record.safetensors").query_kind == "query token"


def test_the_vision_encoder_inside_is_read_too():
    subject, shown = tiny_model("blip_2"), picture()
    record = _read(subject, _inputs(subject, shown), place="image encoder", verify="all").result(image=shown)
    assert (record.query_kind, record.softmax_over, len(record.layers)) == ("class token", "sequence", 2)
    assert record.certificate.passed


def test_what_cannot_be_read_is_refused(monkeypatch):
    subject, shown = tiny_model("blip_2"), picture()
    inputs = _inputs(subject, shown)
    with pytest.raises(InputError, match="layer 2 does not exist: there are 2"):
        probe.record(subject, layers=2)
    with pytest.raises(CaptureError, match="Nothing was recorded"), probe.record(subject) as recorder:
        recorder.result()
    two = {name: torch.cat([one, one]) for name, one in inputs.items()}
    with pytest.raises(CaptureError, match="one image at a time"), probe.record(subject):
        subject.model(**two)
    subject.model.train()
    with pytest.raises(CaptureError, match=r"dropout of 0\.1 is on"):
        _read(subject, inputs)
    subject.model.eval()
    with pytest.raises(InputError, match="is not the one that the model saw"):
        _read(subject, inputs).result(image=picture(seed=1))
    message = "Linear has no projections called query, key, value"
    with pytest.raises(CaptureError, match=message), watch_projections([torch.nn.Linear(2, 2)], lambda *a: None):
        pass


def test_a_softmax_that_is_not_plain_fails_the_certificate():
    subject, shown = tiny_model("blip_2"), picture()
    _, modules = qformer_of(subject.model)
    # What is done between projections and output is not seen: here half of the value is lost on the way.
    handle = modules[1][1].register_forward_hook(lambda module, args, output: (output[0] * 0.5, *output[1:]))
    with pytest.raises(
        CertificateError, match=r"does not rebuild what the model computed: largest error .* in .*crossattention"
    ):
        _read(subject, _inputs(subject, shown)).result(image=shown)
    handle.remove()
    assert _read(subject, _inputs(subject, shown)).result(image=shown).certificate.passed


def test_planted_faults_fail_the_question_that_asks_for_them(monkeypatch):
    subject, shown = tiny_model("blip_2"), picture()

    def failed():
        return {one.name for one in qformer_checks.check_qformer(subject, shown).results if not one.passed}

    with monkeypatch.context() as patch:
        patch.setattr("probe.capture.encoders.attention_rows", lambda *a, **k: attention_rows(*a, **k).flip(0))
        assert failed() == {"certificate", "eager parity"}
    with monkeypatch.context() as patch:
        real = QFormerRecorder._keep
        turned = lambda self, module, weights, tokens: real(self, module, weights, tokens[::-1])  # noqa: E731
        patch.setattr(QFormerRecorder, "_keep", turned)
        patch.setattr(
            QFormerRecorder, "_layer", lambda self, module, name, grid: _sorted_layer(self, module, name, grid)
        )
        assert failed() == {"eager parity"}
    assert projections.UNSEEN in str(qformer_checks.check_qformer(subject, shown).kernel)
    assert failed() == set()


def _sorted_layer(recorder, module, name, grid):
    """A layer with its rows in the order of the tokens that the store was told they are."""
    layer = super(QFormerRecorder, recorder)._layer(module, name, grid)
    return replace(layer, values=layer.values[:, :, torch.tensor(recorder.stores[module].tokens).argsort()])
