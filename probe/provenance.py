"""What proves a record, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Certificate", "Source"]


@dataclass(frozen=True)
class Certificate:
    """How a record proves that it is what the model computed.

    Attributes
    ----------
    verify : which rows were checked: "sample", "all" or "off".
    rows : number of (layer, query row) pairs whose weights times v were compared with the kernel's own output.
    max_error : largest difference over all heads of those rows, relative to the head's largest output in the rows checked.
    tolerance : what ``max_error`` was allowed to be for this dtype.
    layers : attention modules seen, equal to the number that the model's configuration states.
    tokens : recorded token ids, each equal to what the model was fed or gave out.
    patches : image positions in the sequence, each an image placeholder in the model's own input.
    """

    verify: Literal["sample", "all", "off"]
    rows: int
    max_error: float
    tolerance: float
    layers: int
    tokens: int
    patches: int

    @property
    def passed(self) -> bool:
        """True if rows were checked and all lie within the tolerance."""
        return self.rows > 0 and self.max_error <= self.tolerance


@dataclass(frozen=True)
class Source:
    """Where a record comes from: enough to make it again.

    Attributes
    ----------
    ablation : the heads that were taken away while it was made, such as "zero: (1, 4), (2, 0)"; nested ablations in the order
        in which they began, with "; " between them; empty for the model as it is.
    """

    family: str
    model: str
    revision: str
    tap: str
    kernel: str
    dtype: str
    preparation: str
    prompt: str
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    ablation: str = ""
