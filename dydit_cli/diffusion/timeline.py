"""The scale of a process's timesteps: from where to where they run, which end is noise, and how they are said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.diffusion.options import TRAIN_STEPS

PHASES = 4


@dataclass(frozen=True)
class Timeline:
    """Timesteps from `low` to `high`, whole numbers or any between; `noise` is the end that is pure noise."""

    low: float
    high: float
    noise: float

    @property
    def whole(self) -> bool:
        return isinstance(self.high, int)

    @property
    def rising(self) -> bool:
        """Whether sampling takes t from the lowest to the highest."""
        return self.noise == self.low

    @property
    def label(self) -> str:
        """An axis's."""
        data = "" if self.whole else f", {self.low + self.high - self.noise:g}: data"
        return f"timestep t ({self.noise:g}: pure noise{data}; sampling runs left to right)"

    def at(self, share: float) -> float:
        """The timestep at a share of the way from the lowest to the end of the scale."""
        return round(share * (self.high + 1)) if self.whole else self.low + share * (self.high - self.low)

    def text(self, timestep: float) -> str:
        """As tables and figures write it: `999`, or `0.25`."""
        return str(int(timestep)) if self.whole else f"{timestep:.3g}"

    def phases(self) -> list[str]:
        """The names of four equal parts, the noisiest first: `999 to 750`, or `0 to 0.25`."""
        edges = [self._edge(i) for i in range(PHASES + 1)]
        parts = [(low, high - 1 if self.whole else high) for low, high in pairwise(edges)]
        names = [(a, b) if self.rising else (b, a) for a, b in (parts if self.rising else parts[::-1])]
        return [f"{self.text(first)} to {self.text(last)}" for first, last in names]

    def phase_of(self, timesteps: NDArray[Any]) -> NDArray[np.int64]:
        """The place among `phases` of each timestep."""
        width = self._edge(1) - self.low
        place = ((np.asarray(timesteps) - self.low) // width).clip(0, PHASES - 1).astype(np.int64)
        return place if self.rising else PHASES - 1 - place

    def _edge(self, i: int) -> float:
        if self.whole:
            return self.low + i * (self.high + 1 - self.low) // PHASES
        return self.low + i * (self.high - self.low) / PHASES

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, float] | None) -> Timeline:
        """The inverse of `to_dict`; the usual one for None."""
        return cls(**values) if values is not None else DDPM_TIMELINE


DDPM_TIMELINE = Timeline(0, TRAIN_STEPS - 1, TRAIN_STEPS - 1)

FLOW_TIMELINES = (Timeline(0.0, 1.0, 0.0), Timeline(0.0, 1.0, 1.0))  # by the end that is noise
