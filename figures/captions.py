"""Prints how often lab/llava, in its own words, names every object of an unseen scene exactly right, and nothing else.

python figures/captions.py                   # 100 scenes as in training, and 100 with new pairs of colour and shape
"""

from __future__ import annotations

import argparse
import re

import probe
from probe.evaluation.lab import read_lab
from probe.text import find_phrase

PROMPT = "Describe the image."


def exactly_right(answer: str, wanted: list[str]) -> bool:
    """True if the answer holds each phrase once, and as many phrases as that."""
    named = len(re.findall(r"\b(?:small|large)\b", answer))
    return named == len(wanted) and all(len(find_phrase(answer, phrase)) == 1 for phrase in wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    count = parser.parse_args().scenes
    subject = probe.load_model("lab/llava")
    for name in ("lab", "lab:unseen"):
        right = 0
        for example in read_lab(name, limit=count):
            answer = probe.run(subject, example.image, PROMPT, verify="off").text
            right += exactly_right(answer, [phrase.text for phrase in example.phrases])
        print(f"{name}: every object right in {right} of {count} scenes")
