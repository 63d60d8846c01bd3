"""Flow matching: a path between noise and data, and what a model of it predicts (SiT, arXiv 2401.08740).

Legend: B batch, C channels, S size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dydit_cli.diffusion.objective import LossTerms
from dydit_cli.diffusion.options import TimestepDraw
from dydit_cli.diffusion.paths import HALF_PI, PATHS, Path
from dydit_cli.diffusion.timeline import FLOW_TIMELINES, Timeline
from dydit_cli.model.config import FlowConfig, ModelConfig
from dydit_cli.model.options import FlowPath, FlowPrediction, FlowWeight

MANY = 1000  # timesteps that stand for all of them

EDGE, VP_TRAIN_EDGE = 1e-3, 1e-5  # how near an end comes where the path, or what is predicted, is infinite there


@dataclass(frozen=True)
class FlowMatching:
    """t runs over [0, 1] and is noise at `noise_at`, as SiT's 0 or REPA's 1; x_t is a mixture on the `path`.

    An output is by `prediction` the velocity dx_t/dt, the score, or the noise. The loss is its mean squared error, of a score
    times sigma, which is the noise's too; `loss_weight` weighs those two by t. A velocity's is not weighed. `timestep_draw`
    is how t is drawn in training: evenly, or logit-normal, many in the middle (arXiv 2403.03206).

    Min-SNR (arXiv 2303.09556) takes the place of `loss_weight`. It weighs the squared error of x1, the data, by min(SNR,
    gamma), SNR being alpha^2 / sigma^2. At a given x_t an error d of x1 is one of -alpha/sigma d of the noise, and of
    (alpha' - sigma' alpha/sigma) d of the velocity alpha' x1 + sigma' x0, which is -turn/sigma d with turn = alpha sigma' -
    sigma alpha'. So a squared error of the noise weighs min(alpha^2, gamma sigma^2) / alpha^2, and one of the velocity
    min(alpha^2, gamma sigma^2) / turn^2.
    """

    path: FlowPath = "linear"
    prediction: FlowPrediction = "velocity"
    loss_weight: FlowWeight = "none"
    noise_at: int = 0
    timestep_draw: TimestepDraw = "uniform"

    @classmethod
    def of(cls, config: ModelConfig, timestep_draw: TimestepDraw = "uniform") -> FlowMatching:
        """The process of a family's configuration."""
        flow = cast(FlowConfig, config)
        return cls(flow.path, flow.prediction, flow.loss_weight, flow.noise_at, timestep_draw)

    def describe(self) -> dict[str, Any]:
        """What there is to know of it, in a few words."""
        return {
            "name": "flow matching", "predicts": self.prediction, "path": self.path, "t": "0 to 1", "noise_at": self.noise_at,
        }  # fmt: skip

    @property
    def timeline(self) -> Timeline:
        return FLOW_TIMELINES[self.noise_at]

    @property
    def span(self) -> tuple[float, float]:
        start, end = self._ends(VP_TRAIN_EDGE)
        return min(start, end), max(start, end)

    def run(self, last: float | None = None) -> tuple[float, float]:
        """Where sampling starts and where it ends, `last` before the data if given."""
        return self._ends(EDGE, last)

    def _ends(self, vp_edge: float, last: float | None = None) -> tuple[float, float]:
        """From noise to data, with what has to be left out at each end."""
        low, high = (0.0, vp_edge) if self.path == "vp" else (EDGE, EDGE) if self.prediction != "velocity" else (0.0, 0.0)
        start, end = low, 1 - (high if last is None else last)
        return (start, end) if self.noise_at == 0 else (1 - start, 1 - end)

    def draw(self, count: int, strata: int, generator: torch.Generator) -> Tensor:
        quantile = ((torch.arange(count) % strata) + torch.rand(count, generator=generator)) / strata
        if self.timestep_draw == "uniform":
            return self._within(quantile)
        normal = torch.special.ndtri(quantile)
        t = normal.exp().atan() / HALF_PI if self.path == "gvp" else normal.sigmoid()
        return t.clamp(*self.span)

    def spread(self, count: int, generator: torch.Generator) -> Tensor:
        return self._within((torch.arange(count) + torch.rand(count, generator=generator)) / count)

    def _within(self, share: Tensor) -> Tensor:
        low, high = self.span
        return share * (high - low) + low

    def every(self) -> Tensor:
        return torch.linspace(*self.span, MANY)

    def grid(self, count: int) -> list[float]:
        return torch.linspace(*self.span, count).tolist()

    def number(self, timestep: float) -> int:
        low, high = self.span
        return round((timestep - low) / (high - low) * (MANY - 1))

    def along(self, t: Tensor, like: Tensor) -> tuple[Path, Tensor]:
        """The path, and the place on it that t (B,) is: 0 at noise, 1 at data, of `like`'s device and dtype, B 1 1 1."""
        t = t.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))
        return PATHS[self.path], t if self.noise_at == 0 else 1 - t

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        path, s = self.along(t, x0)
        return path.alpha(s) * x0 + path.sigma(s) * noise

    def losses(
        self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weigh: float | None = None
    ) -> LossTerms:
        return LossTerms(self._mean(self.errors(output, x0, x_t, t, noise), t, weigh), None)

    def distance(self, output: Tensor, other: Tensor, channels: int, t: Tensor, weigh: float | None = None) -> Tensor:
        errors = (output - other).square()
        if self.prediction == "score":
            path, s = self.along(t, output)
            errors = errors * path.sigma(s).square()
        return self._mean(errors, t, weigh)

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        path, s = self.along(t, x0)
        if self.prediction == "noise":
            return noise
        if self.prediction == "score":
            return -noise / path.sigma(s)
        return self._sign * (path.alpha_slope(s) * x0 + path.sigma_slope(s) * noise)

    def errors(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        if self.prediction == "score":
            path, s = self.along(t, x0)
            return (path.sigma(s) * output + noise).square()
        return (output - self.target(x0, t, noise)).square()

    def _mean(self, errors: Tensor, t: Tensor, gamma: float | None) -> Tensor:
        """(B,) weighed means."""
        path, s = self.along(t, errors)
        if gamma is not None:
            alpha, sigma = path.alpha(s).square(), path.sigma(s).square()
            errors = errors * torch.minimum(alpha, gamma * sigma)
            errors = errors / (path.turn(s).square() if self.prediction == "velocity" else alpha)
        elif self.prediction != "velocity" and self.loss_weight != "none":
            diffusion, sigma = path.diffusion(s), path.sigma(s)
            errors = errors * ((diffusion / sigma).square() if self.loss_weight == "velocity" else diffusion / sigma.square())
        return errors.flatten(1).mean(dim=1)

    @property
    def _sign(self) -> int:
        """Which way t goes along the path."""
        return 1 if self.noise_at == 0 else -1

    def to_noise(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        path, s = self.along(t, x_t)
        if self.prediction == "noise":
            return output
        if self.prediction == "score":
            return -path.sigma(s) * output
        return (path.alpha(s) * self._sign * output - path.alpha_slope(s) * x_t) / path.turn(s)

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        path, s = self.along(t, x_t)
        if self.prediction == "velocity":
            return (path.sigma_slope(s) * x_t - path.sigma(s) * self._sign * output) / path.turn(s)
        return (x_t - path.sigma(s) * self.to_noise(output, x_t, t)) / path.alpha(s)

    def to_score(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "score":
            return output
        path, s = self.along(t, x_t)
        return -self.to_noise(output, x_t, t) / path.sigma(s)

    def to_velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "velocity":
            return output
        path, s = self.along(t, x_t)
        growth = path.growth(s)
        noise = self.to_noise(output, x_t, t)
        return self._sign * (growth * x_t - (growth * path.sigma(s) - path.sigma_slope(s)) * noise)
