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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.widgets.contents import Shown, contents_of, gather
from probe.widgets.packing import FINEST, deflate, pack_heads, pack_means, to_text
from probe.widgets.scores import PhraseScores
from probe.widgets.sheets import Sheet, make_sheet, mean_sheet, of_view, readings_of, timesteps_of, view_names
from probe.writing import write_beside

__all__ = ["Kept", "Page", "page_source", "write_html", "write_shown"]

#: Steps between the lowest and the highest value of a head's map, from the finest: the first with which the file is small enough.
LEVELS = (FINEST, 127, 63, 47, 31, 23, 15, 11, 7)
#: So many sheets are packed to foresee how large all will be.
SAMPLED = 6


@dataclass(frozen=True)
class Kept:
    """How much of the maps a file holds.

    Attributes
    ----------
    exact : every map in float32, as it was recorded.
    levels : else, steps between the lowest and highest value of a single head's map; ``None`` if single heads are left out.
    at_timesteps : whether single heads are there at each timestep too, and not as their mean over timesteps alone.
    """

    exact: bool
    levels: int | None
    at_timesteps: bool = True

    @property
    def said(self) -> str:
        """What the file holds of the record, and what is lost, as a sentence."""
        if self.exact:
            said = "Every map is kept exactly."
        elif self.levels is None:
            return f"Each layer's mean over heads is kept in {FINEST + 1} levels; single heads are left out."
        else:
            said = (
                f"Maps of single heads are kept in {self.levels + 1} levels, off by at most {0.5 / self.levels:.1%} of each map's "
                f"range; their means in {FINEST + 1} levels; the mean over all layers exactly."
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
    for kept in _choices(shown, contents, budget):
        contents["kept"] = asdict(kept) | {"said": kept.said}
        text = page_source(contents, _blocks(shown, kept, on_sheet), limit=budget)
        if text is not None:
            write_beside(out, functools.partial(_write, text))
            return Page(out, len(text.encode("utf-8")) / 1e6, kept)
    raise InputError(
        f"The mean maps of each layer alone take more than {megabytes:g} MB; select layers, tokens or timesteps of the record, or "
        "allow more megabytes."
    )


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _choices(shown: Shown, contents: dict[str, Any], budget: int) -> Iterator[Kept]:
    """What to keep, from the most that is foreseen to fit."""
    letters = len(json.dumps(contents)) + len(_module()) + len(_style())
    room = (budget - letters) * 3 / 4  # a letter holds 6 bits of 8
    parts = list(_parts(shown))
    sampled = [parts[i] for i in sorted({int(i) for i in np.linspace(0, len(parts) - 1, SAMPLED)})]
    sheets = [(_sheet(shown, one), _grids(shown, one)) for one in sampled]
    size = lambda pack, **how: float(np.mean([len(deflate(pack(*one, **how))) for one in sheets]))  # noqa: E731
    steps = sum(one.timestep is not None for one in parts)
    for at_timesteps in (True, False)[: 1 + bool(steps)]:
        count = len(parts) - (0 if at_timesteps else steps)
        if size(pack_means, exact=True) * len(parts) + size(pack_heads, levels=None) * count <= room:
            yield Kept(True, None, at_timesteps)
        for levels in LEVELS:
            if size(pack_means) * len(parts) + size(pack_heads, levels=levels) * count <= room:
                yield Kept(False, levels, at_timesteps)
    yield Kept(False, None, False)


def page_source(
    contents: Mapping[str, Any], blocks: Iterator[tuple[str, bytes]], *, limit: int | None = None
) -> str | None:
    """The page's text, or ``None`` as soon as it has more letters than the limit.

    Nothing in it is asked from anywhere: its policy forbids it, and lets only this very script and style act.
    """
    script, style = f"{_module()}\nopenPage(document);\n", _style()
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    # "<" would end the element where a text holds "</script>".
    data = json.dumps(contents, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    title = html.escape("Where the model looks: " + ", ".join(one["label"] for one in contents["records"]))
    parts = [
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n<meta name='referrer' content='no-referrer'>\n"
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<div id='explorer'>This view needs JavaScript.</div>\n"
        f"<script type='application/json' id='contents'>{data}</script>\n"
    ]
    size = len(parts[0]) + len(script)
    for name, content in blocks:
        parts.append(f"<script type='text/plain' id='{name}'>{to_text(content)}</script>\n")
        size += len(parts[-1])
        if limit is not None and size > limit:
            return None
    return "".join([*parts, f"<script type='module'>{script}</script>\n</body>\n</html>\n"])


def _blocks(shown: Shown, kept: Kept, on_sheet: Callable[[int, int], None] | None) -> Iterator[tuple[str, bytes]]:
    parts = list(_parts(shown))
    for number, one in enumerate(parts, start=1):
        sheet, grids = _sheet(shown, one), _grids(shown, one)
        yield one.name("means"), deflate(pack_means(sheet, grids, exact=kept.exact))
        if (kept.exact or kept.levels is not None) and (one.timestep is None or kept.at_timesteps):
            yield one.name("heads"), deflate(pack_heads(sheet, grids, levels=kept.levels))
        if on_sheet is not None:
            on_sheet(number, len(parts))


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
