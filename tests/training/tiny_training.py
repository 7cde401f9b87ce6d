"""What a tiny training needs: parts as folders, and records with pictures, in seconds and without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from probe.training.plans import TrainingPlan
from tests.difflmm.released import write_release
from tests.difflmm.tiny_difflmm import tiny_config
from tests.tiny import picture, tiny_processor

__all__ = ["conversation", "plan_of", "write_parts", "write_records"]

CAPTIONS = ("a red ball", "two dogs on the grass", "a man near a café", "a dog in the park")


def write_parts(root: Path) -> dict[str, str]:
    """The folders "language_model", "clip" and "diffusion" by the names that a plan has for them."""
    places = write_release(root)
    torch.manual_seed(1)
    words = tiny_processor().tokenizer
    LlamaForCausalLM(tiny_config(text={"initializer_range": 0.1}).text_config).save_pretrained(root / "words")
    words.save_pretrained(root / "words")
    return {"language_model": str(root / "words"), "clip": str(places["clip"]), "diffusion": str(places["diffusion"])}


def conversation(number: int, *, image: bool = True, turns: int = 1) -> dict[str, Any]:
    """A record as LLaVA writes it."""
    said = []
    for turn in range(turns):
        question = "Describe the image." if turn == 0 else f"and the {turn} dogs?"
        said.append({"from": "human", "value": ("<image>\n" if image and turn == 0 else "") + question})
        said.append({"from": "gpt", "value": CAPTIONS[(number + turn) % len(CAPTIONS)]})
    return {"id": f"pair-{number}", **({"image": f"{number}.png"} if image else {}), "conversations": said}


def write_records(root: Path, records: list[dict[str, Any]] | int = 6) -> dict[str, str]:
    """A file of records and the pictures that they name, by the names that a plan has for them."""
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = [conversation(number) for number in range(records)] if isinstance(records, int) else records
    for number, record in enumerate(records):
        name = record.get("image") if isinstance(record, dict) else None
        if isinstance(name, str) and not (images / name).exists():
            picture(30 + number, 44, seed=number).save(images / name)
    (root / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return {"data": str(root / "data.json"), "images": str(images)}


def plan_of(**settings: Any) -> TrainingPlan:
    """A plan of few quick steps on a CPU; the settings replace its own."""
    own = {
        "prompt": "plain",
        "steps": 4,
        "batch_size": 4,
        "device_batch_size": 2,
        "learning_rate": 1e-2,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "save_every": 2,
        "workers": 0,
        "device": "cpu",
    }
    return TrainingPlan(**own | settings)  # type: ignore[arg-type]
