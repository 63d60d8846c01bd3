"""Samplers of flow matching: its ODE dx = v dt, and the SDE dx = v dt + w score |dt| + sqrt(2 w |dt|) z whose marginals are
the same for every w (SiT, arXiv 2401.08740, section 2). Both run from noise to data, whichever way t goes.

Legend: B batch, C channels, S size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count, pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from dydit_cli.diffusion.flow import FlowMatching
from dydit_cli.diffusion.options import ReadySettings, SdeForm, float32
from dydit_cli.diffusion.paths import Path
from dydit_cli.diffusion.process import times
from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    from dydit_cli.diffusion.sampler import Denoise, Generators, Run

LAST = 0.04  # how long an SDE's last step is


def flow_of(ready: ReadySettings) -> FlowMatching:
    """The process of a sampler that is flow matching's."""
    return cast(FlowMatching, ready.process)


def grid(process: FlowMatching, points: int, shift: float | None = None, last: float | None = None) -> list[float]:
    """`points` timesteps from noise to data, float32 each, evenly or, with `shift` s, at s r / (1 + (s - 1) r) for even r:
    an s under 1 takes small steps near noise, as LightningDiT does."""
    t = torch.linspace(*process.run(last), points)
    if shift is not None:
        t = t if process.noise_at == 0 else 1 - t
        t = shift * t / (1 + (shift - 1) * t)
        t = t if process.noise_at == 0 else 1 - t
    return t.tolist()


def steps_of(ready: ReadySettings) -> Iterator[tuple[float, float]]:
    """Each step's timestep and the next one, of an equation without noise."""
    assert ready.steps is not None
    if ready.steps < 1:
        raise DyditError(f"{ready.steps} sampling steps; ask for 1 or more")
    return pairwise(grid(flow_of(ready), ready.steps + 1, ready.time_shift))


def euler_timesteps(ready: ReadySettings) -> list[float]:
    """One a step."""
    return [t for t, _ in steps_of(ready)]


def euler(denoise: Denoise, x: Tensor, ready: ReadySettings, generator: Generators) -> Tensor:
    """One call a step: x + (t' - t) v."""
    for i, (t, following) in enumerate(steps_of(ready)):
        x = x + (following - t) * velocity_of(ready, denoise(x, i, t), x, t)
    return x


def heun_timesteps(ready: ReadySettings) -> list[float]:
    """Two a step."""
    calls = [t for step in steps_of(ready) for t in step]
    return calls[:-1] if last_is_plain(ready) else calls


def last_is_plain(ready: ReadySettings) -> bool:
    """Whether the last step is Euler's, as where noise is at 1, in REPA's code; SiT's corrects that one too."""
    return flow_of(ready).noise_at == 1


def heun(denoise: Denoise, x: Tensor, ready: ReadySettings, generator: Generators) -> Tensor:
    """Two calls a step, guided as at its start: the mean of the velocities there and at the end of Euler's step."""
    steps = list(steps_of(ready))
    for i, (t, following) in enumerate(steps):
        size = following - t
        before = velocity_of(ready, denoise(x, 2 * i, t), x, t)
        there = x + size * before
        if i == len(steps) - 1 and last_is_plain(ready):
            return there
        after = velocity_of(ready, denoise(there, 2 * i + 1, following, guide_at=t), there, following)
        x = x + size * (before + after) / 2
    return x


def dopri5_timesteps(ready: ReadySettings) -> None:
    """None: it chooses them as it goes. Raises `DyditError` where the library is missing."""
    if find_spec("torchdiffeq") is None:
        raise DyditError(f"sampler {ready.sampler} needs torchdiffeq: pip install 'dydit[ode]'")


def adaptive(rtol: float, atol: float) -> Run:
    """Dormand and Prince's method of order 5, whose steps are as long as these tolerances allow (by torchdiffeq).

    One step is for the whole batch: an image depends, within the tolerance, on those that are drawn with it.
    """

    def run(denoise: Denoise, x: Tensor, ready: ReadySettings, generator: Generators) -> Tensor:
        from torchdiffeq import odeint

        calls = count()

        def velocity(time: Tensor, x: Tensor) -> Tensor:
            t = float32(time.item())
            return velocity_of(ready, denoise(x, next(calls), t), x, t)

        ends = torch.tensor(flow_of(ready).run(), dtype=torch.float64)
        solved: Tensor = odeint(velocity, x, ends, method="dopri5", rtol=rtol, atol=atol, options={"step_t": ends[1:]})
        return solved[-1]

    return run


