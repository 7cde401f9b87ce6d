"""``probe record``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probe.commands.arguments import kind_note, lab_note
from probe.errors import InputError, did_you_mean
from probe.reports import Report, certificate_data, output_folder, write_json
from probe.text import find_phrase, nearby_phrases

if TYPE_CHECKING:
    from probe.attention import AttentionRecord

__all__ = ["record"]

#: So many noun phrases are drawn where none is asked for: two rows of pictures.
_DRAWN = 8


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
        A phrase of the answer to draw, each time it is said; by default the first eight noun phrases.
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
    from probe.attention import is_whole
    from probe.plots import phrases, save_figure
    from probe.runs import main_view

    target = output_folder(out)
    picture = probe.read_image(image)
    subject = probe.load_model(model, dtype=dtype, device=device)
    found = probe.run(subject, picture, prompt, answer=answer, max_new_tokens=max_new_tokens)
    # A phrase that is not there, or that cannot be drawn, is said before anything is written, with all that the model said.
    shown = main_view(found.record)
    given = [each for one in dict.fromkeys(phrase) for each in _each_time(shown, one)]
    wanted, note = (given, "") if given else _noun_phrases(shown)
    # A single text is its own mean, and so is a phrase that is all of the text.
    several = len(shown.tokens) > 1 and shown.quantity != "contribution"
    whole = [one for one in wanted if several and is_whole(shown[one])]
    options: dict[str, Any] = {"reading": "attention"} if whole or _is_one_text(shown) else {}
    if whole:
        about = (
            "a phrase is the whole text, and its map minus its own mean is zero everywhere: maps are drawn as recorded"
        )
        note = "; ".join(filter(None, [note, about]))
    figure = phrases(shown, wanted, picture, **options)[0].get_figure(root=True) if wanted else None
    kept = probe.save(found.record, target / "record.safetensors")
    figures = []
    if figure is not None:
        figures = [str(path) for path in save_figure(figure, target / "phrases")]
        plt.close(figure)
    data = {
        "text": found.text,
        "tokens": list(found.record.tokens),
        "record": str(kept),
        "figures": figures,
        "note": note,
        "certificate": certificate_data(found.record),
        "settings": settings,
    }
    write_json(target / "record.json", data)
    answered = subject.family.kind == "language model"
    lines = [f"{'answer' if answered else 'text':13}{found.text}", repr(found.record), f"record       {kept}"]
    lines += [f"picture      {one}" for one in figures] or ["no picture"]
    lines += [f"note         {note}"] if note else []
    lines += [*kind_note(subject, found.record.quantity), *lab_note(model)]
    return Report(data, lines)


def _each_time(record: AttentionRecord, phrase: str) -> list[Any]:
    """Every occurrence of a phrase in an answer."""
    count = len(find_phrase(record.text, phrase))
    if count > 1:
        return [(phrase, index) for index in range(count)]
    if count == 0:
        hint = did_you_mean(phrase, nearby_phrases(record.text, phrase))
        answered = record.query_kind == "generated token"
        again = " Give --answer with this text, and the model need not answer again." if answered else ""
        raise InputError(
            f"The phrase {phrase!r} is not in the {'answer' if answered else 'text'} {record.text!r}.{hint}{again}"
        )
    return [phrase]


def _noun_phrases(record: AttentionRecord) -> tuple[list[tuple[str, int]], str]:
    """The first noun phrases of an answer, or the texts that an image was compared with, each with which time its words are said,
    and why there are none or fewer."""
    from probe.grounding.phrases import noun_phrases

    if record.quantity == "contribution":
        spans, note = list(record.spans), ""
    elif len(record.tokens) == 1:
        return [], "the answer has one token, and a map minus its own mean is zero everywhere (Eq. 3)"
    else:
        found = noun_phrases(record.text)
        spans, note = [(one.start, one.end) for one in found], found.note
    places = [(record.text[slice(*span)], span) for span in spans]
    said = [(words, span, find_phrase(record.text, words)) for words, span in places]
    wanted = [(words, where.index(span)) for words, span, where in said if span in where]
    more = f"the first {_DRAWN} of {len(wanted)} noun phrases are drawn" if len(wanted) > _DRAWN else ""
    return wanted[:_DRAWN], "; ".join(filter(None, [more, note]))


def _is_one_text(record: AttentionRecord) -> bool:
    """True if an image was compared with one text alone, however often it is said."""
    return record.quantity == "contribution" and len(set(record.tokens)) == 1
