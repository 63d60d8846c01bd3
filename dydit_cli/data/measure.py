"""Mean and std of a set of latents, by channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dydit_cli.model.latent_norm import LatentNorm

MOST = 10_000  # images, as LightningDiT takes


def measure(row: Callable[[int], Tensor], count: int) -> LatentNorm:
    """The statistics of `count` latents, `row(i)` being ... C S S; of more than 10,000 those of a fixed choice of so many.

    The std is the unbiased one over images and pixels. The sums are float64. Raises `DyditError` for a constant channel.
    """
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST].sort().values.tolist()
    total, squares, number = torch.zeros(1), torch.zeros(1), 0
    for i in chosen:
        values = row(i).double().movedim(-3, 0).flatten(1)  # C N
        total, squares = total + values.sum(1), squares + values.square().sum(1)
        number += values.shape[1]
    mean = total / number
    std = ((squares - number * mean.square()).clamp(min=0) / max(number - 1, 1)).sqrt()
    return LatentNorm(1.0, tuple(mean.float().tolist()), tuple(std.float().tolist()))
