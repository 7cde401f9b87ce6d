"""R16: copied, offloaded, compiled or wrapped, a model has its plain record, or a typed error names the cure."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import probe
from probe.errors import CaptureError, CertificateError
from tests.capture.plain import plain_softmax
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava
from tests.tiny_diffusion import tiny_sd

pytestmark = pytest.mark.promises("R16", target="the plain record, or a typed error")


@pytest.fixture(autouse=True)
def _fresh_graphs():
    yield
    torch.compiler.reset()  # graphs are kept for a class, and would serve the next test's model


def _subject():
    return tiny_llava(seed=3)


@pytest.fixture(scope="module")
def plain():
    """The record of a generated answer, and that of one pass over the prompt, of the model as it is."""
    return {way: _recorded(_subject(), way) for way in ("generate", "forward")}


def _run(model, inputs, way):
    if way == "generate":
        return model.generate(**inputs, max_new_tokens=5, do_sample=False)
    return model(**inputs)


def _recorded(subject, way, *, model=None, act=None):
    """The record of ``act(inputs)`` inside the context; by default the model itself runs."""
    model, inputs = subject.model if model is None else model, inputs_of(subject, picture())
    queries = "answer" if way == "generate" else "prompt"
    with probe.record(model, subject.processor, queries=queries, verify="all") as recorder:
        _run(model, inputs, way) if act is None else act(inputs)
    return recorder.result(image=picture())


def _equal(one, other, *, allowed=0.0):
    assert one.certificate.passed
    assert one.token_ids == other.token_ids
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert mine.name == theirs.name
        torch.testing.assert_close(mine.values, theirs.values, atol=allowed, rtol=0)
        torch.testing.assert_close(mine.rest, theirs.rest, atol=allowed, rtol=0)


# Copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "inside", "inside, and both are recorded"])
def test_a_deep_copy_has_the_record_of_its_original(moment, plain):
    subject = _subject()
    if moment == "before":
        _equal(_recorded(subject, "generate", model=copy.deepcopy(subject.model)), plain["generate"])
        return
    inputs = inputs_of(subject, picture())
    with probe.record(subject, verify="all") as recorder:
        twin = copy.deepcopy(subject.model)
        if moment.endswith("recorded"):
            _equal(_recorded(subject, "generate", model=twin), plain["generate"])
        twin.half()  # a change of the copy must not reach the record
        _run(subject.model, inputs, "generate")
    _equal(recorder.result(image=picture()), plain["generate"])
    # And the copy, which still carries copies of the hooks, is a model like any other.
    _equal(_recorded(subject, "generate", model=twin.float()), plain["generate"], allowed=5e-2)


# Number types and modes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_under_autocast_the_rows_are_those_of_the_rounded_kernel(attention):
    subject = tiny_llava(seed=3, attention=attention, num_key_value_heads=4)
    inputs = inputs_of(subject, picture())
    ids = inputs["input_ids"][0].tolist()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        with probe.record(subject, queries="prompt", verify="all") as recorder:
            subject.model(**inputs)
        record = recorder.result()
        if attention == "eager":
            return
        # The image encoder calls it too, before the language model.
        maps = plain_softmax(lambda: subject.model(**inputs))[-len(record.layers) :]
    assert record.source.dtype == "bfloat16"
    rows = [place for place, one in enumerate(ids) if one != 3]
    image = [place for place, one in enumerate(ids) if one == 3]
    for layer, weights in zip(record.layers, maps, strict=True):
        found = layer.values[0].flatten(2)
        # What the kernel is given is in single precision; it rounds that to eight bits itself.
        assert float((found - weights[0][:, rows][..., image]).abs().max()) < 0.1
        assert float((found - weights[0][:, rows][..., image]).abs().mean()) < 5e-3


def test_inference_mode_changes_nothing(plain):
    with torch.inference_mode():
        for way in plain:
            _equal(_recorded(_subject(), way), plain[way])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing_though_layers_run_again(reentrant, training, plain):
    subject = _subject()
    subject.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    subject.model.train(training)
    subject.model.enable_input_require_grads()
    runs = []
    subject.model.get_decoder().layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    act = lambda inputs: subject.model(**inputs, use_cache=False).logits.sum().backward()  # noqa: E731
    _equal(_recorded(subject, "forward", act=act), plain["forward"])
    assert len(runs) == (2 if training else 1), "the backward pass must have run the layers again"
    with torch.no_grad():
        cached = subject.model(**inputs_of(subject, picture()), use_cache=True).past_key_values
    if cached is None:  # older releases keep no keys while they train so
        with pytest.raises(CaptureError, match="keep use_cache on in generate"):
            _recorded(subject, "generate")
    else:
        _equal(_recorded(subject, "generate"), plain["generate"])


# Offloading -----------------------------------------------------------------------------------------------------------


def test_weights_that_come_when_they_are_needed(plain):
    import accelerate

    for offload in (accelerate.cpu_offload, lambda model, device: accelerate.cpu_offload_with_hook(model, device)):
        subject = _subject()
        offload(subject.model, torch.device("cpu"))
        assert hasattr(subject.model, "_hf_hook")
        _equal(_recorded(subject, "forward"), plain["forward"])


def _drawn(pipeline):
    with probe.record(pipeline, verify="all") as recorder:
        pipeline(
            "a red circle", num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0)
        )
    return recorder.result()


@pytest.mark.parametrize("way", ["models", "layers", "groups"])
def test_an_offloaded_pipeline_has_the_same_record(way):
    import accelerate

    pipeline, cpu = tiny_sd(seed=4), torch.device("cpu")
    if way == "models":
        for part in ("text_encoder", "unet", "vae"):  # as enable_model_cpu_offload does, which wants a GPU
            accelerate.cpu_offload_with_hook(getattr(pipeline, part), cpu)
    elif way == "layers":
        accelerate.cpu_offload(pipeline.unet, cpu)
        assert pipeline.unet.conv_in.weight.is_meta
    else:
        try:
            pipeline.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
        except AttributeError:
            pytest.skip("this release of diffusers offloads groups from a GPU alone")
    _equal(_drawn(pipeline), _drawn(tiny_sd(seed=4)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="keys are offloaded from a GPU alone, and there is none")
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache_changes_nothing(cache, plain):
    subject = _subject()
    subject.model.to("cuda")
    moved = {name: one.to("cuda") for name, one in inputs_of(subject, picture()).items()}
    act = lambda _: subject.model.generate(  # noqa: E731
        **moved, max_new_tokens=5, do_sample=False, cache_implementation=cache
    )
    _equal(_recorded(subject, "generate", act=act), plain["generate"], allowed=1e-4)


# torch.compile --------------------------------------------------------------------------------------------------------


def test_a_compiled_model_is_refused_and_its_original_recorded(plain):
    subject = _subject()
    compiled = torch.compile(subject.model, backend="eager")
    with pytest.raises(CaptureError, match=r"OptimizedModule is a model compiled by torch\.compile.*model\._orig_mod"):
        probe.record(compiled, subject.processor)
    with pytest.raises(CaptureError, match=r"model\._orig_mod"):
        probe.load_model(compiled, subject.processor)
    inputs = inputs_of(subject, picture())
    compiled(**inputs)
    for way in plain:
        _equal(_recorded(subject, way, model=compiled._orig_mod), plain[way])
    # A graph that was made before the context takes no notice of it.
    with pytest.raises(
        CaptureError, match=r"\(0 times\).* or runs compiled, so it cannot be recorded|Nothing was recorded"
    ):
        _recorded(subject, "forward", act=lambda inputs: compiled(**inputs))


def test_a_layer_that_is_compiled_inside_the_context_is_seen(plain):
    subject = _subject()

    def act(inputs):
        subject.model.get_decoder().layers[1].compile(backend="eager")
        subject.model(**inputs)

    _equal(_recorded(subject, "forward", act=act), plain["forward"])


def test_a_generate_that_compiles_its_steps_is_refused_before_it_does(plain):
    from transformers import CompileConfig

    subject, passes = _subject(), []
    settings = CompileConfig(backend="eager", fullgraph=False)
    settings._compile_all_devices = True  # transformers compiles on a GPU alone, unless told otherwise
    subject.model.register_forward_pre_hook(lambda *_: passes.append(1))

    def act(inputs, **options):
        options |= {"cache_implementation": "static", "compile_config": settings}
        subject.model.generate(**inputs, max_new_tokens=5, do_sample=False, **options)

    with pytest.raises(CaptureError, match=r"compiles its steps.* give it disable_compile=True, or the default cache"):
        _recorded(subject, "generate", act=act)
    assert not passes
    subject = _subject()
    record = _recorded(subject, "generate", act=lambda inputs: act(inputs, disable_compile=True))
    _equal(record, plain["generate"], allowed=2e-5)


# torch.func and tensors without values --------------------------------------------------------------------------------


def test_functional_calls_and_gradients_change_nothing(plain):
    from torch.func import functional_call, grad

    subject = _subject()
    model, weights = subject.model, dict(subject.model.named_parameters())
    for act in (
        lambda inputs: functional_call(model, weights, (), inputs),
        lambda inputs: grad(lambda own: functional_call(model, own, (), inputs).logits.sum())(weights),
    ):
        _equal(_recorded(subject, "forward", act=act), plain["forward"])


def test_passes_that_compute_no_values_are_refused():
    subject = _subject()

    def mapped(inputs):
        pixels = torch.stack([inputs.pop("pixel_values")] * 2)
        return torch.func.vmap(lambda one: subject.model(**inputs, pixel_values=one).logits)(pixels)

    with pytest.raises(CaptureError, match=r"runs under vmap.* run it on a batch"):
        _recorded(subject, "forward", act=mapped)
    with pytest.raises(CaptureError, match=r"have no values \(it runs under vmap or torch\.export"):
        _recorded(subject, "forward", act=lambda inputs: torch.export.export(subject.model, (), inputs))
    meta = lambda inputs: subject.model.to("meta")(**{name: one.to("meta") for name, one in inputs.items()})  # noqa: E731
    with pytest.raises(CaptureError, match=r"have no values .*meta device"):
        _recorded(subject, "forward", act=meta)


# Wrappers -------------------------------------------------------------------------------------------------------------


def test_parallel_wrappers_are_refused_and_what_they_hold_is_recorded(plain):
    subject = _subject()
    held = nn.DataParallel(subject.model)
    for take in (probe.record, probe.load_model):
        with pytest.raises(CaptureError, match=r"DataParallel runs copies of the model .* record model\.module"):
            take(held, subject.processor)
    _equal(_recorded(subject, "forward", model=held.module, act=lambda inputs: held(**inputs)), plain["forward"])


def test_a_model_for_gradients_of_several_processes(plain):
    import torch.distributed as distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        subject = _subject()
        held = nn.parallel.DistributedDataParallel(subject.model)
        with pytest.raises(CaptureError, match=r"DistributedDataParallel holds .* record model\.module"):
            probe.record(held, subject.processor)
        _equal(_recorded(subject, "forward", act=lambda inputs: held(**inputs)), plain["forward"])
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_the_model_inside_an_adapter_is_found(task, plain):
    peft = pytest.importorskip("peft")
    subject = _subject()
    settings = peft.LoraConfig(task_type=task, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    torch.manual_seed(0)
    adapter = peft.get_peft_model(subject.model, settings).eval()
    # The plain line: what torch's own function is given, with the adapter's weights.
    record = _recorded(subject, "forward", model=adapter)
    maps = plain_softmax(lambda: adapter(**inputs_of(subject, picture())))[-len(record.layers) :]
    ids = inputs_of(subject, picture())["input_ids"][0]
    for layer, weights in zip(record.layers, maps, strict=True):
        expected = weights[0][:, ids != 3][..., ids == 3]
        torch.testing.assert_close(layer.values[0].flatten(2).double(), expected, atol=1e-6, rtol=0)
    assert not torch.equal(record.layers[0].values, plain["forward"].layers[0].values)
    found = probe.load_model(adapter, subject.processor)
    assert found.model is subject.model
    _equal(_recorded(found, "generate"), _recorded(subject, "generate", model=adapter))
    with adapter.disable_adapter():
        _equal(_recorded(subject, "generate", model=adapter), plain["generate"])


def test_adapters_that_put_tokens_in_front_are_refused():
    peft = pytest.importorskip("peft")
    subject = _subject()
    adapter = peft.get_peft_model(subject.model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(CaptureError, match=r"PREFIX_TUNING puts virtual tokens .* model\.get_base_model\(\)"):
        probe.record(adapter, subject.processor)
    # Nor does it help to record the model inside while the adapter runs.
    with pytest.raises(CaptureError, match="key cache holds 3 positions but 0 were fed"):
        _recorded(subject, "generate", act=lambda inputs: adapter.generate(**inputs, max_new_tokens=2))


def test_an_attention_function_that_is_no_softmax_fails_its_certificate():
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    def linear(module, query, key, value, mask, **options):
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key.exp(), value))
        return (query.softmax(-1) @ (key.mT @ value)).transpose(1, 2), None

    AttentionInterface.register("users_linear", linear)
    AttentionMaskInterface.register("users_linear", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        subject = _subject()
        subject.model.set_attn_implementation("users_linear")
        with pytest.raises(
            CertificateError, match=r"under 'users_linear'\. The kernel does something that is not known"
        ):
            _recorded(subject, "generate")
    finally:
        for table in (AttentionInterface, AttentionMaskInterface):
            table._global_mapping.pop("users_linear", None)
