"""Attention weights as nodes of the graph that gradients flow through, without changing the model; and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from probe.capture.hooks import require_uncompiled
from probe.capture.recordings import Watching
from probe.capture.taps import AttentionCall, edit_registry, edits_of
from probe.capture.weights import attention_with_gradient, reproduction_error, tolerance_of
from probe.errors import CaptureError, CertificateError

__all__ = ["AttentionGraph", "gradient_means", "relevance_rollout"]


class AttentionGraph(Watching):
    """A context in which each of these modules' attention output is made from weights that gradients can be taken by.

    For the length of the context the output of every call is recomputed as softmax(q k) v from what the kernel was given, in
    float32, and takes the place of the kernel's own, against which it is checked. No parameter needs a gradient.

    Attributes
    ----------
    weights : (head, query, key) of each module, in the order of the modules, once the model has run.
    error : largest difference of any head's output from its kernel's, relative to it.
    tolerance : what ``error`` may be.
    kernel, dtype : of the model itself.
    """

    def __init__(self, model: nn.Module, modules: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        require_uncompiled(model)
        if model.training:
            raise CaptureError("The model is in training mode; call model.eval() first.")
        if open_edits := edits_of(model.modules()):
            raise CaptureError(
                f"Gradients are taken through the model as it is, but something is taken away from it now ({open_edits[0]}); ask "
                "for the relevance outside of that context."
            )
        self.names = {module: name for name, module in modules}
        self.error, self.tolerance, self.kernel = 0.0, 0.0, ""
        self.dtype: torch.dtype | None = None
        self._seen: dict[nn.Module, Tensor] = {}

    def _attach(self, attached: ExitStack) -> None:
        # A tensor made in inference mode has no gradient, whatever is enabled inside of it.
        attached.enter_context(torch.inference_mode(False))
        attached.enter_context(torch.enable_grad())
        attached.enter_context(edit_registry(self.names, self._rebuild, name="attention with gradient"))

    @property
    def weights(self) -> list[Tensor]:
        unseen = [name for module, name in self.names.items() if module not in self._seen]
        if unseen:
            raise CaptureError(
                f"{len(unseen)} of {len(self.names)} attention modules were not seen, the first {unseen[0]}: their attention does "
                "not go through transformers' attention functions, so there is no gradient of it."
            )
        if not self.error <= self.tolerance:
            raise CertificateError(
                f"The recomputed attention does not rebuild what the model computed: largest error {self.error:.1e} of the output, "
                f"allowed {self.tolerance:.0e} for {self.dtype} under {self.kernel!r}; run `probe check` on the model."
            )
        return [self._seen[module] for module in self.names]

    def gradients(self, score: Tensor) -> list[Tensor]:
        """(head, query, key) gradient of a score by the weights of each module; the graph stays for other scores.

        Raises
        ------
        CaptureError
            If the score does not depend on one of them.
        """
        weights = self.weights
        found = torch.autograd.grad(score, weights, retain_graph=True, allow_unused=True)
        if any(one is None for one in found):
            name = next(name for name, one in zip(self.names.values(), found, strict=True) if one is None)
            raise CaptureError(f"The score does not depend on the attention of {name}, so there is no gradient by it.")
        return list(found)

    def _rebuild(self, module: nn.Module, call: AttentionCall) -> Tensor:
        if not self._mine():
            return call.output
        if module in self._seen:
            raise CaptureError(
                f"{self.names[module]} ran a second time; gradients are taken through one pass, read without generating."
            )
        weights, output = attention_with_gradient(module, call)
        heads, rows = tuple(range(weights.shape[0])), torch.arange(weights.shape[1], device=weights.device)
        error = float(reproduction_error(call, weights.detach(), rows=rows, heads=heads))
        self.kernel, self.dtype = call.kernel, call.query.dtype
        self.error, self.tolerance = max(self.error, error), tolerance_of(self.dtype, self.kernel)
        self._seen[module] = weights
        return output[None].to(call.output.dtype)


@torch.no_grad()
def relevance_rollout(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """(query, key) relevance R of every position to every other, through all layers.

    From the identity, layer by layer: A' = mean over heads of max(dA * A, 0), R <- R + A' R.

    Parameters
    ----------
    weights, gradients : (head, query, key) of each layer, in order.

    References
    ----------
    Chefer, Gur, Wolf, Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers, ICCV 2021,
    Eq. 5 and 6.
    """
    found = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype, device=weights[0].device)
    for one, gradient in zip(weights, gradients, strict=True):
        found = found + (gradient * one).clamp(min=0).mean(0).to(found.device) @ found
    return found


@torch.no_grad()
def gradient_means(gradients: Sequence[Tensor]) -> list[Tensor]:
    """(head, key) of each layer: mean over queries of max(ds/dA, 0). Their mean over heads, summed over layers, is LeGrad's map.

    The paper takes s from each layer's own output; here it is the model's, for all layers.

    References
    ----------
    Bousselham et al., LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity, ICCV 2025.
    """
    return [one.clamp(min=0).mean(1) for one in gradients]
