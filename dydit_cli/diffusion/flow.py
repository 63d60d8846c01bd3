"""Flow matching: a path between noise and data, and what a model of it predicts (SiT, arXiv 2401.08740).

Legend: B batch, C channels, S size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dydit_cli.diffusion.objective import LossTerms
from dydit_cli.model.config import FlowConfig, ModelConfig

MANY = 1000  # timesteps that stand for all of them


@dataclass(frozen=True)
class FlowMatching:
    """t runs over [0, 1] and is noise at `noise_at`; the loss is the mean squared error of the velocity."""

    noise_at: int = 0
    path: str = "linear"
    prediction: str = "velocity"
    span: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, config: ModelConfig) -> FlowMatching:
        """The process of a family's configuration."""
        flow = cast(FlowConfig, config)
        return cls(flow.noise_at, flow.path, flow.prediction)

    def describe(self) -> dict[str, Any]:
        """What there is to know of it, in a few words."""
        return {
            "name": "flow matching", "predicts": self.prediction, "path": self.path, "t": "0 to 1", "noise_at": self.noise_at,
        }  # fmt: skip

    def draw(self, count: int, strata: int, generator: torch.Generator) -> Tensor:
        return ((torch.arange(count) % strata) + torch.rand(count, generator=generator)) / strata

    def spread(self, count: int, generator: torch.Generator) -> Tensor:
        return (torch.arange(count) + torch.rand(count, generator=generator)) / count

    def every(self) -> Tensor:
        return torch.linspace(*self.span, MANY)

    def grid(self, count: int) -> list[float]:
        return torch.linspace(*self.span, count).tolist()

    def number(self, timestep: float) -> int:
        low, high = self.span
        return round((timestep - low) / (high - low) * (MANY - 1))

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        data = self._data(x0, t)
        return data * x0 + (1 - data) * noise

    def _data(self, like: Tensor, t: Tensor) -> Tensor:
        """The share of data in x_t, B 1 1 1."""
        share = t if self.noise_at == 0 else 1 - t
        return share.to(like.dtype).view(-1, *[1] * (like.dim() - 1))

    def losses(
        self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weigh: float | None = None
    ) -> LossTerms:
        return LossTerms(self.errors(output, x0, x_t, t, noise).flatten(1).mean(dim=1), None)

    def distance(self, output: Tensor, other: Tensor, channels: int, t: Tensor, weigh: float | None = None) -> Tensor:
        return (output - other).square().flatten(1).mean(dim=1)

    def errors(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        target = x0 - noise if self.noise_at == 0 else noise - x0
        return (output - target).square()
