"""What is kept of a denoiser's passes: the maps of every timestep, or their running mean."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probe.errors import CaptureError

__all__ = ["StepStore"]


@dataclass
class StepStore:
    """The maps of one layer, collected pass by pass.

    Attributes
    ----------
    mean : True holds a running sum, so that memory does not grow with the number of passes; False keeps them all.
    offload : True moves every map to host memory as soon as it is there.
    """

    mean: bool
    offload: bool
    count: int = 0
    patches: int = 0
    _kept: list[Tensor] = field(default_factory=list)
    _sum: Tensor | None = None
    _dtype: torch.dtype = torch.float32

    def add(self, maps: Tensor) -> None:
        """Take the (head, token, row, col) maps of one pass."""
        maps = maps.to("cpu") if self.offload else maps
        self.count += 1
        self.patches = maps.shape[-2] * maps.shape[-1]
        if not self.mean:
            self._kept.append(maps)
            return
        self._dtype = maps.dtype
        # In double precision, so that the mean over a thousand passes is as good as that over one.
        self._sum = maps.double() if self._sum is None else self._sum.add_(maps)

    def finished(self) -> Tensor:
        """(timestep, head, token, row, col) maps, with one timestep for a mean.

        Raises
        ------
        CaptureError
            If one of them is not a number.
        """
        found = torch.stack(self._kept) if self._sum is None else (self._sum / self.count).to(self._dtype)[None]
        if bool(torch.isnan(found).any()):
            raise CaptureError(
                "A recorded row is not a number: the denoiser itself computes NaN (often in half precision), or every key of a row "
                "is masked. Check whether the model's output is finite."
            )
        return found
