"""What is recorded of a U-Net is what it computed: against diffusers' own processor that computes every weight."""

from __future__ import annotations

import pytest
import torch

import probe
from probe.capture.diffusion import DiffusionRecorder
from probe.capture.sdpa import edit_sdpa
from probe.capture.unets import unet_attention
from probe.files import load, save
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava
from tests.tiny_diffusion import LENGTH, eager_maps, heard, tiny_sd, tiny_sdxl, unet_inputs

PIPELINES = {"sd": tiny_sd, "sdxl": tiny_sdxl}
ALLOWED = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def generate(pipeline, prompt="a red circle", *, steps=3, **options):
    random = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=steps, output_type="np", generator=random, **options).images


def words_of(maps, count):
    """(head, token, patch) of (head, patch, key): everything from key ``count`` on is padding, summed."""
    parts = [maps[..., :count], maps[..., count:].sum(-1, keepdim=True)]
    return torch.cat(parts, -1).transpose(1, 2)


def largest_difference(record, calls, pipeline, *, row, pick=None):
    """Largest difference from the plain maps over all timesteps, layers and heads; ``pick`` chooses the rows of self-attention."""
    plain, worst = eager_maps(pipeline, calls, crossed=pick is None), 0.0
    for step, maps in enumerate(plain):
        assert set(maps) == {layer.name for layer in record.layers}
        for layer in record.layers:
            one = maps[layer.name][row]
            one = words_of(one, len(record.tokens) - 1) if pick is None else one[:, pick[one.shape[1]]]
            worst = max(worst, float((layer.values[step].flatten(2) - one).abs().max()))
    return worst


@pytest.mark.parametrize("name", PIPELINES)
def test_words_are_named_and_their_mean_is_theirs_alone(name):
    pipeline = PIPELINES[name](seed=1)
    with probe.record(pipeline, timesteps="all", verify="all") as recorder:
        generate(pipeline)
    record = recorder.result()
    assert record.tokens == ("<|startoftext|>", "a", "red", "circle", "<|endoftext|>", "[padding]")
    assert record.token_ids == (*pipeline.tokenizer("a red circle")["input_ids"], -1)
    assert [record.text[slice(*one)] for one in record.spans] == ["", "a", "red", "circle", "", ""]
    assert record.certificate.layers == len(record.layers)
    for layer in record.layers:
        assert layer.timesteps == tuple(int(one) for one in pipeline.scheduler.timesteps) == (667, 334, 1)
        assert torch.equal(layer.token_mean, layer.values[:, :, 1:4].mean(2))
        assert layer.rest.abs().max() == 0


@pytest.mark.parametrize("name", PIPELINES)
def test_self_attention_equals_eager_from_the_patches_asked_for(name):
    pipeline = PIPELINES[name](dtype=torch.float64, seed=1)
    cells = [(0, 0), (5, 2), (7, 6)]
    with (
        heard(pipeline.unet) as calls,
        probe.record(pipeline, place="self-attention", timesteps="all", patches=cells, verify="all") as recorder,
    ):
        generate(pipeline)
    record = recorder.result()
    # Patches of 8 x 8, 4 x 4 and 2 x 2 grids that hold these latents, by hand.
    pick = {64: [0, 42, 62], 16: [0, 9, 15], 4: [0, 2, 3]}
    assert largest_difference(record, calls, pipeline, row=1, pick=pick) <= 1e-12
    assert record.tokens == ("(0, 0)", "(5, 2)", "(7, 6)")
    assert (record.query_kind, record.softmax_over) == ("patch", "patches")
    for layer in record.layers:
        assert (layer.values.sum((-2, -1)) - 1).abs().max() <= 1e-5


def test_the_default_patches_of_self_attention_are_spread_evenly():
    for size, expected in ((8, 64), ((16, 4), 32)):
        with probe.record(pipeline := tiny_sd(size=size), place="self-attention") as recorder:
            generate(pipeline, steps=1)
        assert len(set(recorder.result().tokens)) == expected
    assert recorder.result().tokens[:5] == ("(1, 0)", "(1, 1)", "(1, 2)", "(1, 3)", "(3, 0)")