dopri5: Run = adaptive(rtol=1e-3, atol=1e-6)


# w of the SDE, by path and place on it, times a norm: how much noise is put in and taken out again on the way
SDE_FORMS: dict[SdeForm, Callable[[Path, Tensor, float], Tensor]] = {
    "sigma": lambda path, s, norm: norm * path.sigma(s),
    "linear": lambda path, s, norm: norm * (1 - s),
    "decreasing": lambda path, s, norm: 0.25 * (norm * (math.pi * s).cos() + 1).square(),
    "increasing-decreasing": lambda path, s, norm: norm * (math.pi * s).sin().square(),
    "sbdm": lambda path, s, norm: norm * path.diffusion(s),
}


def points_of(ready: ReadySettings) -> list[float]:
    """The timesteps between an SDE's steps with noise; after them comes the last step, without."""
    process, last = flow_of(ready), ready.last_step != "none"
    assert ready.steps is not None
    if ready.steps < 1 + last:
        raise DyditError(f"{ready.steps} sampling steps: sampler {ready.sampler} needs {1 + last} or more")
    if ready.sde_form == "sbdm" and process.path != "vp" and process.prediction == "velocity":
        raise DyditError(f"sde_form sbdm is infinite at the start of the {process.path} path; choose sigma")
    return grid(process, ready.steps + (not last), last=LAST if last else None)


def euler_maruyama_timesteps(ready: ReadySettings) -> list[float]:
    """One a step."""
    points = points_of(ready)
    return points if ready.last_step != "none" else points[:-1]


def heun_sde_timesteps(ready: ReadySettings) -> list[float]:
    """Two a step, and one of the last step."""
    points = points_of(ready)
    calls = [t for step in pairwise(points) for t in step]
    return [*calls, points[-1]] if ready.last_step != "none" else calls


def stochastic(second_order: bool) -> Run:
    """Euler and Maruyama's method, one call a step, or SiT's stochastic Heun of `second_order`, two calls a step: noise
    first, then the mean of the drifts at both ends, with the guidance of the step's start. The last step is without noise."""

    def run(denoise: Denoise, x: Tensor, ready: ReadySettings, generator: Generators) -> Tensor:
        process, points, calls = flow_of(ready), points_of(ready), count()

        def weight(x: Tensor, t: float) -> Tensor:
            """w, B 1 1 1."""
            assert ready.sde_form is not None
            assert ready.sde_norm is not None
            return SDE_FORMS[ready.sde_form](*process.along(times(x, t), x), ready.sde_norm)

        def velocity_and_score(x: Tensor, t: float, guide_at: float) -> tuple[Tensor, Tensor]:
            output, at = denoise(x, next(calls), t, guide_at=guide_at), times(x, t)
            return process.to_velocity(output, x, at), process.to_score(output, x, at)

        def move(x: Tensor, t: float, size: float, guide_at: float) -> Tensor:
            """What the drift adds to x over `size`, which is under 0 where t falls."""
            velocity, score = velocity_and_score(x, t, guide_at)
            return size * velocity + abs(size) * weight(x, t) * score

        for t, following in pairwise(points):
            size = following - t
            noise = (2 * weight(x, t) * abs(size)).sqrt() * normal(x, generator)
            if second_order:
                x = x + noise
                first = move(x, t, size, t)
                x = x + (first + move(x + first, following, size, t)) / 2
            else:
                x = x + move(x, t, size, t) + noise
        if ready.last_step == "none":
            return x
        t = points[-1]
        size = LAST if process.noise_at == 0 else -LAST
        if ready.last_step == "mean":
            return x + move(x, t, size, t)
        velocity, score = velocity_and_score(x, t, t)
        if ready.last_step == "euler":
            return x + size * velocity
        path, place = process.along(times(x, t), x)
        return (x + path.sigma(place).square() * score) / path.alpha(place)

    return run


euler_maruyama: Run = stochastic(second_order=False)
heun_sde: Run = stochastic(second_order=True)


def velocity_of(ready: ReadySettings, output: Tensor, x: Tensor, timestep: float) -> Tensor:
    """B C S S, of a model's output for x at a timestep."""
    return flow_of(ready).to_velocity(output, x, times(x, timestep))


def normal(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise like x: a `NoiseSource`'s, or of each image's own generator, drawn on the cpu."""
    if isinstance(generator, list):
        return torch.stack([torch.randn(x.shape[1:], generator=own) for own in generator]).to(x)
    if isinstance(generator, torch.Generator) or generator is None:
        return torch.randn(x.shape, generator=generator).to(x)
    return generator(x).to(x)
