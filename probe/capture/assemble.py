"""From the rows that a recorder collected to a record: tokens, geometry, certificate and source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.geometry import Preparation, checked_preparation
from probe.capture.sequence import patch_size
from probe.capture.tokens import spell
from probe.capture.weights import tolerance_of
from probe.errors import CaptureError, CertificateError, InputError
from probe.families import Family
from probe.layout import View, resolve_indices
from probe.provenance import Certificate, Source
from probe.text import shorten

if TYPE_CHECKING:
    from probe.capture.recorder import Recorder

__all__ = ["assemble", "make_source", "normalisation_note", "seed_of"]


def assemble(recorder: Recorder, image: Any) -> AttentionRecord:
    """The record of a recorder's finished pass; see ``Recorder.result``."""
    ids = _token_ids(recorder)
    spelled = spell(recorder.processor.tokenizer, ids)
    if not spelled.text.strip() and recorder.queries != "prompt":
        raise InputError(
            f"The answer is empty: the model gave only {list(spelled.tokens)}; ask something else or give answer=."
        )
    certificate = _certificate(recorder, ids)
    preparation = _preparation(recorder, image)
    assert recorder.layout is not None  # for the type checker: every finished pass has a layout
    grid = preparation.grid(patch_size(recorder.model))
    views = [replace(view, grid=grid) for view in recorder.layout.views]
    kept = _kept_tokens(recorder, len(ids))
    layers = tuple(
        _layer(recorder, module, name, number, view, kept)
        for module, name in recorder.layers.items()
        for number, view in enumerate(views)
    )
    return AttentionRecord(
        layers=layers,
        quantity="attention",
        query_kind="prompt token" if recorder.queries == "prompt" else "generated token",
        tokens=tuple(spelled.tokens[i] for i in kept),
        token_ids=tuple(ids[i] for i in kept),
        spans=tuple(spelled.spans[i] for i in kept),
        text=spelled.text,
        image_size=preparation.image_size,
        softmax_over="sequence",
        query_row=recorder.query_row,
        certificate=certificate,
        source=_source(recorder, preparation),
    )


def _token_ids(recorder: Recorder) -> list[int]:
    """The ids of the tokens that were read, checked against what the model was fed and gave out."""
    sequence, plan = recorder.sequence, recorder._plan
    if sequence is None or plan is None:
        raise CaptureError("Nothing was recorded: the model was not called inside the context.")
    if plan.kind == "prompt":
        return [sequence.prompt[i] for i in plan.prompt]
    start = plan.start
    if recorder.output_ids is None:
        ids = sequence.ids[start:]
        if not ids:
            raise CaptureError(
                "One forward pass was recorded and nothing was generated, so there is no answer to read: use model.generate, "
                'probe.run(..., answer="..."), or record(..., queries="prompt").'
            )
        return ids
    ids = recorder.output_ids[start:]
    if recorder.output_ids[:start] != sequence.prompt or sequence.ids[start:] != ids[:-1]:
        raise CaptureError(
            "The tokens that generate gave out are not those that the model was fed while it was recorded."
        )
    # The last token is given out but never fed back, so it has no row of its own.
    return ids[:-1] if plan.query_row == "own" else ids


def _kept_tokens(recorder: Recorder, count: int) -> tuple[int, ...]:
    if isinstance(recorder.queries, str):
        return tuple(range(count))
    return resolve_indices(tuple(recorder.queries), count, what="query")


def _certificate(recorder: Recorder, ids: list[int]) -> Certificate:
    tolerance = tolerance_of(recorder.dtype, recorder.kernel)
    layout = recorder.layout
    assert layout is not None  # for the type checker: every finished pass has a layout
    counts = {recorder.layers[module]: store.count for module, store in recorder.stores.items()}
    wrong = {name: counts.get(name, 0) for name in recorder.layers.values() if counts.get(name, 0) != len(ids)}
    if wrong:
        name, count = next(iter(wrong.items()))
        raise CertificateError(
            f"{len(wrong)} of {len(recorder.layers)} layers were not read for every token: {name} has {count} of {len(ids)} rows."
        )
    if recorder.verify != "off" and not recorder.max_error <= tolerance:
        raise CertificateError(
            f"The recorded attention does not rebuild what the model computed: largest error {recorder.max_error:.1e} of the "
            f"output in {recorder.worst}, allowed {tolerance:.0e} for {recorder.dtype} under {recorder.kernel!r}. The kernel does "
            'something that is not known here; try attn_implementation="sdpa" or "eager", and run `probe check` on the model.'
        )
    patches = sum(len(view.positions) for view in layout.views)
    return Certificate(
        recorder.verify, recorder.checked_rows, recorder.max_error, tolerance, len(recorder.layers), len(ids), patches
    )


def _layer(
    recorder: Recorder, module: Any, name: str, number: int, view: View, kept: tuple[int, ...]
) -> LayerAttention:
    store = recorder.stores[module]
    values, mean, rest = store.finished(number)
    # A store holds its tokens in the order of the calls; the record holds them as they were asked for.
    where = {token: place for place, token in enumerate(store.tokens)}
    order = [where[token] for token in kept]
    rows, cols = view.grid.shape
    return LayerAttention(
        name=name,
        view=view.name,
        grid=view.grid,
        values=rearrange(values[:, order], "head token (row col) -> 1 head token row col", row=rows, col=cols),
        token_mean=rearrange(mean, "head (row col) -> 1 head row col", row=rows, col=cols),
        rest=rearrange(rest[:, order], "head token place -> 1 head token place"),
        heads=recorder.heads,
    )


def _preparation(recorder: Recorder, image: Any) -> Preparation:
    seen = recorder.sequence.pixels if recorder.sequence is not None else None
    assert seen is not None  # for the type checker: the layout refused a pass without a picture
    return checked_preparation(recorder.processor, image, seen=seen, family=recorder.family)


def _source(recorder: Recorder, preparation: Preparation) -> Source:
    sequence = recorder.sequence
    prompt = ""
    if sequence is not None:
        # Hundreds of placeholders say nothing: one stands for all of them.
        image = [i for i, one in enumerate(sequence.prompt) if one == sequence.image_token]
        ids = [one for i, one in enumerate(sequence.prompt) if i not in set(image[1:])]
        prompt = shorten(recorder.processor.tokenizer.decode(ids), 2000)
    return make_source(
        recorder.model,
        recorder.family,
        tap="transformers attention functions",
        kernel=recorder.kernel,
        dtype=recorder.dtype,
        preparation=preparation.steps,
        prompt=prompt,
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
