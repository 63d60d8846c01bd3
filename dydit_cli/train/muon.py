"""Muon, an optimiser that orthogonalises each matrix's step (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

PyTorch has one since 2.9, for matrices alone and in bfloat16, which a CPU without it is slow at (3.6 s a step of `fashion-dit`
on one thread, 0.19 s here). This one takes all of a model's weights, and equals PyTorch's on matrices: a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose slope at 0 is steep
ITERATIONS = 5
RMS = 0.2  # of AdamW's steps (Moonlight, arXiv 2502.16982): one learning rate is for both


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with `orthogonal` true, which hold matrices alone."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"] if group.get("orthogonal") else ():
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                step = orthogonal(p.grad.lerp(momentum, MOMENTUM))  # Nesterov's
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step.to(p), alpha=-group["lr"] * RMS * max(p.shape) ** 0.5)
                p.grad = None  # done: AdamW passes it over
        return super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """M N -> M N: about U V of the singular value decomposition U S V, by Newton-Schulz iterations; singular values end
    between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x.mT if x.shape[0] > x.shape[1] else x  # the square below is then of the smaller side
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
