"""What scoring costs in time and memory, paired with a scorer that scans all annotations for each image: numbers to read, never a
verdict.

python -m tests.speed.evaluation --json
python -m tests.speed.evaluation --images 500 --pairs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from probe.evaluation.grounded_conversations import GroundedConversations
from probe.evaluation.matching import legacy_pairs, paired_iou
from probe.evaluation.predictions import PredictedPhrase, Prediction
from probe.evaluation.run_lengths import encode
from probe.evaluation.similarity import TextEncoder
from probe.evaluation.tallies import Scores, score_predictions
from probe.evaluation.truths import TruePhrase, Truth

__all__ = ["made", "naive", "streamed"]

SIZE = (480, 640)
PHRASES = 4
WORDS = ("a red circle", "the blue square", "two dogs", "a man")
#: Ellipses that are drawn once: masks of every image are taken from these.
DRAWN = 200


class Alike:
    """All words are alike: what is timed is masks and pairings."""

    name = "all alike"

    def __call__(self, texts: list[str]) -> np.ndarray:
        """(phrase, 1) ones."""
        return np.ones((len(texts), 1))


def made(images: int, *, sizes: bool = False) -> Iterator[tuple[Truth, Prediction]]:
    """Truths and predictions of that many images, four phrases each; with ``sizes`` every other image stands upright."""
    rng = np.random.default_rng(0)
    text = ", ".join(WORDS)
    spans = [(word, text.index(word), text.index(word) + len(word)) for word in WORDS]
    drawn = {size: [encode(_ellipse(rng, size)) for _ in range(DRAWN)] for size in (SIZE, SIZE[::-1])[: 1 + sizes]}
    for number in range(images):
        size = SIZE[::-1] if sizes and number % 2 else SIZE
        chosen = rng.integers(0, DRAWN, (2, PHRASES))
        chosen[1] = np.where(rng.random(PHRASES) < 0.5, chosen[0], chosen[1])
        true, found = ([drawn[size][one] for one in each] for each in chosen)
        yield (
            Truth(
                str(number), str(number), size, text, tuple(TruePhrase(*a, b) for a, b in zip(spans, true, strict=True))
            ),
            Prediction(
                str(number), size, text, tuple(PredictedPhrase(*a, b) for a, b in zip(spans, found, strict=True))
            ),
        )


def _ellipse(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """An ellipse with a rough edge, whose run lengths are as long as those of a photograph's object."""
    rows, cols = np.ogrid[: size[0], : size[1]]
    row, col = rng.uniform(0.2, 0.8, 2) * size
    tall, wide = rng.uniform(0.1, 0.4, 2) * size
    rough = rng.normal(0, 0.01, size)
    return ((rows - row) / tall) ** 2 + ((cols - col) / wide) ** 2 + rough < 1


def streamed(
    pairs: Iterator[tuple[Truth, Prediction]] | list[tuple[Truth, Prediction]], encoder: TextEncoder
) -> Scores:
    """The tables, from one image after the other."""
    waiting: list[Prediction] = []

    def truths() -> Iterator[Truth]:
        for true, found in pairs:
            waiting.append(found)
            yield true

    def predictions() -> Iterator[Prediction]:
        while waiting:
            yield waiting.pop()

    return score_predictions(GroundedConversations(encoder, captions=False), truths(), predictions())


def naive(pairs: list[tuple[Truth, Prediction]]) -> tuple[float, float]:
    """mIoU and legacy recall as a plain scorer has them: for each image it looks through all annotations twice, and draws masks."""
    true = [{"image_id": one.name, "segmentation": part.mask} for one, _ in pairs for part in one.phrases]
    found = [{"image_id": one.name, "segmentation": part.mask} for _, one in pairs for part in one.phrases]
    means, hits = [], 0
    for one, _ in pairs:
        for measure in ("mIoU", "recall"):
            masks = [
                [coco_mask.decode(each["segmentation"]) for each in listed if each["image_id"] == one.name]
                for listed in (found, true)
            ]
            ious = np.array(
                [[np.logical_and(a, b).sum() / np.logical_or(a, b).sum() for b in masks[1]] for a in masks[0]]
            )
            if measure == "mIoU":
                means.append(paired_iou(ious))
            else:
                hits += len(legacy_pairs(ious.T, np.ones_like(ious.T)))
    return float(np.mean(means)), hits / len(true)


def ratio(images: int, pairs: int) -> dict[str, Any]:
    """Seconds of both on the same images, in turns, and the plain scorer's share of ours; that they agree is checked."""
    given = list(made(images))
    rounds = []
    for number in range(pairs):
        seconds = {}
        for way in ("streamed", "naive")[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            found: Any = streamed(given, Alike()) if way == "streamed" else naive(given)
            seconds[way] = time.perf_counter() - start
            if way == "streamed":
                ours = found.value("mIoU"), found.value("recall, legacy")
            else:
                plain = found
        if not np.allclose(ours, plain, rtol=0, atol=1e-12):
            raise SystemExit(f"the two scorers disagree: {ours} and {plain}")
        rounds.append(seconds)
    return {
        "images": images,
        "naive_seconds": statistics.median(one["naive"] for one in rounds),
        "streamed_seconds": statistics.median(one["streamed"] for one in rounds),
        "naive_to_streamed": statistics.median(one["naive"] / one["streamed"] for one in rounds),
        "rounds": [one["naive"] / one["streamed"] for one in rounds],
    }


def child(arguments: argparse.Namespace) -> None:
    """Prints seconds and the peak of this process, in MB, with masks made as they are needed."""
    start = time.perf_counter()
    made_in = sum(1 for _ in made(arguments.images, sizes=arguments.sizes))
    making = time.perf_counter() - start
    start = time.perf_counter()
    streamed(made(arguments.images, sizes=arguments.sizes), Alike())
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": seconds, "of_which_making": making, "images": made_in, "peak_mb": peak}))


def fresh(images: int, *, sizes: bool = False) -> dict[str, float]:
    """What ``child`` prints in a process of its own."""
    command = [sys.executable, "-m", "tests.speed.evaluation", "--child", "--images", str(images)]
    command += ["--sizes"] if sizes else []
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(printed.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--naive-images", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    found: dict[str, Any] = fresh(arguments.images)
    found["peak_mb_at_a_tenth"] = fresh(max(arguments.images // 10, 1))["peak_mb"]
    found["two_sizes_seconds"] = fresh(arguments.images, sizes=True)["seconds"]
    found["naive"] = ratio(arguments.naive_images, arguments.pairs)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:22}{value}")


if __name__ == "__main__":
    main()
