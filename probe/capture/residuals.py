"""What is added to CLIP's class token on its way through the image encoder, watched in one pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.hooks import require_uncompiled, watch_forward
from probe.capture.modules import encoder_modules, image_encoder
from probe.capture.recordings import Watching
from probe.capture.taps import AttentionCall, watch_registry
from probe.capture.weights import attention_rows, reproduction_error
from probe.errors import CaptureError

__all__ = ["Residuals"]


class Residuals(Watching):
    """Everything that is added to the class token on its way through the encoder, in one pass; a context manager."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        require_uncompiled(model)
        _, self.tower, _ = image_encoder(model)
        found = encoder_modules(model)
        self.names = [name for name, _ in found]
        self.attention = [module for _, module in found]
        self.layers = list(self.tower.encoder.layers)
        self.error, self.kernel = 0.0, ""
        self.dtype: torch.dtype | None = None
        # The class token's own row of each, by module.
        self._added: dict[nn.Module, Tensor] = {}
        # (head, key, channel) values times the class token's attention weights, by module.
        self._weighted: dict[nn.Module, Tensor] = {}
        self._start: Tensor | None = None
        self._final: Tensor | None = None

    def _attach(self, attached: ExitStack) -> None:
        outputs = [part for one in self.layers for part in (one.self_attn.out_proj, one.mlp)]
        if any(type(one.self_attn.out_proj) is not nn.Linear for one in self.layers):
            raise CaptureError(
                "An output projection of the image encoder is not a plain linear layer (an adapter, or quantised), so it cannot be "
                "split into heads; merge the adapter, or load the model unquantised."
            )
        attached.enter_context(watch_registry(self.attention, self._see))
        attached.enter_context(watch_forward(outputs, after=self._keep_output))
        attached.enter_context(watch_forward([self.layers[0], self.tower.post_layernorm], before=self._keep_input))

    @property
    def final(self) -> Tensor:
        """(channel,) the class token's last state, before the last LayerNorm."""
        if self._final is None or self._start is None or len(self._added) != 2 * len(self.layers):
            raise CaptureError("The image encoder did not run through all of its layers, so it cannot be taken apart.")
        return self._final

    def parts(self, along: Tensor, last_bias: Tensor) -> dict[str, Tensor]:
        """What each part adds along (text, channel) directions, by the names of ``Decomposition``, on the host."""
        assert self._start is not None  # for the type checker: ``final`` was read before
        through, mlp, bias = [], [], []
        for layer, attention in zip(self.layers, self.attention, strict=True):
            weighted = self._weighted[attention]
            projection = layer.self_attn.out_proj
            # (channel out, head, channel of a head): each head has its slice of the output projection.
            sliced = projection.weight.double().unflatten(-1, (weighted.shape[0], -1))
            seen = torch.einsum("to,ohc->htc", along, sliced)
            through.append(torch.einsum("hkc,htc->htk", weighted, seen))
            mlp.append(along @ self._added[layer.mlp])
            constant = along.new_zeros(along.shape[1]) if projection.bias is None else projection.bias.double()
            bias.append(along @ constant)
        found = {
            "through_heads": torch.stack(through),
            "mlp": torch.stack(mlp),
            "bias": torch.stack(bias),
            "embedding": along @ self._start,
            "last_bias": last_bias,
        }
        return {name: one.cpu() for name, one in found.items()}

    def _see(self, module: nn.Module, call: AttentionCall) -> None:
        if not self._mine():
            return
        self.kernel, self.dtype = call.kernel, call.query.dtype
        heads, row = tuple(range(call.query.shape[1])), torch.zeros(1, dtype=torch.long, device=call.query.device)
        weights = attention_rows(module, call, rows=row, heads=heads)
        self.error = max(self.error, float(reproduction_error(call, weights, rows=row, heads=heads)))
        self._weighted[module] = weights[:, 0, :, None].double() * call.value[0].double()

    def _keep_output(self, module: nn.Module, output: Tensor) -> None:
        if self._mine():
            self._added[module] = output[0, 0].double()

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._mine():
            return
        state = args[0] if args else kwargs["hidden_states"]
        if module is self.layers[0]:
            self._start = state[0, 0].double()
        else:
            self._final = state.reshape(-1, state.shape[-1])[0].double()
