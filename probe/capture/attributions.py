"""relevance(): gradient baselines beside attention, for language models with image tokens and for CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.assemble import make_source
from probe.capture.geometry import checked_preparation
from probe.capture.gradients import AttentionGraph, gradient_means, relevance_rollout
from probe.capture.modules import attention_modules, encoder_modules
from probe.capture.passes import inputs_with_answer
from probe.capture.recorder import Recorder
from probe.capture.texts import encode_texts, place_texts
from probe.capture.views import views_of
from probe.errors import CaptureError, InputError
from probe.images import read_image
from probe.layout import REST_PLACES, View
from probe.models import Subject
from probe.provenance import Certificate

__all__ = ["Method", "relevance"]

Method = Literal["chefer", "legrad"]


def relevance(
    subject: Subject,
    image: Any,
    text: str,
    phrases: Sequence[str | tuple[int, int]],
    *,
    method: Method = "chefer",
    prompt: str = "Describe the image.",
) -> AttentionRecord:
    """The record of how much each patch matters to each phrase by gradients: a baseline for attention, quantity "relevance".

    >>> record = probe.relevance(subject, "photo.jpg", "a dog and a red ball", ["dog", "red ball"])
    >>> probe.score_heads([record], [masks], reading="attention")

    The score s of a phrase is the sum of the logits of its tokens, each at the row that predicts it, in a language model that reads
    ``text`` as its answer; in CLIP, the cosine similarity of the image with the phrase. One pass, and one backward pass for each
    phrase, through attention that is recomputed in float32 and checked against the kernel's own output (the certificate). The model
    is not changed, and none of its parameters needs a gradient; the (query, key) weights of all layers are in memory at once.

    - "chefer": R <- R + A' R from the identity with A' = mean over heads of max(dA * A, 0). One layer with one head, which stand
      for all: the row of R at the phrase (mean of its predicting rows), or at CLIP's class token.
    - "legrad": mean over query rows of max(ds/dA, 0), for each layer and head; the paper's map is their mean over heads, summed
      over layers, so ``record.mean("head", "layer")`` is the same up to a factor.

    Parameters
    ----------
    subject : a language model whose image is part of its sequence, or a whole CLIP; from ``load_model``.
    image : path, PIL image or (height, width, 3) uint8 array.
    text : the answer, or the caption that the phrases are of.
    phrases : each one token of the record: words of the text, or (start, end) characters of it. One that is said several times is
        found at its first place, and where it is given again at its next.
    prompt : what the answer is to, of a language model.

    Returns
    -------
    ``token_mean`` is the mean over the phrases, and ``rest`` what falls on other positions.

    Raises
    ------
    InputError
        If the method is unknown, a phrase is not in the text, or as ``read_image`` does.
    CaptureError
        If the model is of another kind, is compiled, in training mode, or ablated now.
    CertificateError
        If the recomputed attention does not rebuild what the model computed.

    References
    ----------
    Chefer, Gur, Wolf, Generic Attention-model Explainability, ICCV 2021. Bousselham et al., LeGrad, ICCV 2025.
    """
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(map(repr, get_args(Method)))}; found {method!r}.")
    if not isinstance(subject, Subject):
        raise InputError(
            f"relevance() needs a Subject, found a {type(subject).__name__}; make one with probe.load_model(...)."
        )
    if not isinstance(text, str) or not text.strip() or isinstance(phrases, str) or not phrases:
        raise InputError(
            f"relevance() needs a text and a list of phrases of it, found {text!r} and {phrases!r}; for example 'a dog and a ball' "
            "and ['a dog']."
        )
    family, model = subject.family, subject.model
    picture = read_image(image)
    if family.kind == "language model" and family.image_tokens != "cross-attention":
        return _of_answer(subject, picture, text, phrases, method, prompt)
    whole = hasattr(model, "vision_model") and hasattr(model, "visual_projection") and hasattr(model, "text_projection")
    if family.name == "clip" and whole:
        return _of_similarity(subject, picture, text, phrases, method)
    raise CaptureError(
        f"{subject.name!r} ({family.name}) has no relevance here: it is for language models whose image is part of their sequence, "
        "and for a whole CLIP, image and text encoder."
    )


@dataclass(frozen=True)
class _Positions:
    """Where everything stands among the keys: the patches of a view, all image tokens, and the first token."""

    view: View
    image: tuple[int, ...]
    first: int | None

    def layer(self, name: str, values: Tensor, heads: tuple[int, ...]) -> LayerAttention:
        """The layer of (phrase, head, key) values."""
        found = values.detach().transpose(0, 1).cpu()[None]  # (timestep, head, phrase, key)
        own = found[..., list(self.view.positions)].unflatten(-1, self.view.grid.shape)
        places = dict.fromkeys(REST_PLACES, found.new_zeros(found.shape[:-1]))
        on_image = found[..., list(self.image)].sum(-1)
        places["other views"] = on_image - own.sum((-2, -1))
        if self.first is not None:
            places["bos"] = found[..., self.first]
        places["text"] = found.sum(-1) - on_image - places["bos"]
        rest = torch.stack([places[one] for one in REST_PLACES], dim=-1)
        return LayerAttention(name, self.view.name, self.view.grid, own.contiguous(), own.mean(2), rest, heads)


def _of_answer(
    subject: Subject, picture: Any, text: str, phrases: Sequence[Any], method: Method, prompt: str
) -> AttentionRecord:
    model, processor = subject.model, subject.processor
    words, places, _ = place_texts(phrases, text)  # refused before anything is computed
    inputs, start = inputs_with_answer(subject, picture, prompt, text)
    # One layer is recorded beside, for tokens, geometry and source.
    recorder = Recorder(model, processor, layers=[0], heads=[0], answer_start=start)
    graph = AttentionGraph(model, attention_modules(model, subject.family))
    with graph, recorder:
        logits = model(**inputs, use_cache=False).logits[0]
    record, track = recorder.result(image=picture), recorder.tracks[0]
    if record.text != text.strip():
        raise InputError(
            f"The tokenizer gives the text back as {record.text!r} instead of {text!r}, so the phrases' places in it are lost."
        )
    cut = len(text) - len(text.lstrip())
    spans = tuple((max(low - cut, 0), high - cut) for low, high in places)
    tokens = [record.tokens_of(*span) for span in spans]
    rows = [[start + one - 1 for one in some] for some in tokens]
    with torch.inference_mode(False), torch.enable_grad():
        scores = [
            logits[where, [record.token_ids[one] for one in some]].double().sum()
            for where, some in zip(rows, tokens, strict=True)
        ]
    seen = views_of(
        track.sequence.units,
        track.sequence.image_keys,
        model=model,
        processor=processor,
        family=subject.family,
        images=picture,
    )
    layout = track.layout
    assert layout is not None  # for the type checker: a sequence without an image has no record
    views = [_Positions(view, layout.image, layout.bos) for view in seen.views]
    layers = _layers(graph, scores, rows, views, method)
    source = replace(record.source, tap=_tap(method), ablation="")
    return replace(
        record,
        layers=layers,
        quantity="relevance",
        tokens=words,
        token_ids=(-1,) * len(words),
        spans=spans,
        softmax_over=None,
        certificate=_certificate(graph, layers, len(words)),
        source=source,
    )


def _of_similarity(
    subject: Subject, picture: Any, text: str, phrases: Sequence[Any], method: Method
) -> AttentionRecord:
    model = subject.model
    words, spans, whole = place_texts(phrases, text)
    inputs = encode_texts(subject, words)
    pixels = subject.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(model.device, model.dtype)
    preparation = checked_preparation(subject.processor, picture, seen=pixels, family=subject.family)
    grid = preparation.grid(model.vision_model.config.patch_size)
    graph = AttentionGraph(model, encoder_modules(model))
    with graph:
        output = model(**inputs, pixel_values=pixels)
        similarity = output.logits_per_image[0].double() / model.logit_scale.detach().double().exp()
        scores = list(similarity.unbind())
    patches = tuple(range(1, 1 + grid.shape[0] * grid.shape[1]))
    views = [_Positions(View("image 0", grid, patches), patches, 0)]
    layers = _layers(graph, scores, [[0]] * len(words), views, method)
    return AttentionRecord(
        layers=layers,
        quantity="relevance",
        query_kind="class token",
        tokens=words,
        token_ids=(-1,) * len(words),
        spans=spans,
        text=whole,
        image_size=grid.image_size,
        softmax_over=None,
        query_row=None,
        certificate=_certificate(graph, layers, len(words)),
        source=make_source(
            model,
            subject.family,
            tap=_tap(method),
            kernel=graph.kernel,
            dtype=graph.dtype,
            preparation=preparation.steps,
            prompt=whole,
        ),
    )


def _layers(
    graph: AttentionGraph, scores: list[Tensor], rows: list[list[int]], views: list[_Positions], method: Method
) -> tuple[LayerAttention, ...]:
    """The layers of the record, by one backward pass for each score."""
    names, weights = list(graph.names.values()), graph.weights
    if method == "chefer":
        found = [
            relevance_rollout(weights, graph.gradients(score))[where].mean(0)
            for score, where in zip(scores, rows, strict=True)
        ]
        rolled = torch.stack(found)[:, None]
        return tuple(view.layer(f"rollout of {len(names)} layers", rolled, (-1,)) for view in views)
    means = [gradient_means(graph.gradients(score)) for score in scores]  # phrase, layer -> (head, key)
    heads = tuple(range(weights[0].shape[0]))
    return tuple(
        view.layer(name, torch.stack([one[number] for one in means]), heads)
        for number, name in enumerate(names)
        for view in views
    )


def _tap(method: Method) -> str:
    return f"{method}, by gradients through recomputed attention"


def _certificate(graph: AttentionGraph, layers: tuple[LayerAttention, ...], tokens: int) -> Certificate:
    rows = sum(one.shape[1] for one in graph.weights)
    views = {one.view: one.grid.shape[0] * one.grid.shape[1] for one in layers}
    return Certificate("all", rows, graph.error, graph.tolerance, len(graph.names), tokens, sum(views.values()))
