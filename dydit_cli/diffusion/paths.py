"""The paths between noise and data of SiT (arXiv 2401.08740): x_s = alpha(s) x1 + sigma(s) x0, x0 noise and x1 data.

s is SiT's own direction, from 0 (noise) to 1 (data). All functions are elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.model.options import FlowPath

HALF_PI = math.pi / 2

BETA_MIN, BETA_MAX = 0.1, 20.0  # of the variance-preserving path


@dataclass(frozen=True)
class Path:
    """`alpha_slope` and `sigma_slope` are the derivatives of `alpha` and `sigma` by s, and `growth` is alpha_slope / alpha."""

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    alpha_slope: Callable[[Tensor], Tensor]
    sigma_slope: Callable[[Tensor], Tensor]
    growth: Callable[[Tensor], Tensor]

    def diffusion(self, s: Tensor) -> Tensor:
        """growth sigma^2 - sigma sigma_slope: half the squared diffusion of the process whose marginals these are."""
        sigma = self.sigma(s)
        return self.growth(s) * sigma.square() - sigma * self.sigma_slope(s)

    def turn(self, s: Tensor) -> Tensor:
        """alpha sigma_slope - sigma alpha_slope: how far x_s and the velocity are from saying the same."""
        return self.alpha(s) * self.sigma_slope(s) - self.sigma(s) * self.alpha_slope(s)


def _vp_alpha(s: Tensor) -> Tensor:
    return (-0.25 * (1 - s).square() * (BETA_MAX - BETA_MIN) - 0.5 * (1 - s) * BETA_MIN).exp()


def _vp_sigma(s: Tensor) -> Tensor:
    return (1 - _vp_alpha(s).square()).sqrt()


def _vp_growth(s: Tensor) -> Tensor:
    return 0.5 * (BETA_MIN + (1 - s) * (BETA_MAX - BETA_MIN))


PATHS: dict[FlowPath, Path] = {
    "linear": Path(
        alpha=lambda s: s,
        sigma=lambda s: 1 - s,
        alpha_slope=torch.ones_like,
        sigma_slope=lambda s: -torch.ones_like(s),
        growth=lambda s: 1 / s,
    ),
    "gvp": Path(
        alpha=lambda s: (HALF_PI * s).sin(),
        sigma=lambda s: (HALF_PI * s).cos(),
        alpha_slope=lambda s: HALF_PI * (HALF_PI * s).cos(),
        sigma_slope=lambda s: -HALF_PI * (HALF_PI * s).sin(),
        growth=lambda s: HALF_PI / (HALF_PI * s).tan(),
    ),
    "vp": Path(
        alpha=_vp_alpha,
        sigma=_vp_sigma,
        alpha_slope=lambda s: _vp_alpha(s) * _vp_growth(s),
        sigma_slope=lambda s: -_vp_alpha(s).square() * _vp_growth(s) / _vp_sigma(s),
        growth=_vp_growth,
    ),
}
