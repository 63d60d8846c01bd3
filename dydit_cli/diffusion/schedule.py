"""The linear noise schedule that DiT was trained with (DDPM, arXiv 2006.11239; improved DDPM, arXiv 2102.09672)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from dydit_cli.diffusion.options import TRAIN_STEPS

BETA_START, BETA_END = 1e-4, 0.02


@dataclass(frozen=True)
class Schedule:
    """Coefficients per training timestep, each a float64 tensor of shape (T,).

    `log_var_min` is the clipped posterior log-variance and `log_var_max` log(beta); the model interpolates between them.
    """

    betas: Tensor
    alphas_cumprod: Tensor = field(init=False)
    alphas_cumprod_prev: Tensor = field(init=False)
    posterior_variance: Tensor = field(init=False)
    log_var_min: Tensor = field(init=False)
    log_var_max: Tensor = field(init=False)
    posterior_mean_coef1: Tensor = field(init=False)
    posterior_mean_coef2: Tensor = field(init=False)
    sqrt_recip_alphas_cumprod: Tensor = field(init=False)
    sqrt_recipm1_alphas_cumprod: Tensor = field(init=False)

    def __post_init__(self) -> None:
        betas = self.betas
        bar = torch.cumprod(1 - betas, dim=0)
        prev = torch.cat([torch.ones_like(bar[:1]), bar[:-1]])
        variance = betas * (1 - prev) / (1 - bar)
        derived = {
            "alphas_cumprod": bar,
            "alphas_cumprod_prev": prev,
            "posterior_variance": variance,
            # the posterior variance is 0 at the first step, so its logarithm takes the second's
            "log_var_min": torch.cat([variance[1:2], variance[1:]]).log(),
            "log_var_max": betas.log(),
            "posterior_mean_coef1": betas * prev.sqrt() / (1 - bar),
            "posterior_mean_coef2": (1 - prev) * (1 - betas).sqrt() / (1 - bar),
            "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def steps(self) -> int:
        return self.betas.shape[0]

    def at(self, coefficients: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """`coefficients[t]` with `like`'s dtype and device, shaped B 1 1 1.

        Rounded to float32 on the way, as the authors' code does, so that losses are comparable to the last digit.
        """
        values = coefficients.float().to(t.device)[t].to(device=like.device, dtype=like.dtype)
        return values.view(-1, *([1] * (like.dim() - 1)))

    def min_snr_weights(self, gamma: float) -> Tensor:
        """(T,) float64: min(SNR, gamma) / SNR, what a squared noise error weighs at each timestep in the Min-SNR strategy
        (arXiv 2303.09556)."""
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        return snr.clamp(max=gamma) / snr

    def predicted_x0(self, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image, given its noise."""
        return self.at(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t - self.at(self.sqrt_recipm1_alphas_cumprod, t, x_t) * eps

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, equation 4 of DDPM."""
        signal = self.at(self.alphas_cumprod.sqrt(), t, x0)
        return signal * x0 + self.at((1 - self.alphas_cumprod).sqrt(), t, x0) * noise


@cache
def linear_schedule(steps: int = TRAIN_STEPS) -> Schedule:
    """Betas from 1e-4 to 0.02 over 1000 steps."""
    return Schedule(torch.linspace(BETA_START, BETA_END, steps, dtype=torch.float64))
