"""The training loss of DiT: noise MSE plus the variational term for the learned variance (arXiv 2102.09672, eq. 16)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.diffusion.schedule import Schedule


@dataclass(frozen=True)
class LossTerms:
    """Per-sample losses, each of shape (B,). `vb` is in bits per dimension, and None without a learned variance."""

    mse: Tensor
    vb: Tensor | None

    @property
    def loss(self) -> Tensor:
        return self.mse if self.vb is None else self.mse + self.vb


def loss_terms(schedule: Schedule, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> LossTerms:
    """Losses of a model's `output` (B C S S, or B 2C S S with the variance's values) for noise in x_t.

    x0, x_t, noise: B C S S, of videos B F C S S; t: B. The variational term sees a detached mean, so it trains the
    variance alone.
    """
    channels = x0.shape[-3]
    if output.shape[-3] == channels:
        return LossTerms(_mean(output.sub(noise).square()), None)
    eps, values = output.split(channels, dim=-3)  # each B C S S
    return LossTerms(_mean(eps.sub(noise).square()), variational_bound(schedule, eps.detach(), values, x0, x_t, t))


def variational_bound(schedule: Schedule, eps: Tensor, values: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One term of the variational bound, (B,) in bits per dimension: a KL, or at t = 0 the decoder's likelihood."""
    true_mean = _posterior_mean(schedule, x0, x_t, t)
    true_log_var = schedule.at(schedule.log_var_min, t, x_t)
    predicted_x0 = schedule.predicted_x0(eps, x_t, t)
    mean = _posterior_mean(schedule, predicted_x0, x_t, t)
    fraction = (values + 1) / 2
    log_var = fraction * schedule.at(schedule.log_var_max, t, x_t) + (1 - fraction) * true_log_var

    kl = 0.5 * (log_var - true_log_var - 1 + (true_log_var - log_var).exp() + (true_mean - mean).square() * (-log_var).exp())
    decoder = -discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_var)
    return torch.where(t == 0, _mean(decoder), _mean(kl)) / math.log(2)


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability, in nats, of the 1/255-wide bin around each x in [-1, 1] (DDPM, equation 13)."""
    inverse = (-log_scale).exp()
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))
    # the outermost bins reach to infinity
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _posterior_mean(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    return schedule.at(schedule.posterior_mean_coef1, t, x_t) * x0 + schedule.at(schedule.posterior_mean_coef2, t, x_t) * x_t


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation, which the published losses use."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)
