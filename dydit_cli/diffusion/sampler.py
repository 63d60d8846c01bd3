"""Sampling with diffusers' schedulers. The model is a callable (x, t, y) -> output; a callback sees every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dydit_cli.diffusion.options import ALWAYS as ALWAYS
from dydit_cli.diffusion.options import DEFAULT_STEPS as DEFAULT_STEPS
from dydit_cli.diffusion.options import GuidanceChannels as GuidanceChannels
from dydit_cli.diffusion.options import SamplerName as SamplerName
from dydit_cli.diffusion.options import SamplerSettings as SamplerSettings
from dydit_cli.diffusion.schedule import BETA_END, BETA_START, TRAIN_STEPS


class Denoiser(Protocol):
    """x: B C S S, t: B, y: B -> B C S S, or B 2C S S with variance values."""

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
    count = min(3, x.shape[1]) if channels == "3" else x.shape[1]
    eps = without[:, :count] + scale * (with_label[:, :count] - without[:, :count])
    return torch.cat([eps, with_label[:, count:]], dim=1)


def make_scheduler(settings: SamplerSettings, learn_sigma: bool) -> Any:
    """diffusers' scheduler on the settings' timesteps.

    DPM-Solver++ (arXiv 2211.01095) is the multistep one of order 2, with diffusers' defaults. DDIM is its order 1
    (section 3): the same update as DDIM's with eta 0, and unlike diffusers' DDIMScheduler its previous timestep is the one
    that is really next in an uneven spacing.
    """
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    betas = {
        "num_train_timesteps": TRAIN_STEPS,
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "linear",
    }
    if settings.sampler == "ddpm":
        variance = "learned_range" if learn_sigma else "fixed_large"
        scheduler: Any = DDPMScheduler(**betas, variance_type=variance, clip_sample=settings.clip)
    else:
        order = 1 if settings.sampler == "ddim" else 2
        scheduler = DPMSolverMultistepScheduler(**betas, solver_order=order, final_sigmas_type="zero")
    scheduler.set_timesteps(timesteps=settings.timesteps)
    return scheduler


def sample(
    model: Denoiser,
    x: Tensor,
    y: Tensor,
    settings: SamplerSettings,
    *,
    null_class: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Denoises x (B C S S, pure noise) to samples of the labels y (B); the generator feeds DDPM's noise.

    `on_step(i, t)` is called before step i runs the model at timestep t.
    """
    channels = x.shape[1]
    scheduler = None
    for i, timestep in enumerate(settings.timesteps):
        if on_step:
            on_step(i, timestep)
        t = torch.full((x.shape[0],), timestep, device=x.device, dtype=torch.long)
        out = guided(model, x, t, y, null_class, settings.guidance_at(timestep), settings.cfg_channels)
        if scheduler is None:
            scheduler = make_scheduler(settings, learn_sigma=out.shape[1] == 2 * channels)
        if settings.sampler != "ddpm":
            out = out[:, :channels]  # the others add no noise
        x = scheduler.step(out, timestep, x, generator=generator, return_dict=False)[0]
    return x
