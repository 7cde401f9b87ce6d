"""The widget: what was chosen, from Python and in the browser, and answers to what the browser asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from probe.analysis.targets import phrase_tokens
from probe.attention import AttentionRecord
from probe.errors import InputError, ProbeError, did_you_mean
from probe.layout import resolve_indices
from probe.text import find_phrase
from probe.widgets.contents import Shown, contents_of, first_tokens, picture_number
from probe.widgets.html import Page, write_shown
from probe.widgets.packing import pack_heads_quickly, pack_means
from probe.widgets.sheets import make_sheet, map_of, of_view, readings_of, view_names

__all__ = ["Explorer"]

_HERE = Path(str(files("probe.widgets")))


class Explorer(anywidget.AnyWidget):
    """A view of records; each of these can be read, set and observed (``view.observe(function, "layer")``).

    Attributes
    ----------
    record : which of the records, from 0.
    view : its view of the image, such as "image 0".
    tokens : positions of the tokens whose mean map is shown; ``words`` sets and reads them as text.
    layer, head : positions in the record's view; ``None`` is the mean over them.
    timestep : position; ``None`` is the mean.
    reading : "minus mean" (Eq. 3) or "attention".
    compare : what is shown beside it: dictionaries of any of the above, each laid over the rest.
    """

    _esm = _HERE / "explorer.js"
    _css = _HERE / "explorer.css"

    contents = traitlets.Dict().tag(sync=True)
    record = traitlets.Int(0).tag(sync=True)
    view = traitlets.Unicode("").tag(sync=True)
    tokens = traitlets.List(traitlets.Int()).tag(sync=True)
    layer = traitlets.Int(None, allow_none=True).tag(sync=True)
    head = traitlets.Int(None, allow_none=True).tag(sync=True)
    timestep = traitlets.Int(None, allow_none=True).tag(sync=True)
    reading = traitlets.Unicode("minus mean").tag(sync=True)
    compare = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        contents = contents_of(shown)
        first, tokens = shown.records[0], contents["start"]["tokens"]
        self._before = (0, list(tokens))
        super().__init__(contents=contents, tokens=tokens, view=view_names(first)[0], reading=readings_of(first)[0])
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        return f"Explorer({len(self._shown.records)} record(s), words={self.words!r}, layer={self.layer}, head={self.head})"

    @property
    def words(self) -> str:
        """The text of the chosen tokens; set it to words of the record's text, or (words, occurrence)."""
        record = self._shown.records[self.record]
        spans = [record.spans[one] for one in self.tokens if record.spans[one][1] > record.spans[one][0]]
        if not spans:
            return " ".join(record.tokens[one] for one in self.tokens)
        return record.text[min(low for low, _ in spans) : max(high for _, high in spans)].strip()

    @words.setter
    def words(self, phrase: str | tuple[str, int] | tuple[int, int]) -> None:
        self.tokens = list(phrase_tokens(self._shown.records[self.record], phrase))

    def selected(self) -> AttentionRecord:
        """The part of the record that is shown: ``record.select`` of its view, layers, heads, timesteps and tokens."""
        one = lambda place: None if place is None else [place]  # noqa: E731
        return self._shown.records[self.record].select(
            view=self.view,
            layers=one(self.layer),
            heads=one(self.head),
            timesteps=one(self.timestep),
            tokens=self.tokens,
        )

    def map(self) -> NDArray[np.float32]:
        """(row, col) map that is shown, on its own patches."""
        return map_of(self._part(), **self._choice())[0]

    def save(self, out: str | os.PathLike[str], *, megabytes: float = 10.0) -> Page:
        """What was written: this view as one file, as it stands; see ``probe.widgets.write_html``."""
        start = self._choice() | {"record": self.record, "view": self.view, "compare": self.compare}
        return write_shown(self._shown, Path(out), megabytes=megabytes, start=start)

    def _choice(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokens", "layer", "head", "timestep", "reading")}

    def _part(self) -> AttentionRecord:
        record = self._shown.records[self.record]
        return of_view(record, self.view) if self.view in view_names(record) else record

    @traitlets.validate("record", "tokens", "layer", "head", "timestep")
    def _valid_places(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if value is None:
            return None
        part = self._part()
        if name == "head" and self.layer is None:
            raise InputError(
                f"head={value} needs a layer: a head is of one layer. Set layer first, or leave head at None."
            )
        counts = {
            "record": len(self._shown.records),
            "tokens": len(part.tokens),
            "layer": len(part.layers),
            "head": len(part.layers[min(self.layer or 0, len(part.layers) - 1)].heads),
            "timestep": min(len(one.timesteps) for one in part.layers),
        }
        found = resolve_indices(value, counts[name], what=name.removesuffix("s") if name == "tokens" else name)
        return list(found) if name == "tokens" else found[0]

    @traitlets.validate("view", "reading")
    def _valid_names(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        record = self._shown.records[self.record]
        known: Sequence[str] = view_names(record) if name == "view" else readings_of(record)
        if value not in known:
            raise InputError(
                f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}.{did_you_mean(value, known)}"
            )
        return str(value)

    @traitlets.observe("record", "tokens", "layer")
    def _follow(self, _: Any) -> None:
        """Another record shows the same words, and nothing that it does not have."""
        (record, tokens), now = self._before, (self.record, list(self.tokens))
        self._before = now
        part = self._part()
        if record != now[0]:
            if self.view not in view_names(part):
                self.view = view_names(part)[0]
            if self.reading not in readings_of(part):
                self.reading = readings_of(part)[0]
            # The browser sends words and record together; from Python only the record changed.
            if tokens == now[1]:
                self.tokens = self._elsewhere(record, tokens)
            self.timestep = None
        if self.layer is None:
            self.head = None
        else:
            self.layer = min(self.layer, len(part.layers) - 1)
            self.head = None if self.head is None else min(self.head, len(part.layers[self.layer].heads) - 1)

    def _elsewhere(self, record: int, tokens: list[int]) -> list[int]:
        """The tokens of the same words in the record that is chosen now; of its first phrase where it does not say them."""
        old, new = self._shown.records[record], self._shown.records[self.record]
        if (old.text, old.tokens) == (new.text, new.tokens):
            return tokens
        spans = [old.spans[one] for one in tokens if old.spans[one][1] > old.spans[one][0]]
        words = old.text[min(a for a, _ in spans) : max(b for _, b in spans)].strip(" ,;:.") if spans else ""
        before = [low for low, _ in find_phrase(old.text, words) if spans and low < min(b for _, b in spans)]
        found = find_phrase(new.text, words)
        if before and len(found) >= len(before):
            return list(new.tokens_of(*found[len(before) - 1]))
        return first_tokens(self.contents["records"][self.record])

    def _answer(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Sends what the browser asked for, or why it cannot be had."""
        name = content.get("id")
        try:
            given = {key: content[key] for key in ("tokens", "timestep", "reading")}
            record = self._shown.records[content["record"]]
            part = of_view(record, view_names(record)[content["view"]])
            if content["kind"] == "sheet":
                sheet, grids = make_sheet(part, **given), [one.grid for one in part.layers]
                self.send({"id": name}, [pack_means(sheet, grids, exact=True), pack_heads_quickly(sheet, grids)])
                return
            place = {
                "layer": content["layer"],
                "head": content["head"],
                "timestep": given["timestep"],
                "reading": given["reading"],
            }
            maps, _grid = map_of(part, given["tokens"], **place)
            scores = self._scores(content["record"], part, given["tokens"], place)
            self.send({"id": name, "scores": scores}, [np.ascontiguousarray(maps, dtype="<f4").tobytes()])
        except (ProbeError, KeyError, IndexError, TypeError, RuntimeError) as error:
            self.send({"id": name, "error": f"This map cannot be made: {' '.join(str(error).split())}"})

    def _scores(
        self, number: int, part: AttentionRecord, tokens: list[int], place: dict[str, Any]
    ) -> list[dict[str, Any]] | None:
        """The table beside a map, where its tokens are those of a phrase with a mask."""
        scores = self._shown.scores[number]
        phrases = [list(one.tokens) for one in scores.phrases] if scores else []
        if scores is None or tokens not in phrases or picture_number(part.layers[0].view) != 0:
            return None
        maps = [map_of(part, one, **place) for one in phrases]
        return scores.table(np.stack([one for one, _ in maps]), maps[0][1], phrases.index(tokens))
