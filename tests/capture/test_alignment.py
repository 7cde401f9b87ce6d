"""A planted look: token j looks at the one bright spot of the image, and the record says so, in the image's own pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from tests.capture.reference import inputs_of, random_answer, with_answer
from tests.tiny import tiny_llava

SIZE, PATCH = 32, 8


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _frame(preparation, height, width):
    """(scale, offset) per axis of the processed picture, straight from the table in the method."""
    if preparation == "squash":
        return (SIZE / height, SIZE / width), (0.0, 0.0)
    if preparation == "pad":
        side = max(height, width)
        scale = SIZE / side
        return (scale, scale), (scale * ((side - height) // 2), scale * ((side - width) // 2))
    short = min(height, width)
    resized = [SIZE if one == short else int(SIZE * one / short) for one in (height, width)]
    scale = (resized[0] / height, resized[1] / width)
    return scale, tuple(-((one - SIZE) // 2) for one in resized)


def _spotted(rng, preparation):
    """A dark image with a bright spot at the middle of a random visible cell: image, (row, col) of the cell, spot's middle."""
    while True:
        height, width = rng.randint(14, 150), rng.randint(14, 150)
        scale, offset = _frame(preparation, height, width)
        cell = rng.randrange(4), rng.randrange(4)
        middle = [((cell[i] + 0.5) * PATCH - offset[i]) / scale[i] for i in range(2)]
        half = [PATCH / scale[i] * 0.44 for i in range(2)]
        if all(half[i] <= middle[i] <= (height, width)[i] - half[i] for i in range(2)):
            break
    pixels = np.full((height, width, 3), 30, np.uint8)
    top, left = (max(round(middle[i] - half[i]), 0) for i in range(2))
    bottom, right = (max(round(middle[i] + half[i]), low + 1) for i, low in enumerate((top, left)))
    pixels[top:bottom, left:right] = 230
    return Image.fromarray(pixels), cell, middle


def _see_brightness_alone(model):
    """Make each visual token a function of its own patch's brightness: nothing else of the model is touched."""
    vision = model.model.vision_tower
    with torch.no_grad():
        for name, weight in vision.named_parameters():
            if "position_embedding" in name or "out_proj" in name or "fc2" in name:
                weight.zero_()
            if "patch_embedding" in name:
                weight.fill_(1 / weight[0].numel())
                weight[::2] *= -1


def _plant(monkeypatch, state):
    """Behind the rotary embedding, row ``state["row"]`` asks for whatever image key is unlike the others; the rest look ahead."""
    from transformers.models.llama import modeling_llama

    def planted(q, k, cos, sin, *args, **kwargs):
        done = state["fed"].setdefault(state["layer"], 0)
        state["fed"][state["layer"]] += k.shape[2]
        if done == 0:
            keys = k[0, :, state["image"]]  # (head, patch, channel)
            usual = keys.median(dim=1, keepdim=True).values
            state["ask", state["layer"]] = (keys - usual).gather(
                1, (keys - usual).norm(dim=-1).argmax(1)[:, None, None].expand(-1, 1, keys.shape[-1])
            )[:, 0]
        row = state["row"] - done
        q = torch.zeros_like(q)
        if 0 <= row < q.shape[2]:
            ask = state["ask", state["layer"]]
            ask = 300 * ask / ask.norm(dim=-1, keepdim=True) ** 2
            q[0, :, row] = ask.repeat_interleave(2, dim=0)
        return q, k

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", planted)


def _watch_layers(model, state):
    def enter(module, args, kwargs):
        state["layer"] = module.layer_idx

    return [one.self_attn.register_forward_pre_hook(enter, with_kwargs=True) for one in model.get_decoder().layers]


@pytest.mark.parametrize("preparation", ["crop", "pad", "squash"])
def test_the_planted_look_is_found_at_its_token_and_its_place(preparation, monkeypatch):
    subject = tiny_llava(preparation=preparation, seed=12)
    _see_brightness_alone(subject.model)
    # What a text token asks is planted; text keys lie apart from image keys only by chance, so they are kept small.
    with torch.no_grad():
        subject.model.get_input_embeddings().weight.mul_(1e-3)
    state, rng, misses = {}, random.Random(preparation), []
    _plant(monkeypatch, state)
    _watch_layers(subject.model, state)
    for trial in range(120):
        image, cell, middle = _spotted(rng, preparation)
        prompt = " ".join(rng.choice(["a", "dog", "red", "Describe"]) for _ in range(rng.randint(1, 9)))
        inputs = inputs_of(subject, image, prompt, padding=rng.choice([0, 0, 3]))
        ids = random_answer(subject, rng)
        whole = with_answer(inputs, ids)["input_ids"][0].tolist()
        start, token = len(whole) - len(ids), rng.randrange(len(ids))
        query_row = rng.choice(["predicting", "own"])
        state.update(
            row=start + token - (query_row == "predicting"),
            image=[i for i, one in enumerate(whole) if one == 3],
            fed={},
        )
        record = _record(subject, inputs, ids, image, query_row)
        values = record.layers[0].values[0].sum(0)  # layer 0, whose image keys depend on their own patch alone
        found = np.unravel_index(int(values[token].argmax()), (4, 4))
        top, left, bottom, right = record.layers[0].grid.boxes[cell]
        inside = top <= middle[0] < bottom and left <= middle[1] < right
        others = [one for one in range(len(ids)) if one != token]
        # No other row was planted: they attend evenly, so nothing stands out there.
        flat = all(float(values[one].max()) < 1.5 * float(values[one].mean()) for one in others)
        if found != cell or not inside or float(values[token].max()) < 0.5 * 4 or not flat:
            misses.append((trial, image.size, token, cell, found, inside, flat, float(values[token].max())))
    assert not misses


def _record(subject, inputs, ids, image, query_row):
    from probe.capture.recorder import Recorder

    options = {"layers": 0, "heads": None, "queries": "answer", "offload": False, "verify": "all"}
    start = inputs["input_ids"].shape[1]
    with Recorder(subject.model, subject.processor, **options, query_row=query_row, answer_start=start) as recorder:
        subject.model(**with_answer(inputs, ids), use_cache=False)
    return recorder.result(image=image)


def test_the_planted_look_is_found_while_generating(monkeypatch):
    subject = tiny_llava(preparation="pad", seed=13)
    _see_brightness_alone(subject.model)
    with torch.no_grad():
        subject.model.get_input_embeddings().weight.mul_(1e-3)
    state, rng = {}, random.Random(13)
    _plant(monkeypatch, state)
    _watch_layers(subject.model, state)
    for _ in range(30):
        image, cell, _middle = _spotted(rng, "pad")
        inputs = inputs_of(subject, image, padding=rng.choice([0, 3]))
        ids = inputs["input_ids"][0].tolist()
        token, query_row = rng.randrange(5), rng.choice(["predicting", "own"])
        row = len(ids) + token - (query_row == "predicting")
        state.update(row=row, image=[i for i, one in enumerate(ids) if one == 3], fed={})
        with probe.record(subject, layers=0, query_row=query_row, verify="all") as recorder:
            subject.model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        values = recorder.result(image=image).layers[0].values[0].sum(0)
        peaks = values.flatten(1).max(1).values
        assert int(peaks.argmax()) == token
        assert np.unravel_index(int(values[token].argmax()), (4, 4)) == cell
