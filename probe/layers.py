"""What one attention module contributes to a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from probe.errors import InputError
from probe.layout import REST_PLACES, PatchGrid

__all__ = ["LayerAttention"]


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """One attention module, seen through one view of the image.

    Attributes
    ----------
    name : the module's path in the model.
    view : "image 0", "thumbnail", "tile 2", ...
    grid : which rectangle of the image each (row, col) covers.
    values : (timestep, head, token, row, col) float32 (float64 for a float64 model).
    token_mean : (timestep, head, row, col), mean over *all* tokens of the answer, whatever was selected since.
    rest : (timestep, head, token, place), mass elsewhere; places are ``probe.layout.REST_PLACES``.
    heads : the model's own number of each head in ``values``; -1 for a mean over heads.
    timesteps : the scheduler's number of each timestep in ``values``; -1 for a mean, and where a model has none.
    """

    name: str
    view: str
    grid: PatchGrid
    values: Tensor
    token_mean: Tensor
    rest: Tensor
    heads: tuple[int, ...] = ()
    timesteps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.heads and self.values.ndim == 5:
            object.__setattr__(self, "heads", tuple(range(self.values.shape[1])))
        if not self.timesteps and self.values.ndim == 5:
            object.__setattr__(self, "timesteps", (-1,) * self.values.shape[0])
        steps, heads, tokens = self.values.shape[:3] if self.values.ndim == 5 else (-1, -1, -1)
        expected = {
            "values": (steps, heads, tokens, *self.grid.shape),
            "token_mean": (steps, heads, *self.grid.shape),
            "rest": (steps, heads, tokens, len(REST_PLACES)),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape or len(self.heads) != heads or len(self.timesteps) != steps:
                raise InputError(
                    f"Layer {self.name!r}: {name} has shape {found} with {len(self.heads)} head numbers and "
                    f"{len(self.timesteps)} timestep numbers; expected {shape} as (timestep, head, token, row, col), without token "
                    "for token_mean and with place for rest."
                )

    def _map(self, change: Callable[[Tensor], Tensor], **numbers: tuple[int, ...]) -> LayerAttention:
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in ("values", "token_mean", "rest")}
        return replace(self, **(changed | numbers))
