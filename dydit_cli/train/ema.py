"""The exponential moving average of the weights, which is what gets saved."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Averages every parameter of a model, by `decay` per step.

    The first steps use (1 + n) / (10 + n), so that a short run is not left with its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Loads the averaged weights into `model`."""
        model.load_state_dict(self.weights, strict=True)
