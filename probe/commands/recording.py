"""``probe record``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probe.commands.arguments import kind_note, lab_note
from probe.errors import InputError, did_you_mean
from probe.reports import Report, certificate_data, output_folder, write_json
from probe.text import find_phrase, nearby_phrases

if TYPE_CHECKING:
    from probe.attention import AttentionRecord

__all__ = ["record"]

_FUNCTION_WORDS = frozenset(
    "and are for from has have its not that the their there these this was were which with image picture shows".split()  # noqa: SIM905
)


def record(
    image: str,
    prompt: str,
    *,
    model: str = "lab/llava",
    answer: str | None = None,
    phrase: Sequence[str] = (),
    out: str = "probe-record",
    max_new_tokens: int = 128,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Record where a model looks while it answers a prompt about an image, and draw it.

    A model that answers nothing reads the prompt: CLIP compares the image with its noun phrases, a diffusion model takes noise off
    the image, told that this is what it shows.

    Parameters
    ----------
    image
        The picture's file.
    prompt
        What to ask, or what the image shows.
    model
        "lab/llava", "lab/clip" or "lab/diffusion" (small models that know coloured shapes alone), a hub name or a local folder.
    answer
        Read this text instead of generating one.
    phrase
        A phrase of the answer to draw, each time it is said; by default the first six words that are no function words.
    out
        Folder for record.safetensors, phrases.png and .pdf, and record.json with the exact settings.
    max_new_tokens
        Where a generated answer is cut off at the latest.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    settings = dict(locals())
    import matplotlib.pyplot as plt

    import probe
    from probe.plots import phrases, save_figure

    target = output_folder(out)
    picture = probe.read_image(image)
    subject = probe.load_model(model, dtype=dtype, device=device)
    found = probe.run(subject, picture, prompt, answer=answer, max_new_tokens=max_new_tokens)
    # A phrase that is not there is said before anything is written, with all that the model said.
    wanted = [each for one in phrase for each in _each_time(found.record, one)] or _first_words(found.record)
    kept = probe.save(found.record, target / "record.safetensors")
    figures = []
    if wanted:
        # A single text is its own mean.
        reading: Any = "attention" if found.record.token_ids == (-1,) else "minus mean"
        figure = phrases(found.record, wanted, picture, reading=reading)[0].get_figure(root=True)
        assert figure is not None  # for the type checker: these Axes were just made
        figures = [str(path) for path in save_figure(figure, target / "phrases")]
        plt.close(figure)
    data = {
        "text": found.text,
        "tokens": list(found.record.tokens),
        "record": str(kept),
        "figures": figures,
        "certificate": certificate_data(found.record),
        "settings": settings,
    }
    write_json(target / "record.json", data)
    answered = subject.family.kind == "language model"
    lines = [f"{'answer' if answered else 'text':13}{found.text}", repr(found.record), f"record       {kept}"]
    lines += [f"picture      {one}" for one in figures] or ["no picture   the answer has no word to draw"]
    lines += [*kind_note(subject, found.record.quantity), *lab_note(model)]
    return Report(data, lines)


def _each_time(record: AttentionRecord, phrase: str) -> list[Any]:
    """Every occurrence of a phrase in an answer."""
    count = len(find_phrase(record.text, phrase))
    if count > 1:
        return [(phrase, index) for index in range(count)]
    if count == 0:
        hint = did_you_mean(phrase, nearby_phrases(record.text, phrase))
        raise InputError(
            f"The phrase {phrase!r} is not in the answer {record.text!r}.{hint} Give --answer with this text, and the "
            "model need not answer again."
        )
    return [phrase]


def _first_words(record: AttentionRecord, most: int = 6) -> list[Any]:
    """The first different words of three letters or more that are no function words, each by its first occurrence; of
    contributions the texts themselves."""
    if record.quantity == "contribution":
        counts = Counter[str]()
        pairs = []
        for token in record.tokens:
            pairs.append((token, counts[token]))
            counts[token] += 1
        return pairs[:most]
    words = dict.fromkeys(re.findall(r"[^\W\d_]{3,}", record.text))
    content = [word for word in words if word.casefold() not in _FUNCTION_WORDS and find_phrase(record.text, word)]
    return [(word, 0) for word in content][:most]
