"""From what a ModuleRecorder collected to a record: layers with their heads, certificate and source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.own_modules import OwnLayer
from probe.capture.weights import tolerance_of
from probe.errors import CaptureError, CertificateError, InputError
from probe.images import image_size, read_image
from probe.layout import View, resolve_indices
from probe.provenance import Certificate, Source

if TYPE_CHECKING:
    from probe.capture.own import ModuleRecorder, Seen

__all__ = ["assemble_own"]

_TAPS = {
    "registry": "transformers attention functions",
    "sdpa": "torch scaled_dot_product_attention",
    "multihead": "torch.nn.MultiheadAttention, asked again",
}


def assemble_own(recorder: ModuleRecorder, image: Any) -> AttentionRecord:
    """The record of a recorder's finished pass; see ``ModuleRecorder.result``."""
    size = recorder.layout.views[0].grid.image_size
    if image is not None and (found := image_size(read_image(image))) != size:
        raise InputError(
            f"The image given to result() has {found} pixels (height, width), but the layout's grid is of an image of {size}."
        )
    certificate = _certificate(recorder)
    layers = tuple(
        _layer(recorder, layer, number, view)
        for layer in recorder.layers
        for number, view in enumerate(recorder.layout.views)
    )
    rows = recorder.shown(recorder.layers[0].modules[0]).rows
    if any(recorder.shown(one).rows != rows for layer in recorder.layers for one in layer.modules):
        raise CaptureError("The layers were given different numbers of queries; record those that are alike together.")
    own = recorder.layout.views[0].positions
    places = {position: place for place, position in enumerate(own)} if recorder.queries == "patches" else {}
    cols = recorder.layout.views[0].grid.shape[1]
    names = [str(divmod(places[one], cols)) if one in places else f"row {one}" for one in rows]
    elsewhere = recorder.layout.prompt_length > len(own)
    return AttentionRecord(
        layers=layers,
        quantity="attention",
        query_kind="patch" if recorder.queries == "patches" else "query row",
        tokens=tuple(names),
        token_ids=(-1,) * len(names),
        spans=((0, 0),) * len(names),
        text="",
        image_size=size,
        softmax_over="sequence" if elsewhere else "patches",
        query_row=None,
        certificate=certificate,
        source=_source(recorder),
    )


def _layer(recorder: ModuleRecorder, layer: OwnLayer, number: int, view: View) -> LayerAttention:
    parts = [recorder.shown(one).store.finished(number) for one in layer.modules]
    if len(parts) > 1 and any(len(one[0]) != 1 for one in parts):
        raise CaptureError(
            f"The modules behind {layer.name} attend with {[len(one[0]) for one in parts]} heads, so none of them is one head of "
            "it; leave {head} out of the pattern."
        )
    values, mean, rest = (torch.cat([one[which] for one in parts], dim=0) for which in range(3))
    try:
        heads = resolve_indices(recorder.wanted_heads, len(values), what="head")
    except InputError as error:
        raise InputError(f"{layer.name}: {error}") from None
    rows, cols = view.grid.shape
    kept = list(heads)
    return LayerAttention(
        name=layer.name,
        view=view.name,
        grid=view.grid,
        values=rearrange(values[kept], "head token (row col) -> 1 head token row col", row=rows, col=cols),
        token_mean=rearrange(mean[kept], "head (row col) -> 1 head row col", row=rows, col=cols),
        rest=rest[kept][None],
        heads=heads,
    )


def _certificate(recorder: ModuleRecorder) -> Certificate:
    found: list[tuple[str, Seen]] = [
        (layer.name, recorder.shown(module)) for layer in recorder.layers for module in layer.modules
    ]
    tolerances = {name: tolerance_of(recorder.dtype, one.kernel) for name, one in found}
    errors = [one.rebuilt.worst()[0] for _, one in found]
    if recorder.verify != "off":
        for (name, one), error in zip(found, errors, strict=True):
            if not error <= tolerances[name]:
                raise CertificateError(
                    f"The recorded attention does not rebuild what the module computed: largest error {error:.1e} of the "
                    f"output in {name}, allowed {tolerances[name]:.0e} for {recorder.dtype} under {one.kernel!r}. The layer does "
                    "something that is not known here, or what fits the pattern is not its attention."
                )
    patches = sum(len(view.positions) for view in recorder.layout.views)
    checked = sum(one.rebuilt.rows for _, one in found)
    tolerance = max(tolerances.values())
    return Certificate(
        recorder.verify, checked, max(errors), tolerance, len(recorder.layers), len(found[0][1].rows), patches
    )


def _source(recorder: ModuleRecorder) -> Source:
    import probe

    used = [recorder.seen[module] for layer in recorder.layers for module in layer.modules]
    taps = dict.fromkeys(_TAPS["registry" if "registry" in one else next(iter(one))] for one in used)
    kernels = dict.fromkeys(recorder.shown(module).kernel for layer in recorder.layers for module in layer.modules)
    return Source(
        family="own module",
        model=type(recorder.model).__name__,
        revision="",
        tap="; ".join(taps),
        kernel="; ".join(kernels),
        dtype=str(recorder.dtype).removeprefix("torch."),
        preparation="as the layout says",
        prompt="",
        versions={"groundprobe": probe.__version__, "torch": torch.__version__},
        ablation="; ".join(recorder.edits),
    )
