"""A view of records as one file that opens in any browser: no kernel, no network, no model.

>>> probe.widgets.write_html(record, "view.html", image="photo.jpg")
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.layout import PatchGrid
from probe.widgets.contents import Shown, contents_of, gather
from probe.widgets.packing import FINEST, choose_levels, deflate, exact_heads, pack_heads, pack_means, to_text
from probe.widgets.scores import PhraseScores
from probe.widgets.sheets import Sheet, make_sheet, mean_sheet, of_view, readings_of, timesteps_of, view_names
from probe.writing import write_beside

__all__ = ["Kept", "Page", "page_source", "write_html", "write_shown"]

#: Bits that a patch of a single head's map may take, from the most: the first with which the file is small enough is taken.
BITS = (8.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0)
#: So many sheets are packed to foresee how large all will be.
SAMPLED = 6


@dataclass(frozen=True)
class Kept:
    """How much of the maps a file holds.

    Attributes
    ----------
    exact : every map in float32, as it was recorded.
    fewest, median : else, steps between the lowest and highest value of a single head's map: of the map with the fewest, and of
        half of the maps at least; 0 if single heads are left out.
    at_timesteps : whether single heads are there at each timestep too, and not as their mean over timesteps alone.
    """

    exact: bool
    fewest: int
    median: int
    at_timesteps: bool = True

    @property
    def said(self) -> str:
        """What the file holds of the record, and what is lost, in words."""
        means = f"each layer's mean over heads in {FINEST + 1} levels; the mean over all layers exactly."
        if self.exact:
            said = "Every map is kept exactly."
        elif not self.fewest:
            return f"Single heads are left out. Kept are {means}"
        else:
            least = f"in at least {self.fewest + 1} levels, half of them in {self.median + 1} or more"
            if self.fewest == FINEST:
                least = f"in {FINEST + 1} levels"
            said = (
                f"Maps of single heads are kept {least}: off by at most {0.5 / self.fewest:.1%} of a map's range, most where it "
                f"looks like noise; {means}"
            )
        return said if self.at_timesteps else f"{said} Single heads are there as their mean over timesteps."


@dataclass(frozen=True)
class Page:
    """What was written: the file, its size in millions of bytes, and how much of the maps it holds."""

    path: Path
    megabytes: float
    kept: Kept


@dataclass(frozen=True)
class _Part:
    """Which sheet a block holds: record, view, timestep or None, and token or (None) the mean over the answer."""

    record: int
    view: int
    timestep: int | None
    token: int | None

    def name(self, kind: str) -> str:
        step, token = ("mean" if one is None else str(one) for one in (self.timestep, self.token))
        return f"{kind}-{self.record}-{self.view}-{step}-{token}"


def write_html(
    given: Any,
    out: str | os.PathLike[str],
    *,
    image: Any = None,
    masks: Any = None,
    labels: Sequence[str] | None = None,
    megabytes: float = 10.0,
    start: Mapping[str, Any] | None = None,
    on_sheet: Callable[[int, int], None] | None = None,
) -> Page:
    """What was written, and how much of the maps the file holds: a ``Page``.

    Parameters
    ----------
    given, image, masks, labels : as for ``probe.explore``.
    out : the file.
    megabytes : what it may take (millions of bytes). Where not every map fits exactly, the mean over all layers still is exact,
        each layer's mean is kept in 255 levels, and single heads in as many as fit, or not at all. The page says which.
    start : what the page shows first, such as ``{"layer": 3, "head": 1}``; see ``Explorer``.
    on_sheet : called with the number of sheets packed and that of all, to show progress.

    Raises
    ------
    InputError
        As ``probe.explore``, or if even the mean maps take more than ``megabytes``.
    FileError
        If the file cannot be written.
    """
    shown = gather(given, image=image, masks=masks, labels=labels)
    return write_shown(shown, Path(out), megabytes=megabytes, start=start, on_sheet=on_sheet)


def write_shown(
    shown: Shown,
    out: Path,
    *,
    megabytes: float = 10.0,
    start: Mapping[str, Any] | None = None,
    on_sheet: Callable[[int, int], None] | None = None,
) -> Page:
    """As ``write_html``, of what was gathered before."""
    contents = contents_of(shown)
    contents["start"] |= dict(start or {})
    for record, one in enumerate(shown.records):
        for view, name in enumerate(view_names(one)):
            scores = shown.scores[record]
            own = contents["records"][record]["views"][view]
            own["scores"] = _scores(of_view(one, name), scores) if scores and own["masks"] else None
    budget = int(megabytes * 1e6)
    for choice in _choices(shown, contents, budget):
        kept, blocks = _blocks(shown, choice, on_sheet)
        contents["kept"] = asdict(kept) | {"said": kept.said}
        content = page_source(contents, blocks).encode("utf-8")
        if len(content) <= budget:
            write_beside(out, functools.partial(_write, content))
            return Page(out, len(content) / 1e6, kept)
    raise InputError(
        f"The mean maps of each layer alone take more than {megabytes:g} MB; select layers, tokens or timesteps of the record, or "
        "allow more megabytes."
    )


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


@dataclass(frozen=True)
class _Choice:
    """What to keep: all exactly, or single heads in so many bits a patch (``None``: not at all), at each timestep or not."""

    exact: bool
    bits: float | None
    at_timesteps: bool


def _choices(shown: Shown, contents: dict[str, Any], budget: int) -> Iterator[_Choice]:
    """What to keep, from the most that is foreseen to fit."""
    letters = len(json.dumps(contents)) + len(_module()) + len(_style())
    room = (budget - letters) * 3 / 4  # a letter holds 6 bits of 8
    parts = list(_parts(shown))
    sampled = [parts[i] for i in sorted({int(i) for i in np.linspace(0, len(parts) - 1, SAMPLED)})]
    sheets = [(_sheet(shown, one), _grids(shown, one)) for one in sampled]
    steps = sum(one.timestep is not None for one in parts)

    def size(choice: _Choice) -> float:
        count = len(parts) - (0 if choice.at_timesteps else steps)
        means = [len(deflate(pack_means(*one, exact=choice.exact))) for one in sheets]
        heads = [len(deflate(_heads(*one, choice)[0])) for one in sheets]
        return float(np.mean(means) * len(parts) + np.mean(heads) * count)

    for at_timesteps in (True, False)[: 1 + bool(steps)]:
        for bits in (None, *BITS):
            choice = _Choice(bits is None, bits, at_timesteps)
            if size(choice) <= room:
                yield choice
    yield _Choice(False, None, False)


def _heads(sheet: Sheet, grids: Sequence[PatchGrid], choice: _Choice) -> tuple[bytes, list[Any]]:
    """The heads' maps, and the levels of each layer's."""
    if choice.exact:
        return exact_heads(sheet), []
    if choice.bits is None:
        return b"", []
    levels = [choose_levels(one, grid, bits=choice.bits) for one, grid in zip(sheet.heads, grids, strict=True)]
    return pack_heads(sheet, grids, levels), levels


def page_source(contents: Mapping[str, Any], blocks: Iterable[tuple[str, bytes]]) -> str:
    """The page's text.

    Nothing in it is asked from anywhere: its policy forbids it, and lets only this very script and style act.
    """
    script, style = f"{_module()}\nopenPage(document);\n", _style()
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    # "<" would end the element where a text holds "</script>".
    data = json.dumps(contents, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    title = "Where the model looks: " + ", ".join(one["label"] for one in contents["records"])
    parts = [
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n<meta name='referrer' content='no-referrer'>\n"
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        "<div id='explorer'>This view needs JavaScript.</div>\n"
        f"<script type='application/json' id='contents'>{data}</script>\n"
    ]
    parts += [f"<script type='text/plain' id='{name}'>{to_text(content)}</script>\n" for name, content in blocks]
    return "".join([*parts, f"<script type='module'>{script}</script>\n</body>\n</html>\n"])


def _blocks(
    shown: Shown, choice: _Choice, on_sheet: Callable[[int, int], None] | None
) -> tuple[Kept, list[tuple[str, bytes]]]:
    """What is kept in the end, and every block of the file by its name."""
    parts = list(_parts(shown))
    blocks: list[tuple[str, bytes]] = []
    levels: list[Any] = []
    for number, one in enumerate(parts, start=1):
        sheet, grids = _sheet(shown, one), _grids(shown, one)
        blocks.append((one.name("means"), deflate(pack_means(sheet, grids, exact=choice.exact))))
        packed, chosen = _heads(sheet, grids, choice)
        if packed and (one.timestep is None or choice.at_timesteps):
            blocks.append((one.name("heads"), deflate(packed)))
            levels += chosen
        if on_sheet is not None:
            on_sheet(number, len(parts))
    every = np.concatenate(levels) if levels else np.zeros(1, dtype=np.uint8)
    return Kept(choice.exact, int(every.min()), int(np.median(every)), choice.at_timesteps), blocks


def _parts(shown: Shown) -> Iterator[_Part]:
    """Every sheet of the file: of each token as it is read first, and of the mean, which tells the other reading from it."""
    for record, one in enumerate(shown.records):
        both = len(readings_of(one)) > 1
        for view, name in enumerate(view_names(one)):
            for step in (None, *range(len(timesteps_of(of_view(one, name))))):
                for token in (*([None] if both else []), *range(len(one.tokens))):
                    yield _Part(record, view, step, token)


def _of(shown: Shown, part: _Part) -> AttentionRecord:
    record = shown.records[part.record]
    return of_view(record, view_names(record)[part.view])


def _grids(shown: Shown, part: _Part) -> list[Any]:
    return [one.grid for one in _of(shown, part).layers]


def _sheet(shown: Shown, part: _Part) -> Sheet:
    record = _of(shown, part)
    if part.token is None:
        return mean_sheet(record, timestep=part.timestep)
    return make_sheet(record, [part.token], timestep=part.timestep, reading=readings_of(record)[0])


def _scores(record: AttentionRecord, scores: PhraseScores) -> dict[str, Any]:
    """Reading -> timestep ("mean" or its position) -> scores: of the mean over all and of each layer (place, metric, column,
    phrase) with all controls; of single heads, at the mean over timesteps alone, for each layer (metric, head, phrase)."""
    found: dict[str, Any] = {}
    for reading in readings_of(record):
        for step in (None, *range(len(timesteps_of(record)))):
            sheets = scores.sheets(record, timestep=step, reading=reading)
            places = [(np.stack([one.overall for one in sheets]), sheets[0].grid)] if sheets else []
            places += [
                (np.stack([one.means[number] for one in sheets]), layer.grid)
                for number, layer in enumerate(record.layers)
                if sheets
            ]
            own: dict[str, Any] = {"places": [_packed(scores.of_maps(*one)) for one in places]}
            if step is None and sheets:
                own["heads"] = [
                    _packed(scores.of_heads(sheets, number, layer.grid)) for number, layer in enumerate(record.layers)
                ]
            found.setdefault(reading, {})["mean" if step is None else str(step)] = own
    return found


def _packed(numbers: Any) -> str:
    """float64 numbers, NaN included, as base64: shorter than their digits, and exact."""
    return to_text(np.ascontiguousarray(numbers, dtype="<f8").tobytes())


def _module() -> str:
    return (files("probe.widgets") / "explorer.js").read_text(encoding="utf-8")


def _style() -> str:
    return (files("probe.widgets") / "explorer.css").read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
