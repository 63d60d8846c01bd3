"""What a model was trained to predict: how t runs and is drawn, how noise is added, what is compared, and what an output means.

Training, held-out losses, importance, ablations and samplers know a process by these methods alone.

Legend: B batch, C channels, S size, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dydit_cli.diffusion.flow import FlowMatching
from dydit_cli.diffusion.objective import LossTerms, loss_terms
from dydit_cli.diffusion.options import TRAIN_STEPS, TimestepDraw, spaced_timesteps
from dydit_cli.diffusion.schedule import linear_schedule
from dydit_cli.diffusion.timeline import DDPM_TIMELINE, Timeline
from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import family_of


class Process(Protocol):
    """Timesteps are scalars of the process's own scale and type, `t` a tensor (B,) of them.

    `timeline` is their scale, and `span` the lowest and the highest that a model is trained on; `weigh` weighs squared errors
    by timestep (Min-SNR's gamma, None for none). Images, noise and outputs are B C S S, of videos B F C S S; an output may
    have more channels, of which the first C are the prediction.
    """

    @property
    def timeline(self) -> Timeline: ...

    @property
    def span(self) -> tuple[float, float]: ...

    def describe(self) -> dict[str, Any]:
        """What there is to know of it, in a few words."""

    def draw(self, count: int, strata: int, generator: torch.Generator) -> Tensor:
        """(count,) timesteps, sample i from stratum i mod `strata`, so that every batch covers the schedule."""

    def spread(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) timesteps, one drawn from each of so many equal parts of the schedule."""

    def every(self) -> Tensor:
        """All timesteps, ascending; of a continuous schedule a thousand, evenly spaced."""

    def grid(self, count: int) -> Sequence[float]:
        """So many timesteps, evenly over the schedule with both ends, ascending."""

    def number(self, timestep: float) -> int:
        """Which of `every` a timestep is, or is nearest to."""

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t."""

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What an output's prediction should be."""

    def losses(
        self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weigh: float | None = None
    ) -> LossTerms:
        """The training loss's terms, per sample: (B,) each."""

    def distance(self, output: Tensor, other: Tensor, channels: int, t: Tensor, weigh: float | None = None) -> Tensor:
        """(B,) the mean squared distance of two outputs' predictions, weighed as in `losses`."""

    def errors(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """B C S S: the prediction's squared errors, element by element."""

    def to_noise(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that an output's prediction amounts to."""

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image that an output's prediction amounts to."""

    def to_score(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The gradient of the log-density that an output's prediction amounts to."""

    def to_velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity that an output's prediction amounts to: of v-prediction (arXiv 2202.00512), or of the path."""


@dataclass(frozen=True)
class GaussianDiffusion:
    """DDPM with noise prediction and, where the model has it, a learned variance (arXiv 2006.11239, 2102.09672).

    t are integers from 0 (nearly clean) to 999 (nearly noise); the loss is DiT's: MSE of the noise, plus the variational term.
    """

    timeline: Timeline = DDPM_TIMELINE
    span: tuple[float, float] = (0, TRAIN_STEPS - 1)
    schedule = linear_schedule()

    def describe(self) -> dict[str, Any]:
        return {"name": "Gaussian diffusion", "predicts": "noise", "t": f"0 to {TRAIN_STEPS - 1}", "noise_at": TRAIN_STEPS - 1}

    def draw(self, count: int, strata: int, generator: torch.Generator) -> Tensor:
        edges = torch.linspace(0, TRAIN_STEPS, strata + 1).long()
        stratum = torch.arange(count) % strata
        low, high = edges[stratum], edges[stratum + 1]
        return low + (torch.rand(count, generator=generator) * (high - low)).long()

    def spread(self, count: int, generator: torch.Generator) -> Tensor:
        drawn = torch.arange(count) + torch.rand(count, generator=generator)
        return (drawn * TRAIN_STEPS / count).long().clamp(max=TRAIN_STEPS - 1)

    def every(self) -> Tensor:
        return torch.arange(TRAIN_STEPS)

    def grid(self, count: int) -> list[int]:
        return spaced_timesteps(count)[::-1]

    def number(self, timestep: float) -> int:
        return int(timestep)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.schedule.add_noise(x0, t, noise)

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return noise

    def losses(
        self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weigh: float | None = None
    ) -> LossTerms:
        terms = loss_terms(self.schedule, output, x0, x_t, t, noise)
        return terms if weigh is None else LossTerms(self._weighed(terms.mse, t, weigh), terms.vb)

    def distance(self, output: Tensor, other: Tensor, channels: int, t: Tensor, weigh: float | None = None) -> Tensor:
        distance = (output.narrow(-3, 0, channels) - other.narrow(-3, 0, channels)).square().flatten(1).mean(dim=1)
        return distance if weigh is None else self._weighed(distance, t, weigh)

    def _weighed(self, errors: Tensor, t: Tensor, gamma: float) -> Tensor:
        return errors * self.schedule.at(self.schedule.min_snr_weights(gamma), t, errors)

    def errors(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return (self.to_noise(output, x_t, t) - noise).square()

    def to_noise(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return output.narrow(-3, 0, x_t.shape[-3])

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return self.schedule.predicted_x0(self.to_noise(output, x_t, t), x_t, t)

    def to_score(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return -self.to_noise(output, x_t, t) / self.schedule.at((1 - self.schedule.alphas_cumprod).sqrt(), t, x_t)

    def to_velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        signal, sigma = (
            self.schedule.at(c.sqrt(), t, x_t) for c in (self.schedule.alphas_cumprod, 1 - self.schedule.alphas_cumprod)
        )
        return signal * self.to_noise(output, x_t, t) - sigma * self.to_x0(output, x_t, t)


def times(samples: Tensor, timestep: float, device: str | torch.device | None = None) -> Tensor:
    """(B,) one timestep for all of `samples`, on their device unless said: int64 where it is a whole number, else float32."""
    return torch.full((len(samples),), timestep, device=device or samples.device)


def _gaussian(config: ModelConfig, timestep_draw: TimestepDraw) -> Process:
    if timestep_draw != "uniform":
        raise DyditError(f"timestep_draw {timestep_draw} is for flow matching, and {config.size_name} is none; leave it out")
    return GaussianDiffusion()


# of a model's configuration, and how timesteps are drawn in training
PROCESSES: dict[str, Callable[[ModelConfig, TimestepDraw], Process]] = {"gaussian": _gaussian, "flow": FlowMatching.of}


def process_of(config: ModelConfig, timestep_draw: TimestepDraw = "uniform") -> Process:
    """The process that a model of `config` is trained with: its family's. Raises `DyditError` for timesteps that it does not
    draw so."""
    return PROCESSES[family_of(config).process](config, timestep_draw)
