"""R10: a planted look: token j looks at the one bright spot of the image, and the record says so, in the image's own pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from tests.capture.reference import inputs_of, random_answer, with_answer
from tests.tiny import tiny_llava

#: How pictures are prepared, the side of the processed one, and of a patch in it.
SHAPES = [("crop", 32, 8), ("pad", 32, 8), ("squash", 32, 8), ("pad", 48, 6), ("crop", 42, 14)]
TEMPLATES = [
    "USER: <image>\n{prompt} ASSISTANT:",
    "<image>{prompt}",
    "{prompt} <image> ASSISTANT:",
    "a man {prompt}\n\n<image>\n\nDescribe 🐶 the image.",
]
TARGET = "0 misses of 10,000"


def _frame(preparation, height, width, size):
    """(scale, offset) per axis of the processed picture, straight from the table in the method."""
    if preparation == "squash":
        return (size / height, size / width), (0.0, 0.0)
    if preparation == "pad":
        side = max(height, width)
        scale = size / side
        return (scale, scale), (scale * ((side - height) // 2), scale * ((side - width) // 2))
    short = min(height, width)
    resized = [size if one == short else int(size * one / short) for one in (height, width)]
    scale = (resized[0] / height, resized[1] / width)
    return scale, tuple(-((one - size) // 2) for one in resized)


def _spotted(rng, preparation, side, patch):
    """A dark image with a bright spot at the middle of a random visible cell: image, (row, col) of the cell, spot's middle,
    and the number of a cell that is dark.
    """
    while True:
        height, width = rng.randint(14, 150), rng.randint(14, 150)
        scale, offset = _frame(preparation, height, width, side)
        cell = rng.randrange(side // patch), rng.randrange(side // patch)
        middle = [((cell[i] + 0.5) * patch - offset[i]) / scale[i] for i in range(2)]
        half = [patch / scale[i] * 0.44 for i in range(2)]
        whole = [
            one
            for one in np.ndindex(side // patch, side // patch)
            if _inside(one, patch, scale, offset, (height, width))
        ]
        apart = [max(abs(one[0] - cell[0]), abs(one[1] - cell[1])) for one in whole]
        top, left = (max(round(middle[i] - half[i]), 0) for i in range(2))
        bottom, right = (max(round(middle[i] + half[i]), low + 1) for i, low in enumerate((top, left)))
        # The spot's whole pixels lie within the cell, or a neighbour would be bright too.
        within = all(
            cell[i] * patch - 0.2
            <= low * scale[i] + offset[i]
            < high * scale[i] + offset[i]
            <= (cell[i] + 1) * patch + 0.2
            for i, (low, high) in enumerate(((top, bottom), (left, right)))
        )
        visible = all(half[i] <= middle[i] <= (height, width)[i] - half[i] for i in range(2))
        # Fewer pixels than three would be smeared into the neighbours where the picture is enlarged.
        if visible and within and max(apart, default=0) > 1 and min(bottom - top, right - left) >= 3:
            break
    pixels = np.full((height, width, 3), 30, np.uint8)
    pixels[top:bottom, left:right] = 230
    dark = whole[int(np.argmax(apart))]
    return Image.fromarray(pixels), cell, middle, dark[0] * (side // patch) + dark[1]


def _inside(cell, patch, scale, offset, size):
    """Whether a cell of the processed picture shows the image alone, and no padding."""
    edges = [((cell[i] + step) * patch - offset[i]) / scale[i] for i in range(2) for step in (0, 1)]
    return edges[0] >= 0 and edges[2] >= 0 and edges[1] <= size[0] and edges[3] <= size[1]


def _see_brightness_alone(model):
    """Make each visual token a function of its own patch's brightness: nothing else of the model is touched.

    Every position is the same constant, across the brightness: without it a normalisation would make as much of the faintest
    brightness, that of padding, as of the strongest.
    """
    vision = model.model.vision_tower
    with torch.no_grad():
        for name, weight in vision.named_parameters():
            if "out_proj" in name or "fc2" in name:
                weight.zero_()
            if "position_embedding" in name:
                weight.copy_(torch.tensor([1.0, 1, -1, -1]).repeat(weight.shape[1] // 4).expand_as(weight))
            if "patch_embedding" in name:
                weight.fill_(1 / weight[0].numel())
                weight[::2] *= -1


def _plant(monkeypatch, state):
    """Behind the rotary embedding, row ``state["row"]`` asks for the image key least like a dark one; the rest look ahead."""
    from transformers.models.llama import modeling_llama

    def planted(q, k, cos, sin, *args, **kwargs):
        done = state["fed"].setdefault(state["layer"], 0)
        state["fed"][state["layer"]] += k.shape[2]
        if done == 0:
            keys = k[0, :, state["image"]]  # (head, patch, channel)
            usual = keys[:, state["dark"]][:, None]
            state["ask", state["layer"]] = (keys - usual).gather(
                1, (keys - usual).norm(dim=-1).argmax(1)[:, None, None].expand(-1, 1, keys.shape[-1])
            )[:, 0]
        row = state["row"] - done
        q = torch.zeros_like(q)
        if 0 <= row < q.shape[2]:
            ask = state["ask", state["layer"]]
            ask = 600 * ask / ask.norm(dim=-1, keepdim=True) ** 2
            q[0, :, row] = ask.repeat_interleave(2, dim=0)
        return q, k

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", planted)


def _watch_layers(model, state):
    def enter(module, args, kwargs):
        state["layer"] = module.layer_idx

    return [one.self_attn.register_forward_pre_hook(enter, with_kwargs=True) for one in model.get_decoder().layers]


@pytest.mark.promises("R10")
@pytest.mark.parametrize(("preparation", "side", "patch"), SHAPES)
def test_the_planted_look_is_found_at_its_token_and_its_place(preparation, side, patch, line, full, monkeypatch):
    looks, count = line("R10", target=TARGET), side // patch
    subject = tiny_llava(preparation=preparation, size=side, patch=patch, seed=12)
    _see_brightness_alone(subject.model)
    # What a text token asks is planted; text keys lie apart from image keys only by chance, so they are kept small.
    with torch.no_grad():
        subject.model.get_input_embeddings().weight.mul_(1e-3)
    state, rng = {}, random.Random(f"{preparation}{side}")
    _plant(monkeypatch, state)
    _watch_layers(subject.model, state)
    for _ in range(1900 if full else 110):
        image, cell, middle, dark = _spotted(rng, preparation, side, patch)
        prompt = " ".join(rng.choice(["a", "dog", "red", "Describe"]) for _ in range(rng.randint(1, 9)))
        inputs = inputs_of(subject, image, prompt, padding=rng.choice([0, 0, 3]), template=rng.choice(TEMPLATES))
        ids = random_answer(subject, rng)
        whole = with_answer(inputs, ids)["input_ids"][0].tolist()
        start, token = len(whole) - len(ids), rng.randrange(len(ids))
        query_row = rng.choice(["predicting", "own"])
        state.update(
            row=start + token - (query_row == "predicting"),
            image=[i for i, one in enumerate(whole) if one == 3],
            dark=dark,
            fed={},
        )
        record = _record(subject, inputs, ids, image, query_row)
        values = record.layers[0].values[0].sum(0)  # layer 0, whose image keys depend on their own patch alone
        found = np.unravel_index(int(values[token].argmax()), (count, count))
        top, left, bottom, right = record.layers[0].grid.boxes[cell]
        inside = top <= middle[0] < bottom and left <= middle[1] < right
        others = [one for one in range(len(ids)) if one != token]
        # No other row was planted: they attend evenly, so nothing stands out there.
        flat = all(float(values[one].max()) < 1.5 * float(values[one].mean()) for one in others)
        right = found == cell and inside and float(values[token].max()) >= 0.5 * 4 and flat
        looks.trial(right, silent=True, what=(image.size, token, cell, found, inside, flat))
    looks.settle()


def _record(subject, inputs, ids, image, query_row):
    from probe.capture.recorder import Recorder

    options = {"layers": 0, "heads": None, "queries": "answer", "offload": False, "verify": "all"}
    start = inputs["input_ids"].shape[1]
    with Recorder(subject.model, subject.processor, **options, query_row=query_row, answer_start=start) as recorder:
        subject.model(**with_answer(inputs, ids), use_cache=False)
    return recorder.result(image=image)


@pytest.mark.promises("R10")
def test_the_planted_look_is_found_while_generating(line, full, monkeypatch):
    looks = line("R10", target=TARGET)
    subject = tiny_llava(preparation="pad", seed=13)
    _see_brightness_alone(subject.model)
    with torch.no_grad():
        subject.model.get_input_embeddings().weight.mul_(1e-3)
    state, rng = {}, random.Random(13)
    _plant(monkeypatch, state)
    _watch_layers(subject.model, state)
    for _ in range(500 if full else 30):
        image, cell, _, dark = _spotted(rng, "pad", 32, 8)
        inputs = inputs_of(subject, image, padding=rng.choice([0, 3]))
        ids = inputs["input_ids"][0].tolist()
        token, query_row = rng.randrange(5), rng.choice(["predicting", "own"])
        row = len(ids) + token - (query_row == "predicting")
        state.update(row=row, image=[i for i, one in enumerate(ids) if one == 3], dark=dark, fed={})
        with probe.record(subject, layers=0, query_row=query_row, verify="all") as recorder:
            subject.model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, suppress_tokens=[3])
        values = recorder.result(image=image).layers[0].values[0].sum(0)
        peaks = values.flatten(1).max(1).values
        right = int(peaks.argmax()) == token and np.unravel_index(int(values[token].argmax()), (4, 4)) == cell
        looks.trial(right, silent=True, what=(image.size, token, cell, query_row))
    looks.settle()
