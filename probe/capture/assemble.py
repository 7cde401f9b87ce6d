"""From the rows that a recorder collected to a record: tokens, geometry, certificate and source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.reduce import RowStore
from probe.capture.tokens import spell
from probe.capture.tracks import Track
from probe.capture.views import views_of
from probe.errors import CaptureError, CertificateError, InputError
from probe.families import Family
from probe.layout import View, resolve_indices
from probe.provenance import Certificate, Source
from probe.text import shorten

if TYPE_CHECKING:
    from probe.capture.recorder import Recorder

__all__ = ["assemble", "make_source", "normalisation_note", "seed_of"]


def assemble(recorder: Recorder, track: Track, image: Any) -> AttentionRecord:
    """The record of one sequence of a recorder's finished pass; see ``Recorder.result``."""
    if track.layout is None:
        raise InputError("This sequence has no image, so there are no patches to record.")
    ids = _token_ids(track)
    spelled = spell(recorder.processor.tokenizer, ids)
    if not spelled.text.strip() and recorder.queries != "prompt":
        raise InputError(
            f"The answer is empty: the model gave only {list(spelled.tokens)}; ask something else or give answer=."
        )
    seen = views_of(
        track.sequence.units,
        track.sequence.image_keys,
        model=recorder.model,
        processor=recorder.processor,
        family=recorder.family,
        images=image,
    )
    certificate = _certificate(recorder, track, ids, seen.views)
    kept = _kept_tokens(recorder, len(ids))
    layers = tuple(
        _layer(recorder, track.stores[module], name, view, kept)
        for module, name in recorder.layers.items()
        for view in seen.views
    )
    return AttentionRecord(
        layers=layers,
        quantity="attention",
        query_kind="prompt token" if recorder.queries == "prompt" else "generated token",
        tokens=tuple(spelled.tokens[i] for i in kept),
        token_ids=tuple(ids[i] for i in kept),
        spans=tuple(spelled.spans[i] for i in kept),
        text=spelled.text,
        image_size=seen.image_size,
        softmax_over="patches" if recorder.family.image_tokens == "cross-attention" else "sequence",
        query_row=recorder.query_row,
        certificate=certificate,
        source=_source(recorder, track, seen.steps),
    )


def _token_ids(track: Track) -> list[int]:
    """The ids of the tokens that were read, checked against what the model was fed and gave out."""
    sequence, plan = track.sequence, track.plan
    if plan is None:
        raise CaptureError("Nothing was recorded: the model was not called inside the context.")
    if plan.kind == "prompt":
        return [sequence.prompt[i] for i in plan.prompt]
    start = plan.start
    if track.output_ids is None:
        ids = sequence.ids[start:]
        if not ids:
            raise CaptureError(
                "One forward pass was recorded and nothing was generated, so there is no answer to read: use model.generate, "
                'probe.run(..., answer="..."), or record(..., queries="prompt").'
            )
        return ids
    ids = track.output_ids[start:]
    if track.output_ids[:start] != sequence.prompt or sequence.ids[start:] != ids[:-1]:
        raise CaptureError(
            "The tokens that generate gave out are not those that the model was fed while it was recorded."
        )
    # The last token is given out but never fed back, so it has no row of its own.
    return ids[:-1] if plan.query_row == "own" else ids


def _kept_tokens(recorder: Recorder, count: int) -> tuple[int, ...]:
    if isinstance(recorder.queries, str):
        return tuple(range(count))
    return resolve_indices(tuple(recorder.queries), count, what="query")


def _certificate(recorder: Recorder, track: Track, ids: list[int], views: tuple[View, ...]) -> Certificate:
    counts = {recorder.layers[module]: store.count for module, store in track.stores.items()}
    wrong = {name: counts.get(name, 0) for name in recorder.layers.values() if counts.get(name, 0) != len(ids)}
    if wrong:
        name, count = next(iter(wrong.items()))
        raise CertificateError(
            f"{len(wrong)} of {len(recorder.layers)} layers were not read for every token: {name} has {count} of {len(ids)} rows."
        )
    return track.rebuilt.certificate(
        recorder.dtype,
        recorder.kernel,
        layers=len(recorder.layers),
        tokens=len(ids),
        patches=sum(len(view.positions) for view in views),
        advice='The kernel does something that is not known here; try attn_implementation="sdpa" or "eager", and run '
        "`probe check` on the model.",
    )


def _layer(recorder: Recorder, store: RowStore, name: str, view: View, kept: tuple[int, ...]) -> LayerAttention:
    values, mean, rest = store.finished(view)
    # A store holds its tokens in the order of the calls; the record holds them as they were asked for.
    if store.tokens != list(kept):
        where = {token: place for place, token in enumerate(store.tokens)}
        order = [where[token] for token in kept]
        values, rest = values[:, order], rest[:, order]
    rows, cols = view.grid.shape
    return LayerAttention(
        name=name,
        view=view.name,
        grid=view.grid,
        values=rearrange(values, "head token (row col) -> 1 head token row col", row=rows, col=cols),
        token_mean=rearrange(mean, "head (row col) -> 1 head row col", row=rows, col=cols),
        rest=rearrange(rest, "head token place -> 1 head token place"),
        heads=recorder.heads,
    )


def _source(recorder: Recorder, track: Track, steps: str) -> Source:
    sequence = track.sequence
    # Hundreds of placeholders say nothing: one stands for all of them. Nor does padding.
    hidden = {*sequence.positions[1:], *(i for i, one in enumerate(sequence.attends or ()) if not one)}
    ids = [one for i, one in enumerate(sequence.prompt) if i not in hidden]
    return make_source(
        recorder.model,
        recorder.family,
        tap="transformers attention functions",
        kernel=recorder.kernel,
        dtype=recorder.dtype,
        preparation=steps,
        prompt=shorten(recorder.processor.tokenizer.decode(ids), 2000),
        ablation="; ".join(recorder.edits),
    )


def make_source(
    model: Any,
    family: Family,
    *,
    tap: str,
    kernel: str,
    dtype: torch.dtype | None,
    preparation: str,
    prompt: str = "",
    ablation: str = "",
) -> Source:
    """Where a record of this transformers model comes from."""
    import transformers

    import probe

    config = model.config
    return Source(
        family=family.name,
        model=str(getattr(config, "name_or_path", "") or type(model).__name__),
        revision=str(getattr(config, "_commit_hash", None) or ""),
        tap=tap,
        kernel=kernel,
        dtype=str(dtype).removeprefix("torch."),
        preparation=preparation + normalisation_note(config),
        prompt=prompt,
        versions={
            "groundprobe": probe.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        seed=seed_of(config),
        ablation=ablation,
    )


def seed_of(config: Any) -> int | None:
    """What the noise of a model's own diffusion side follows from; ``None`` for a model without one."""
    found = getattr(getattr(config, "diffusion_config", None), "seed", None)
    return None if found is None else int(found)


def normalisation_note(config: Any) -> str:
    """What there is to say of a picture that is normalised otherwise than was meant, as the weights were trained with."""
    return ", normalised as released" if getattr(config, "normalisation", None) == "as-released" else ""
