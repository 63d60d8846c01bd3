"""Sampling with diffusers' schedulers. The model is a callable (x, t, y) -> output; a callback sees every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from dydit_cli.diffusion.schedule import BETA_END, BETA_START, TRAIN_STEPS, Spacing, spaced_timesteps
from dydit_cli.errors import DyditError

GuidanceChannels = Literal["3", "all"]
ALWAYS = (0, TRAIN_STEPS - 1)  # the interval of timesteps that leaves none out


class Denoiser(Protocol):
    """x: B C S S, t: B, y: B -> B C S S, or B 2C S S with variance values."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class SamplerSettings:
    """How images are drawn.

    `cfg_channels` is how many channels guidance acts on: the authors' code guides the first 3 (of 4), diffusers all.
    `spacing` is how the timesteps are chosen (`spaced_timesteps`); without one it is the sampler's own: `linspace`, as the
    authors' code, and for dpmsolver++ `solver`, as diffusers' pipeline. A `cfg` of 1 is no guidance, and one model
    evaluation a step instead of two; so is a timestep outside `cfg_interval`, whose ends are training timesteps that
    belong to it (arXiv 2404.07724).
    """

    sampler: str = "ddim"
    steps: int = 50
    cfg: float = 1.5
    cfg_channels: GuidanceChannels = "3"
    spacing: Spacing | None = None
    clip: bool = False
    cfg_interval: tuple[int, int] = ALWAYS

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise DyditError(f"no sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        if self.cfg_channels not in get_args(GuidanceChannels):
            raise DyditError(f"guidance channels {self.cfg_channels!r}; choose 3 or all")
        if not self.cfg >= 1 or self.cfg == float("inf"):
            raise DyditError(f"guidance scale {self.cfg}; it must be 1 (none) or more")
        low, high = self.cfg_interval
        if not ALWAYS[0] <= low <= high <= ALWAYS[1]:
            raise DyditError(f"guidance interval {low} to {high}; give two timesteps from 0 to {ALWAYS[1]}, the lower first")
        spaced_timesteps(self.steps, self.timestep_spacing)

    @property
    def timesteps(self) -> list[int]:
        """The noisiest first."""
        return spaced_timesteps(self.steps, self.timestep_spacing)

    @property
    def timestep_spacing(self) -> Spacing:
        """`spacing`, or else the sampler's own."""
        return self.spacing or SAMPLERS[self.sampler].spacing

    def guidance_at(self, timestep: int) -> float:
        """The guidance scale at a training timestep."""
        low, high = self.cfg_interval
        return self.cfg if low <= timestep <= high else 1.0


def guided(
    model: Denoiser, x: Tensor, t: Tensor, y: Tensor, null_class: int, scale: float, channels: GuidanceChannels = "3"
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): x: B C S S; t, y: B -> B Cout S S.

    One pass over the doubled batch: the first half with labels, the second with the null class. The variance half of
    the output, and the noise channels that are not guided, are the labelled half's. A `scale` of 1 needs one half only.
    """
    if scale == 1:
        return model(x, t, y)
    out = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, null_class)]))
    with_label, without = out.chunk(2)  # each B Cout S S
    count = min(3, x.shape[1]) if channels == "3" else x.shape[1]
    eps = without[:, :count] + scale * (with_label[:, :count] - without[:, :count])
    return torch.cat([eps, with_label[:, count:]], dim=1)


Generators = torch.Generator | list[torch.Generator] | None
Denoise = Callable[[Tensor, int, int], Tensor]  # x at step i and timestep t -> the guided output


@dataclass(frozen=True)
class Sampler:
    """How samples are drawn. `steps` is the usual number and `spacing` its own choice of timesteps.

    `run(denoise, x, settings, generator)` takes x (B C S S, pure noise) to samples, calling `denoise` as often as it needs.
    """

    steps: int
    spacing: Spacing
    run: Callable[[Denoise, Tensor, SamplerSettings, Generators], Tensor]


def with_scheduler(make: Callable[[SamplerSettings, bool], Any], variance: bool = False) -> Any:
    """`Sampler.run` by one of diffusers' schedulers; `make` takes the settings and whether the model learns its variance,
    which only a scheduler with `variance` sees."""

    def run(denoise: Denoise, x: Tensor, settings: SamplerSettings, generator: Generators) -> Tensor:
        channels, scheduler = x.shape[1], None
        for i, timestep in enumerate(settings.timesteps):
            out = denoise(x, i, timestep)
            if scheduler is None:
                scheduler = make(settings, out.shape[1] == 2 * channels)
                scheduler.set_timesteps(timesteps=settings.timesteps)
            out = out if variance else out[:, :channels]
            x = scheduler.step(out, timestep, x, generator=generator, return_dict=False)[0]
        return x

    return run


BETAS = {
    "num_train_timesteps": TRAIN_STEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "linear",
}


def ddpm_scheduler(settings: SamplerSettings, learn_sigma: bool) -> Any:
    """Ancestral sampling, with the learned variance where there is one."""
    from diffusers import DDPMScheduler

    variance = "learned_range" if learn_sigma else "fixed_large"
    return DDPMScheduler(**BETAS, variance_type=variance, clip_sample=settings.clip)


def solver_scheduler(order: int) -> Callable[[SamplerSettings, bool], Any]:
    """DPM-Solver++ (arXiv 2211.01095): of order 2 the multistep one with diffusers' defaults. DDIM is its order 1
    (section 3): the same update as DDIM's with eta 0, and unlike diffusers' DDIMScheduler its previous timestep is the one
    that is really next in an uneven spacing.
    """

    def make(settings: SamplerSettings, learn_sigma: bool) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(**BETAS, solver_order=order, final_sigmas_type="zero")

    return make


# by name; a new one is an entry here
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(250, "linspace", with_scheduler(ddpm_scheduler, variance=True)),
    "ddim": Sampler(50, "linspace", with_scheduler(solver_scheduler(1))),
    "dpmsolver++": Sampler(20, "solver", with_scheduler(solver_scheduler(2))),
}


def sample(
    model: Denoiser,
    x: Tensor,
    y: Tensor,
    settings: SamplerSettings,
    *,
    null_class: int,
    generator: Generators = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Denoises x (B C S S, pure noise) to samples of the labels y (B); the generator feeds DDPM's noise.

    `on_step(i, t)` is called before step i runs the model at timestep t.
    """

    def denoise(x: Tensor, i: int, timestep: int) -> Tensor:
        if on_step:
            on_step(i, timestep)
        t = torch.full((x.shape[0],), timestep, device=x.device, dtype=torch.long)
        return guided(model, x, t, y, null_class, settings.guidance_at(timestep), settings.cfg_channels)

    return SAMPLERS[settings.sampler].run(denoise, x, settings, generator)
