"""What each stage trains: names, numbers by hand, learning rates, and where the LoRA may never be."""

from __future__ import annotations

import pytest
import torch

from probe.errors import InputError
from probe.training.stages import ModuleRow, prepare
from tests.difflmm.tiny_difflmm import tiny_difflmm
from tests.tiny import tiny_llava
from tests.training.tiny_training import plan_of

PARTS = {"data": "x", "language_model": "a", "clip": "b"}
RANK = 4
# Layers x rank x (in + out) of q, k, v, o, gate, up and down: width 32, key width 16, inner width 48.
LORA = 2 * RANK * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 48) + (48 + 32))


def rows_of(model, **settings):
    return prepare(model, plan_of(**PARTS, **settings)).table()


def test_stage_1_trains_the_projector_side_alone():
    model, _ = tiny_difflmm()
    whole = sum(one.numel() for one in model.parameters())
    rows = {row.module: row for row in rows_of(model, stage=1)}
    # Caption: 20 -> 12 -> 12 and 64 positions. Projector: norm and convolution of 16 channels, (10 + 20) -> 32 -> 32, positions.
    caption = 20 * 12 + 12 + 12 * 12 + 12 + 64 * 12
    projector = 2 * 16 + 16 * 10 + 10 + 30 * 32 + 32 + 32 * 32 + 32 + 64 * 32
    assert rows["model.diffusion_tower.caption"] == ModuleRow("model.diffusion_tower.caption", caption, caption, 1e-2)
    assert rows["model.multi_modal_projector"] == ModuleRow("model.multi_modal_projector", projector, projector, 1e-2)
    assert sum(row.trained for row in rows.values()) == caption + projector
    assert sum(row.parameters for row in rows.values()) == whole
    assert {row.learning_rate for row in rows.values() if not row.trained} == {0.0}


@pytest.mark.parametrize("make", [lambda: tiny_llava(num_hidden_layers=2).model, lambda: tiny_difflmm()[0]])
def test_the_lora_is_in_the_language_model_alone(make):
    stage = prepare(make(), plan_of(**PARTS, stage=2, lora_rank=RANK, projector_learning_rate=1e-4))
    adapted = {name.partition(".lora_")[0] for name in stage.trained() if ".lora_" in name}
    assert len(adapted) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in adapted)
    # The vision tower has modules of the same names, which suffixes would have hit.
    assert any(
        name.endswith("vision_tower.encoder.layers.0.self_attn.q_proj") for name, _ in stage.model.named_modules()
    )
    table = {row.module: row for row in stage.table()}
    assert table["model.language_model (LoRA)"] == ModuleRow("model.language_model (LoRA)", LORA, LORA, 1e-2)
    assert table["model.multi_modal_projector"].learning_rate == 1e-4
    lora, projector = stage.groups()
    assert (lora["lr"], projector["lr"]) == (1e-2, 1e-4)
    assert sum(one.numel() for one in lora["params"]) == LORA
    both = {id(one) for group in (lora, projector) for one in group["params"]}
    assert both == {id(one) for one in stage.model.parameters() if one.requires_grad}


def test_what_is_trained_is_kept_in_single_precision():
    stage = prepare(tiny_llava(dtype=torch.bfloat16).model, plan_of(**PARTS, stage=2, dtype="bfloat16"))
    kinds = {(one.requires_grad, one.dtype) for one in stage.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    model = stage.finish()
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_merging_adds_the_product_of_both_factors():
    stage = prepare(tiny_llava().model, plan_of(**PARTS, stage=2, lora_rank=RANK, lora_alpha=8))
    layer = stage.model.model.language_model.layers[0].mlp.down_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    expected = layer.base_layer.weight + 8 / RANK * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = stage.finish().model.language_model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(merged, expected.detach())


@pytest.mark.parametrize("targets", ["nothing", r".*norm", r"x)|(.*vision_tower.*q_proj"])
def test_targets_that_name_no_linear_layer_of_the_language_model_are_refused(targets):
    with pytest.raises(
        InputError, match=r"lora_targets=.* (cannot be used|outside the language model|regular expression)"
    ):
        prepare(tiny_llava().model, plan_of(**PARTS, stage=2, lora_targets=targets))
