"""contributions(): CLIP's similarity of an image and a text, taken apart exactly into layers, heads and patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.assemble import make_source
from probe.capture.geometry import checked_preparation
from probe.capture.residuals import Residuals
from probe.capture.texts import encode_texts, place_texts
from probe.capture.weights import tolerance_of
from probe.errors import CaptureError, CertificateError, InputError
from probe.images import read_image
from probe.layout import REST_PLACES, Indices, PatchGrid, resolve_indices
from probe.models import Subject
from probe.provenance import Certificate, Source

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["TERMS", "Decomposition", "contributions", "decompose"]

#: What the similarity is a sum of, in the order of the table.
TERMS = ("patches", "class token", "mlp", "bias", "embedding")


def contributions(
    subject: Subject,
    image: Any,
    texts: Sequence[str | tuple[int, int]],
    *,
    text: str | None = None,
    layers: Indices = None,
    heads: Indices = None,
) -> AttentionRecord:
    """The record of how much each patch adds, through each head of CLIP, to the image's similarity with each text.

    >>> record = probe.contributions(clip, "photo.jpg", ["a red circle", "a blue square"])
    >>> probe.plots.overlay(record["red circle"], "photo.jpg", reading="attention")

    CLIP has no attention from text to patches. These are signed parts of its own cosine similarity (without the logit scale): the
    attention weight of a patch times its value, through the head's slice of the output projection, the last LayerNorm with its
    actual mean and variance, and the visual projection, along the normalised text embedding, over the norm of the image
    embedding. The patches' parts, the class token's own (``rest``, place "bos"), the MLPs', the biases' and the embedding's add up
    to the similarity that the model itself gives: this sum is the certificate, checked for every text. See ``decompose`` for all
    the terms.

    Parameters
    ----------
    subject : CLIP, from ``load_model``.
    image : path, PIL image or (height, width, 3) uint8 array.
    texts : the texts, each one token of the record; or (start, end) characters of ``text``.
    text : what the texts are phrases of, in their order; by default the texts joined by ", ".
    layers, heads : which to keep, by number; all by default. The sum is checked over all of them.

    Raises
    ------
    InputError
        If there is no text, one is empty, is longer than the text encoder takes, or is not in ``text``; or a layer or head does
        not exist.
    CaptureError
        If the model is not a whole CLIP: SigLIP pools its patches through another function, in which no such sum exists.
    CertificateError
        If the parts do not add up to the model's own similarity.

    References
    ----------
    Gandelsman, Efros, Steinhardt, Interpreting CLIP's Image Representation via Text-Based Decomposition, ICLR 2024,
    arXiv 2310.05916, Eq. 1 to 5.
    """
    _require_clip(subject)
    vision = subject.model.config.vision_config
    resolve_indices(layers, vision.num_hidden_layers, what="layer")  # refused before anything is computed
    resolve_indices(heads, vision.num_attention_heads, what="head")
    return decompose(subject, image, texts, text=text).record(layers=layers, heads=heads)


def decompose(
    subject: Subject, image: Any, texts: Sequence[str | tuple[int, int]], *, text: str | None = None
) -> Decomposition:
    """CLIP's similarity of an image with each of these texts as a sum of terms: a ``Decomposition``, certificate checked.

    Parameters and errors are those of ``contributions``.
    """
    _require_clip(subject)
    words, spans, whole = place_texts(texts, text)
    picture = read_image(image)
    model = subject.model
    inputs = encode_texts(subject, words)
    pixels = subject.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(model.device, model.dtype)
    preparation = checked_preparation(subject.processor, picture, seen=pixels, family=subject.family)
    grid = preparation.grid(model.vision_model.config.patch_size)
    watched = Residuals(model)
    with torch.no_grad():
        with watched:
            output = model(**inputs, pixel_values=pixels)
        parts = watched.parts(*_direction(model, output, watched.final))
        similarity = (output.logits_per_image[0].double() / model.logit_scale.double().exp()).cpu()
    found = Decomposition(
        texts=words,
        spans=spans,
        text=whole,
        similarity=similarity,
        **parts,
        layers=tuple(watched.names),
        grid=grid,
        attention_error=watched.error,
        source=make_source(
            model,
            subject.family,
            tap="transformers attention functions and the residual stream",
            kernel=watched.kernel,
            dtype=watched.dtype,
            preparation=preparation.steps,
            prompt=whole,
        ),
    )
    _require_sum(found)
    return found


@dataclass(frozen=True, eq=False)
class Decomposition:
    """What CLIP's similarity of one image with some texts is the sum of. Everything in float64, on the host.

    Attributes
    ----------
    texts, spans, text : the texts, and where they stand in ``text``.
    similarity : (text,) cosine similarity that the model itself gave.
    through_heads : (layer, head, text, position): what each position adds through each head; the class token comes first.
    mlp, bias : (layer, text): what each MLP adds, and the bias of each output projection.
    embedding : (text,): what the class token starts with.
    last_bias : (text,): the bias of the last LayerNorm.
    layers : the module path of each layer's attention.
    grid : where the patches lie in the image.
    attention_error : largest difference of weights times v from any kernel's output in the class token's row, relative to it.
    source : model, kernel, number type and versions.
    """

    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    text: str
    similarity: Tensor
    through_heads: Tensor
    mlp: Tensor
    bias: Tensor
    embedding: Tensor
    last_bias: Tensor
    layers: tuple[str, ...]
    grid: PatchGrid
    attention_error: float
    source: Source

    @property
    def terms(self) -> dict[str, Tensor]:
        """Each of ``TERMS``, as (text,) sums over layers and heads."""
        through = self.through_heads.sum((0, 1))
        return {
            "patches": through[:, 1:].sum(-1),
            "class token": through[:, 0],
            "mlp": self.mlp.sum(0),
            "bias": self.bias.sum(0) + self.last_bias,
            "embedding": self.embedding,
        }

    @property
    def error(self) -> float:
        """Largest difference between the sum of all terms and the model's own similarity."""
        total = torch.stack(list(self.terms.values())).sum(0)
        return float(torch.nan_to_num((total - self.similarity).abs(), nan=torch.inf).max())

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the model's own attention."""
        found: torch.dtype = getattr(torch, self.source.dtype)
        return found

    @property
    def tolerance(self) -> float:
        """How large ``error`` and ``attention_error`` may be for the model's number type."""
        return tolerance_of(self.dtype, self.source.kernel)

    def to_frame(self) -> pd.DataFrame:
        """One row for each text and term, and one for the model's own similarity: text, term, value, share of the similarity."""
        import pandas as pd

        rows = []
        for name, values in [*self.terms.items(), ("similarity", self.similarity)]:
            rows += [
                {"text": one, "term": name, "value": float(value)}
                for one, value in zip(self.texts, values, strict=True)
            ]
        return pd.DataFrame(rows)

    def record(self, *, layers: Indices = None, heads: Indices = None) -> AttentionRecord:
        """The patches' parts as a record: quantity "contribution", one token a text."""
        kept = resolve_indices(layers, len(self.layers), what="layer")
        chosen = resolve_indices(heads, self.through_heads.shape[1], what="head")
        return AttentionRecord(
            layers=tuple(self._layer(i, chosen) for i in kept),
            quantity="contribution",
            query_kind="class token",
            tokens=self.texts,
            token_ids=(-1,) * len(self.texts),
            spans=self.spans,
            text=self.text,
            image_size=self.grid.image_size,
            softmax_over=None,
            query_row=None,
            certificate=Certificate(
                verify="all",
                rows=len(self.layers) + len(self.texts),
                max_error=max(self.error, self.attention_error),
                tolerance=self.tolerance,
                layers=len(self.layers),
                tokens=len(self.texts),
                patches=self.grid.shape[0] * self.grid.shape[1],
            ),
            source=self.source,
        )

    def _layer(self, number: int, heads: tuple[int, ...]) -> LayerAttention:
        through = self.through_heads[number, list(heads)]  # (head, text, position)
        through = through.to(torch.float64 if self.dtype == torch.float64 else torch.float32)
        values = through[None, ..., 1:].unflatten(-1, self.grid.shape).contiguous()
        rest = through.new_zeros((1, len(heads), len(self.texts), len(REST_PLACES)))
        rest[0, ..., REST_PLACES.index("bos")] = through[..., 0]
        return LayerAttention(
            name=self.layers[number],
            view="image 0",
            grid=self.grid,
            values=values,
            token_mean=values.mean(2),
            rest=rest,
            heads=heads,
        )