@pytest.mark.parametrize("size", [8, (8, 6), (10, 6), (16, 8)])
def test_each_layer_has_its_own_grid_in_the_pictures_pixels(size):
    pipeline = tiny_sd(size=size)
    with probe.record(pipeline) as recorder:
        images = generate(pipeline, steps=1)
    record = recorder.result(image=(images[0] * 255).astype("uint8"))
    height, width = (size, size) if isinstance(size, int) else size
    assert record.image_size == images.shape[1:3] == (4 * height, 4 * width)
    shapes = [layer.grid.shape for layer in record.layers]
    large, middle, small = ((-(-height // k), -(-width // k)) for k in (1, 2, 4))
    assert shapes == [large, middle, small, middle, middle, large, large]
    for layer, edge in zip(record.layers, (4, 8, 16, 8, 8, 4, 4), strict=True):
        assert layer.grid.row_edges == tuple(edge * i for i in range(layer.grid.shape[0] + 1))
        assert layer.grid.patch_size == edge


def test_a_changed_latent_moves_the_patch_that_lies_there():
    pipeline = tiny_sd(seed=3)

    def recorded(latents):
        with torch.no_grad(), probe.record(pipeline, layers=[0], verify="off") as recorder:
            states = pipeline.encode_prompt("a red circle", "cpu", 1, False)
            pipeline.unet(latents, 10, encoder_hidden_states=states[0])
        return recorder.result().layers[0].values[0]

    for row, col in ((2, 5), (5, 2), (4, 3)):
        # Random convolutions spread a change to the neighbours, unevenly: its middle, over many pictures, is where it was made.
        change = torch.zeros(8, 8)
        for seed in range(12):
            latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            plain = recorded(latents)
            latents[..., row, col] += 1
            change += (recorded(latents) - plain).abs().sum((0, 1))
        change = (change - change.median()).clamp(min=0)
        middle = [float((change.sum(axis) * torch.arange(8)).sum() / change.sum()) for axis in (1, 0)]
        assert (round(middle[0]), round(middle[1])) == (row, col), middle


@pytest.mark.parametrize("name", PIPELINES)
def test_the_unconditional_half_is_the_one_of_the_negative_prompt(name):
    pipeline = PIPELINES[name](dtype=torch.float64, seed=2)
    with heard(pipeline.unet) as calls, probe.record(pipeline, guidance="unconditional", timesteps="all") as recorder:
        generate(pipeline, negative_prompt="two blue squares", steps=2)
    record = recorder.result()
    assert record.text == record.source.prompt == "two blue squares"
    assert largest_difference(record, calls, pipeline, row=0) <= 1e-12
    assert largest_difference(record, calls, pipeline, row=1) > 1e-2


def test_an_empty_negative_prompt_has_no_words_but_keys():
    pipeline = tiny_sd()
    with probe.record(pipeline, guidance="unconditional") as recorder:
        generate(pipeline, steps=1)
    record = recorder.result()
    assert record.tokens == ("<|startoftext|>", "<|endoftext|>", "[padding]")
    assert all(layer.token_mean.abs().max() == 0 for layer in record.layers)


@pytest.mark.parametrize("place", ["cross-attention", "self-attention"])
def test_the_mean_over_timesteps_is_that_of_all_of_them(place):
    pipeline = tiny_sd()
    with (
        probe.record(pipeline, place=place, timesteps="all") as every,
        probe.record(pipeline, place=place, offload=True) as mean,
        probe.record(pipeline, place=place, layers="mid_block", heads=[1], verify="off") as part,
    ):
        generate(pipeline, steps=7)
    every, mean, part = every.result(), mean.result(), part.result()
    assert mean.history == ("mean over 7 timesteps",)
    assert (every.history, len(every.layers[0].timesteps)) == ((), 7)
    for one, other in zip(every.layers, mean.layers, strict=True):
        expected = one.values.double().mean(0, keepdim=True).float()
        assert (expected - other.values).abs().max() <= 1e-7
        assert other.timesteps == (-1,)
    [layer] = [one for one in mean.layers if one.name.startswith("mid_block")]
    assert torch.equal(part.layers[0].values, layer.values[:, 1:])
    assert (part.layers[0].heads, len(part.layers)) == ((1,), 1)
    assert not part.certificate.passed  # nothing was checked, and it says so


def test_a_long_recording_holds_no_more_than_a_short_one():
    pipeline = tiny_sd()

    def held(steps):
        with probe.record(pipeline) as recorder:
            generate(pipeline, steps=steps)
        return sum(one._sum.numel() + len(one._kept) for one in recorder.stores.values())

    assert held(1) == held(9)


def test_words_are_found_by_their_characters_in_the_prompt_as_it_was_written():
    pipeline = tiny_sd()
    prompt = "A Red CIRCLE, and a café 🐶"
    with probe.record(pipeline) as recorder:
        generate(pipeline, prompt, steps=1)
    record = recorder.result()
    assert record.text == prompt
    assert record["red circle"].tokens == ("Red", "CIRCLE")
    assert record["café"].tokens == ("ca", "f", "é")
    assert set(record["🐶"].tokens) == {"🐶"}
    for layer in record.layers:
        assert (layer.values.sum(2) - 1).abs().max() <= 1e-5


def test_a_prompt_that_fills_the_text_encoder_has_no_padding():
    pipeline = tiny_sd()
    with probe.record(pipeline) as recorder:
        generate(pipeline, "a " * (LENGTH - 2), steps=1)
    assert recorder.result().tokens == ("<|startoftext|>", *["a"] * (LENGTH - 2), "<|endoftext|>")


def test_layers_come_in_the_order_in_which_they_run():
    pipeline = tiny_sdxl()
    ran = []
    handles = [
        one.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        for name, one in pipeline.unet.named_modules()
        if name.endswith(("attn1", "attn2"))
    ]
    for place, ending in (("cross-attention", "attn2"), ("self-attention", "attn1")):
        ran.clear()
        with probe.record(pipeline, place=place) as recorder:
            generate(pipeline, steps=1)
        assert [layer.name for layer in recorder.result().layers] == [one for one in ran if one.endswith(ending)]
    for one in handles:
        one.remove()


def test_several_recorders_and_a_language_model_at_once():
    subject, pipeline = tiny_llava(), tiny_sd()
    inputs = inputs_of(subject, picture())
    alone = []
    with probe.record(pipeline) as recorder:
        generate(pipeline)
    alone.append(recorder.result())
    with probe.record(subject, queries="prompt") as recorder:
        subject.model(**inputs)
    alone.append(recorder.result())
    with (
        probe.record(pipeline) as first,
        probe.record(subject, queries="prompt") as language,
        probe.record(pipeline, place="self-attention") as second,
    ):
        generate(pipeline)
        subject.model(**inputs)
    for record, other in zip(alone, (first.result(), language.result()), strict=True):
        for one, two in zip(record.layers, other.layers, strict=True):
            assert torch.equal(one.values, two.values)
    assert second.result().certificate.passed


def test_a_record_of_timesteps_is_the_same_after_a_file(tmp_path):
    pipeline = tiny_sdxl()
    with probe.record(pipeline, timesteps="all") as recorder:
        generate(pipeline)
    record = recorder.result()
    part = record.select(timesteps=[2, 0])
    again = load(save(part, tmp_path / "record.safetensors"))
    for one, saved, whole in zip(part.layers, again.layers, record.layers, strict=True):
        assert one.timesteps == saved.timesteps == (1, 667)
        assert torch.equal(saved.values, whole.values[[2, 0]])
    assert record.mean("timestep").layers[0].timesteps == (-1,)
    assert again.softmax_over == "tokens"


def test_a_processor_that_fuses_its_projections_is_recorded():
    pipeline = tiny_sd(dtype=torch.float64)
    with probe.record(pipeline) as recorder:
        plain = generate(pipeline)
    pipeline.unet.fuse_qkv_projections()
    with DiffusionRecorder(pipeline, verify="all") as fused:
        assert abs(generate(pipeline) - plain).max() <= 1e-9
    for one, other in zip(recorder.result().layers, fused.result().layers, strict=True):
        assert (one.values - other.values).abs().max() <= 1e-9


def test_keys_that_are_masked_get_nothing():
    pipeline = tiny_sd(dtype=torch.float64, seed=1)
    mask = torch.ones(1, LENGTH)
    mask[:, 6:] = 0  # all of the padding but the first, as some callers mask it
    inputs = unet_inputs(pipeline)
    with torch.no_grad(), heard(pipeline.unet) as calls, probe.record(pipeline, verify="all") as recorder:
        inputs["encoder_hidden_states"] = pipeline.encode_prompt("a red circle", "cpu", 1, False)[0]
        pipeline.unet(**inputs, encoder_attention_mask=mask)
    record = recorder.result()
    assert record.certificate.passed
    assert largest_difference(record, calls, pipeline, row=0) <= 1e-12
    [maps] = eager_maps(pipeline, calls, crossed=True)
    for layer in record.layers:
        # What goes to "[padding]" is what goes to the one position of it that is left.
        assert (layer.values[0, :, -1].flatten(1) - maps[layer.name][0, :, :, 5]).abs().max() <= 1e-12


def test_a_head_that_is_taken_away_is_as_if_its_slice_were_zeroed_before_the_projection():
    pipeline = tiny_sd(seed=1)
    modules = {module: 1 for _, module in unet_attention(pipeline.unet, "cross-attention")}
    inputs = unet_inputs(pipeline, batch=2)

    def without(module, call):
        output = call.output.clone()
        output[:, :, modules[module]] = 0
        return output

    def zeroed(module, args):
        states = args[0].clone()
        states[..., states.shape[-1] // 2 :] = 0
        return (states,)

    with torch.no_grad():
        plain = pipeline.unet(**inputs).sample
        with edit_sdpa(modules, without, name="head 1"):
            edited = pipeline.unet(**inputs).sample
        handles = [module.to_out[0].register_forward_pre_hook(zeroed) for module in modules]
        expected = pipeline.unet(**inputs).sample
        for one in handles:
            one.remove()
        assert torch.equal(edited, expected)
        assert not torch.equal(edited, plain)
        assert torch.equal(pipeline.unet(**inputs).sample, plain)


def test_a_record_says_what_was_edited_while_it_was_made():
    pipeline = tiny_sd()
    modules = [module for _, module in unet_attention(pipeline.unet, "self-attention")]
    without = edit_sdpa(modules[:1], lambda one, call: call.output * 0, name="first self-attention")
    with without, probe.record(pipeline) as recorder:
        generate(pipeline, steps=2)
    assert recorder.result().source.ablation == "first self-attention"
    with probe.record(pipeline) as recorder:
        generate(pipeline, steps=2)
    assert recorder.result().source.ablation == ""
