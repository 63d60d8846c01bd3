"""Sampling with diffusers' schedulers. The model is a callable (x, t, y) -> output; a callback sees every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dydit_cli.diffusion.options import SAMPLERS, TRAIN_STEPS, ReadySettings
from dydit_cli.diffusion.process import times
from dydit_cli.diffusion.schedule import BETA_END, BETA_START, linear_schedule
from dydit_cli.model.options import GuidanceChannels


class Denoiser(Protocol):
    """x: B C S S (videos: B F C S S), t: B, on the cpu, y: B -> B C S S, or B 2C S S with variance values."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, /) -> Tensor: ...


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
    count = min(3, x.shape[-3]) if channels == "3" else x.shape[-3]
    first, rest = (with_label.narrow(-3, at, size) for at, size in ((0, count), (count, with_label.shape[-3] - count)))
    base = without.narrow(-3, 0, count)
    return torch.cat([base + scale * (first - base), rest], dim=-3)


NoiseSource = Callable[[Tensor], Tensor]  # standard normal noise like x, in place of a generator's
Generators = torch.Generator | list[torch.Generator] | NoiseSource | None


class Denoise(Protocol):
    """The guided output for x at the model call number `call`, at a timestep; `guide_at` is the timestep that decides whether
    it is guided, where that is another."""

    def __call__(self, x: Tensor, call: int, timestep: float, /, guide_at: float | None = None) -> Tensor: ...


# takes x (B C S S, pure noise) to samples, calling the first argument as often as it needs
Run = Callable[[Denoise, Tensor, ReadySettings, Generators], Tensor]


def with_scheduler(make: Callable[[ReadySettings, bool], Any], variance: bool = False) -> Run:
    """A `Run` by one of diffusers' schedulers; `make` takes the settings and whether the model learns its variance,
    which only a scheduler with `variance` sees."""

    def run(denoise: Denoise, x: Tensor, settings: ReadySettings, generator: Generators) -> Tensor:
        channels, scheduler, timesteps = x.shape[-3], None, settings.timesteps
        assert timesteps is not None
        for i, timestep in enumerate(timesteps):
            out = denoise(x, i, timestep)
            if scheduler is None:
                scheduler = make(settings, out.shape[-3] == 2 * channels)
                scheduler.set_timesteps(timesteps=timesteps)
            out = out if variance else out.narrow(-3, 0, channels)
            # diffusers takes dim 1 for the channels, which in a video are after the frames
            out, x = out.movedim(-3, 1), x.movedim(-3, 1)
            x = scheduler.step(out, timestep, x, generator=generator, return_dict=False)[0].movedim(1, -3)
        return x

    return run


BETAS = {
    "num_train_timesteps": TRAIN_STEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "linear",
}


def ddpm_scheduler(settings: ReadySettings, learn_sigma: bool) -> Any:
    """Ancestral sampling, with the learned variance where there is one."""
    from diffusers import DDPMScheduler

    variance = "learned_range" if learn_sigma else "fixed_large"
    scheduler: Any = DDPMScheduler(**BETAS, variance_type=variance, clip_sample=settings.clip)
    # its own are float32: of 1 - 0.9999 at t = 0 they keep four digits, and a variance beyond its range multiplies the error
    scheduler.betas, scheduler.alphas_cumprod = (getattr(linear_schedule(), name) for name in ("betas", "alphas_cumprod"))
    scheduler.alphas = 1 - scheduler.betas
    return scheduler


def solver_scheduler(order: int) -> Callable[[ReadySettings, bool], Any]:
    """DPM-Solver++ (arXiv 2211.01095): of order 2 the multistep one with diffusers' defaults. DDIM is its order 1
    (section 3): the same update as DDIM's with eta 0, and unlike diffusers' DDIMScheduler its previous timestep is the one
    that is really next in an uneven spacing.
    """

    def make(settings: ReadySettings, learn_sigma: bool) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(**BETAS, solver_order=order, final_sigmas_type="zero")

    return make


ddpm: Run = with_scheduler(ddpm_scheduler, variance=True)
ddim: Run = with_scheduler(solver_scheduler(1))
dpm_solver: Run = with_scheduler(solver_scheduler(2))


def sample(
    model: Denoiser,
    x: Tensor,
    y: Tensor,
    settings: ReadySettings,
    *,
    null_class: int,
    generator: Generators = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Denoises x (B C S S, pure noise) to samples of the labels y (B); the generator feeds the noise of a sampler
    that draws some.

    `on_step(i, t)` is called before the model runs for the i-th time, at timestep t.
    """

    def denoise(x: Tensor, call: int, timestep: float, /, guide_at: float | None = None) -> Tensor:
        if on_step:
            on_step(call, timestep)
        t = times(x, timestep, "cpu")  # where reading it waits for no device
        scale = settings.guidance_at(timestep if guide_at is None else guide_at)
        return guided(model, x, t, y, null_class, scale, settings.cfg_channels)

    run: Run = SAMPLERS[settings.sampler].load()
    return run(denoise, x, settings, generator)