def _require_sum(found: Decomposition) -> None:
    for what, error in (
        (f"the terms miss the model's own similarity by {found.error:.1e}", found.error),
        (f"attention misses its kernel's output by {found.attention_error:.1e} of it", found.attention_error),
    ):
        if not error <= found.tolerance:
            raise CertificateError(
                f"The decomposition is not exact: {what}, allowed {found.tolerance:.0e} for {found.source.dtype}. The model does "
                "something between its layers that is not known here."
            )


def _require_clip(subject: Subject) -> None:
    if not isinstance(subject, Subject):
        raise InputError(
            f"A similarity is taken apart for a Subject, found a {type(subject).__name__}; make one with probe.load_model(...)."
        )
    model = subject.model
    if subject.family.name == "siglip":
        raise CaptureError(
            f"{type(model).__name__} pools its patches with attention and an MLP of its own, which is another function than a sum "
            "over the residual stream, so its similarity has no such exact parts. Read its pooling query: "
            'probe.record(subject, place="image encoder"), or quantity="attention" where examples are scored.'
        )
    whole = all(hasattr(model, one) for one in ("vision_model", "visual_projection", "text_projection", "logit_scale"))
    if subject.family.name != "clip" or not whole:
        raise CaptureError(
            f"{type(model).__name__} is not a whole CLIP (vision and text encoder with their projections), so it has no similarity "
            'to take apart; give such a model, "lab/clip" for instance.'
        )
    if model.training:
        raise CaptureError("The model is in training mode; call model.eval() first.")


def _direction(model: Any, output: Any, final: Tensor) -> tuple[Tensor, Tensor]:
    """(text, channel) vectors w with which every part z of the class token's last state counts z @ w, and (text,) the bias.

    The last LayerNorm is linear once its own mean and variance are known: gain * (z - mean z) / deviation + bias.
    """
    norm: nn.LayerNorm = model.vision_model.post_layernorm
    projection = model.visual_projection.weight.double()
    # The projected embedding before it is normalised; the text embeddings come normalised.
    size = output.vision_model_output.pooler_output[0].double().norm()
    along = output.text_embeds.double() @ projection / size  # (text, channel)
    deviation = (final.double().var(unbiased=False) + norm.eps).sqrt()
    scaled = along * norm.weight.double()
    return (scaled - scaled.mean(-1, keepdim=True)) / deviation, along @ norm.bias.double()
