"""Which sizes the axes of a network's input or output may have."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Largest size of an axis that a description may name; more is a mistake, or an attack on memory
LARGEST = 2**20


class Size(BaseModel):
    """Which sizes an axis may have.

    Attributes
    ----------
    kind : {"fixed", "step", "reference", "any"}
        ``"fixed"``: ``least``. ``"step"``: ``least + n * step``. ``"reference"``: the size of ``axis`` of ``tensor``,
        times ``scale``, plus ``offset``. ``"any"``: not told before the network has run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["fixed", "step", "reference", "any"]
    least: int = Field(default=1, ge=1, le=LARGEST)
    step: int = Field(default=0, ge=0, le=LARGEST)
    tensor: str = ""
    axis: str = ""
    scale: float = 1.0
    offset: int = 0

    def holds(self, size: int) -> int:
        """The smallest allowed size that is not below ``size``; for a fixed size that size."""
        if self.kind != "step" or size <= self.least:
            return self.least if self.kind in ("fixed", "step") else size
        return self.least + -(-(size - self.least) // self.step) * self.step
