"""The one object that flows through everything: attention from text tokens to image patches, per layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probe.errors import InputError, did_you_mean
from probe.layers import LayerAttention
from probe.layout import Indices, resolve_indices
from probe.provenance import Certificate, Source
from probe.summaries import summary_html, summary_text
from probe.text import phrase_span

__all__ = ["AttentionRecord", "LayerAttention", "is_whole"]

Quantity = Literal["attention", "contribution", "relevance", "concept similarity"]
QueryKind = Literal[
    "generated token",
    "prompt token",
    "class token",
    "pooling query",
    # What a Q-Former gathers patches with; it stands for no word.
    "query token",
    "text token",
    "caption token",
    "patch",
    # Where one softmax spans patches and words there are two maps of a word, which must not be taken for each other.
    "patch reading text",
    "text reading patches",
    "query row",
    "concept",
]
Dimension = Literal["layer", "timestep", "head", "token"]


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """Attention from text tokens to image patches, per layer and head, for one image.

    Dimensions are always ``layer timestep head token row col``, in this order. Layers are kept apart because their grids and head
    counts may differ; ``stack()`` makes one tensor where they do not.

    Attributes
    ----------
    layers : one ``LayerAttention`` for each recorded attention module and view.
    quantity : what ``values`` are.
    query_kind : what asked: a generated token, a token of the prompt, ...
    tokens, token_ids, spans : text, id and (start, end) characters in ``text`` of each token; special tokens have an empty span.
    text : the answer (or prompt) that the tokens spell.
    image_size : (height, width) of the original image in pixels.
    softmax_over : over what a row sums to 1 (with ``rest``); raw values are comparable only where it is the same. "patches" are
        those of the image alone, with the class tokens of its tiles.
    query_row : "predicting": the row at position t - 1 that predicts token t; "own": the row at the token's own position.
    certificate : how the record proves that it is true.
    source : model, kernel, dtype, prompt and versions.
    history : the reductions made since recording, in order.
    """

    layers: tuple[LayerAttention, ...]
    quantity: Quantity
    query_kind: QueryKind
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    text: str
    image_size: tuple[int, int]
    softmax_over: Literal["sequence", "tokens", "patches"] | None
    query_row: Literal["predicting", "own"] | None
    certificate: Certificate
    source: Source
    history: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("A record needs at least one layer.")
        counts = {len(self.tokens), len(self.token_ids), len(self.spans), *(one.values.shape[2] for one in self.layers)}
        if len(counts) != 1:
            raise InputError(
                f"A record's tokens do not match: {len(self.tokens)} tokens, {len(self.token_ids)} ids, {len(self.spans)} spans, "
                f"and {[one.values.shape[2] for one in self.layers]} tokens in the layers' values."
            )

    def select(
        self,
        *,
        layers: Indices = None,
        heads: Indices = None,
        tokens: Indices = None,
        timesteps: Indices = None,
        view: str | None = None,
    ) -> AttentionRecord:
        """The part of the record with these layers, heads, tokens, timesteps and view, each by position in this record.

        ``token_mean`` keeps the mean over the whole answer, so that a selected phrase can still have it subtracted.

        Raises
        ------
        InputError
            If something asked for does not exist.
        """
        seen = self.layers
        if view is not None:
            seen = tuple(one for one in seen if one.view == view)
            if not seen:
                known = sorted({one.view for one in self.layers})
                raise InputError(f"No view {view!r} in this record, which has {known}.{did_you_mean(view, known)}")
        seen = tuple(seen[i] for i in resolve_indices(layers, len(seen), what="layer"))
        kept_tokens = resolve_indices(tokens, len(self.tokens), what="token")

        def part(one: LayerAttention) -> LayerAttention:
            kept = resolve_indices(heads, len(one.heads), what="head")
            steps = resolve_indices(timesteps, one.values.shape[0], what="timestep")
            return replace(
                one,
                values=one.values[list(steps)][:, list(kept)][:, :, list(kept_tokens)],
                token_mean=one.token_mean[list(steps)][:, list(kept)],
                rest=one.rest[list(steps)][:, list(kept)][:, :, list(kept_tokens)],
                heads=tuple(one.heads[i] for i in kept),
                timesteps=tuple(one.timesteps[i] for i in steps),
            )

        return replace(
            self,
            layers=tuple(part(one) for one in seen),
            tokens=tuple(self.tokens[i] for i in kept_tokens),
            token_ids=tuple(self.token_ids[i] for i in kept_tokens),
            spans=tuple(self.spans[i] for i in kept_tokens),
        )

    def tokens_of(self, start: int, end: int) -> tuple[int, ...]:
        """Positions of the tokens that overlap characters [start, end) of ``text``.

        Raises
        ------
        InputError
            If no token of this record overlaps them.
        """
        # A special token's empty span overlaps nothing, also in the middle of a phrase.
        found = tuple(i for i, (low, high) in enumerate(self.spans) if max(low, start) < min(high, end))
        if not found:
            raise InputError(
                f"Characters {start} to {end} ({self.text[start:end]!r}) are not covered by any of the {len(self.tokens)} "
                "recorded tokens; record or select the tokens that spell them."
            )
        return found

    def __getitem__(self, phrase: str | tuple[str, int]) -> AttentionRecord:
        """The tokens of a phrase of whole words: ``record["red circle"]``, or ``record["circle", 1]`` for its second occurrence.

        Raises
        ------
        InputError
            If the phrase is not in the text, or is there several times and no occurrence is named.
        """
        wanted, occurrence = phrase if isinstance(phrase, tuple) and len(phrase) == 2 else (phrase, None)
        if not isinstance(wanted, str):
            raise InputError(
                f"record[{phrase!r}] is not a phrase; give words of the text, or tokens by number with select(tokens=...)."
            )
        return self.select(tokens=self.tokens_of(*phrase_span(self.text, wanted, occurrence=occurrence)))

    def minus_mean(self) -> AttentionRecord:
        """The record with each head's mean map over the whole answer subtracted: Eq. 3 of Cao et al., arXiv 2410.08209.

        It removes what every token attends to: sinks and background. Values become signed; doing it twice changes nothing.
        """
        if "minus mean" in self.history:
            return self
        if len(self.tokens) == 1 and is_whole(self):
            if self.quantity == "contribution":
                why = "is the only text that the image was compared with"
                advice = 'name something else to compare with, such as "a red circle and a blue square"'
            else:
                why, advice = "is the whole answer", "record a longer answer"
            raise InputError(
                f"The only token here ({self.tokens[0]!r}) {why}, and a map minus its own mean is zero everywhere; {advice}, or "
                "use the map without the subtraction."
            )
        layers = tuple(
            replace(one, values=one.values - one.token_mean[:, :, None], token_mean=torch.zeros_like(one.token_mean))
            for one in self.layers
        )
        return replace(self, layers=layers, history=(*self.history, "minus mean"))

    def mean(self, *dims: Dimension) -> AttentionRecord:
        """The record averaged over "layer", "timestep", "head" and/or "token", each kept with size 1.

        Raises
        ------
        InputError
            If a dimension is unknown, or "layer" is asked for and the layers differ in grid or head count.
        """
        unknown = [one for one in dims if one not in ("layer", "timestep", "head", "token")]
        if unknown or not dims:
            raise InputError(f"mean() takes 'layer', 'timestep', 'head' and 'token', found {unknown or 'nothing'}.")
        result = self
        if "timestep" in dims:
            layers = tuple(one._map(lambda t: t.mean(0, keepdim=True), timesteps=(-1,)) for one in result.layers)
            result = replace(result, layers=layers)
        if "head" in dims:
            layers = tuple(one._map(lambda t: t.mean(1, keepdim=True), heads=(-1,)) for one in result.layers)
            result = replace(result, layers=layers)
        if "layer" in dims:
            result = result._mean_layer()
        if "token" in dims:
            result = result._mean_token()
        return replace(result, history=(*self.history, f"mean over {', '.join(dims)}"))

    def _mean_layer(self) -> AttentionRecord:
        self._require_alike("mean over layers")
        first = self.layers[0]
        name = first.name if len(self.layers) == 1 else f"mean of {len(self.layers)} layers"
        parts: dict[str, Any] = {
            key: torch.stack([getattr(one, key) for one in self.layers]).mean(0)
            for key in ("values", "token_mean", "rest")
        }
        # Where the layers hold different heads or timesteps, the mean is of none that has a number.
        for key in ("heads", "timesteps"):
            own = getattr(first, key)
            parts[key] = own if all(getattr(one, key) == own for one in self.layers) else (-1,) * len(own)
        return replace(self, layers=(replace(first, name=name, **parts),))

    def _mean_token(self) -> AttentionRecord:
        layers = tuple(
            replace(one, values=one.values.mean(2, keepdim=True), rest=one.rest.mean(2, keepdim=True))
            for one in self.layers
        )
        drawn = [span for span in self.spans if span[1] > span[0]] or [(len(self.text), len(self.text))]
        span = (min(low for low, _ in drawn), max(high for _, high in drawn))
        return replace(self, layers=layers, tokens=(self.text[slice(*span)],), token_ids=(-1,), spans=(span,))

    def _require_alike(self, what: str) -> None:
        shapes = {one.name: (one.view, tuple(one.values.shape[:2]), one.grid.shape) for one in self.layers}
        common = next(iter(shapes.values()))
        edges = {(one.grid.row_edges, one.grid.col_edges) for one in self.layers}
        odd = next((name for name, shape in shapes.items() if shape != common), self.layers[-1].name)
        if len(set(shapes.values())) > 1 or len(edges) > 1:
            raise InputError(
                f"{what} needs layers alike in view, (timesteps, heads) and grid: {self.layers[0].name!r} has {common} but "
                f"{odd!r} has {shapes[odd]}; select layers or a view, or give stack(grid=(rows, cols))."
            )

    def stack(self, *, grid: tuple[int, int] | None = None) -> Tensor:
        """(layer, timestep, head, token, row, col): all layers in one tensor.

        Parameters
        ----------
        grid : (rows, cols) of an even division of the image to which every layer is area-averaged; needed where grids differ.
            Cells that no patch covers are NaN.

        Raises
        ------
        InputError
            If the layers differ (it names which) and no ``grid`` would make them alike.
        """
        if grid is None:
            self._require_alike("stack()")
            return torch.stack([one.values for one in self.layers])
        shapes = {one.values.shape[:3] for one in self.layers}
        if len(shapes) > 1:
            raise InputError(
                f"stack(grid=...) needs equal timesteps and heads in every layer, found {sorted(shapes)}; select first."
            )
        moved = []
        for one in self.layers:
            rows, cols = (torch.as_tensor(m).to(one.values) for m in one.grid.resampling_to(grid))
            moved.append(rows @ one.values @ cols.T)
        return torch.stack(moved)

    def heatmap(
        self, size: tuple[int, int] | None = None, *, reading: Literal["minus mean", "attention"] = "minus mean"
    ) -> np.ndarray:
        """(height, width) float32 map in the original image's pixels: mean over layers, heads, timesteps and tokens.

        Parameters
        ----------
        size : (height, width) of the result; the image's own by default.
        reading : "minus mean" subtracts the mean over the whole answer first (Eq. 3); "attention" does not.

        Notes
        -----
        Upsampled bicubically with half-pixel centres, as in the reference; pixels that no patch covers are NaN. Layers count alike,
        also where their grids differ. For looking, not for scoring: metrics are computed on patches.
        """
        if reading not in ("minus mean", "attention"):
            raise InputError(f"reading must be 'minus mean' or 'attention', found {reading!r}.")
        record = self.minus_mean() if reading == "minus mean" else self
        if "minus mean" in record.history and is_whole(record):
            raise InputError(
                f"These {len(self.tokens)} tokens are the whole answer, whose mean minus itself is zero everywhere (what is left "
                'is rounding); choose a phrase or some tokens, or use reading="attention".'
            )
        flat = record.mean("timestep", "head", "token")
        if len({one.view for one in flat.layers}) > 1:
            flat._require_alike("heatmap()")
        # Layers of one grid are averaged before they are enlarged, which is the same and faster.
        alike: dict[Any, list[LayerAttention]] = {}
        for one in flat.layers:
            alike.setdefault((one.grid.row_edges, one.grid.col_edges), []).append(one)
        total = sum(
            len(some) / len(flat.layers)
            * some[0].grid.upsample(torch.stack([one.values[0, 0, 0] for one in some]).mean(0), size=size)
            for some in alike.values()
        )  # fmt: skip
        return np.asarray(total, dtype=np.float32)

    def to(self, *args: Any, **kwargs: Any) -> AttentionRecord:
        """The record with its tensors moved, as ``torch.Tensor.to`` would move them."""
        return replace(self, layers=tuple(one._map(lambda t: t.to(*args, **kwargs)) for one in self.layers))

    def __repr__(self) -> str:
        return summary_text(self)

    def _repr_html_(self) -> str:
        return summary_html(self)


def is_whole(record: AttentionRecord, tokens: Sequence[int] | None = None) -> bool:
    """True if these tokens (by default the record's) are all that its mean was taken over, so that their mean minus it (Eq. 3) is
    zero everywhere, and what is left is rounding.

    These are all tokens of an answer; of a diffusion model's prompt its words, without the tokens that begin, end and pad it.
    """
    subtracted = "minus mean" in record.history
    for one in record.layers:
        values = one.values if tokens is None else one.values[:, :, list(tokens)]
        mean = torch.zeros_like(one.token_mean) if subtracted else one.token_mean
        if not _negligible(values.mean(2), mean, level=values):
            return False
    return True


def _negligible(found: Tensor, expected: Tensor, *, level: Tensor) -> bool:
    """True if two maps differ by no more than the rounding of values like these, also that of a record saved as compact."""
    return bool((found - expected).abs().max() <= 2e-4 * level.abs().max())
