"""How a sampling run goes: sampler, timesteps, guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, get_args

from dydit_cli.errors import DyditError
from dydit_cli.options import Opt

Spacing = Literal["linspace", "leading", "trailing", "solver"]

GuidanceChannels = Literal["3", "all"]

TRAIN_STEPS = 1000

MOST_TIMESTEPS = TRAIN_STEPS  # at which losses are compared, or that a batch is spread over

ALWAYS = (0, TRAIN_STEPS - 1)  # the interval of timesteps that leaves none out


Batch = Annotated[int, Opt("Images drawn at once (guidance doubles it).", min=1)]


def spaced_timesteps(steps: int, spacing: Spacing = "linspace", train_steps: int = TRAIN_STEPS) -> list[int]:
    """`steps` timesteps of the schedule, the noisiest first.

    `linspace` takes both ends, as the authors' code does: 10 steps are 999, 888, ... 0. `leading` is the default of
    diffusers' DDIM: 900, 800, ... 0. `trailing` is 999, 899, ... 99 (arXiv 2305.08891). `solver` is what diffusers'
    DPM-Solver calls linspace: both ends in `steps` + 1 timesteps, of which the last, 0, is left out: 999, 899, ... 100.
    Raises `DyditError` where `steps` is under 1 or over `train_steps`, less 1 for `solver`.
    """
    if spacing not in get_args(Spacing):
        raise DyditError(f"no timestep spacing {spacing!r}; choose one of {', '.join(get_args(Spacing))}")
    most = train_steps - 1 if spacing == "solver" else train_steps
    if not 1 <= steps <= most:
        raise DyditError(f"{steps} sampling steps: the schedule has {train_steps}, so ask for 1 to {most}")
    if spacing == "leading":
        return [i * (train_steps // steps) for i in reversed(range(steps))]
    if spacing == "trailing":
        return [round(train_steps - i * train_steps / steps) - 1 for i in range(steps)]
    if spacing == "solver":
        return spaced_timesteps(steps + 1, "linspace", train_steps)[:-1]
    if steps == 1:
        return [train_steps - 1]
    stride = (train_steps - 1) / (steps - 1)
    return [round(i * stride) for i in reversed(range(steps))]


@dataclass(frozen=True)
class Sampler:
    """How samples are drawn. `steps` is the usual number, `spacing` its own choice of timesteps.

    `load` returns the function that runs it, importing what it needs (`sampler.Run`).
    """

    steps: int
    spacing: Spacing
    load: Callable[[], Any]


def _in_sampler(name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module("dydit_cli.diffusion.sampler"), name)


# by name; a new one is an entry here
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(250, "linspace", _in_sampler("ddpm")),
    "ddim": Sampler(50, "linspace", _in_sampler("ddim")),
    "dpmsolver++": Sampler(20, "solver", _in_sampler("dpm_solver")),
}


def parse_interval(text: str) -> tuple[int, int]:
    """`100,800` as two numbers. Raises `DyditError` for anything else."""
    low, _, high = (part.strip() for part in text.partition(","))
    if not low.isdecimal() or not high.isdecimal():
        raise DyditError(f"--cfg-interval {text}: write two timesteps, for instance 100,800")
    return int(low), int(high)


@dataclass(frozen=True)
class SamplerSettings:
    """How images are drawn.

    Without `steps` the sampler's usual number is taken. `cfg_channels` is how many channels guidance acts on: the authors'
    code guides the first 3 (of 4), diffusers all. `spacing` is how the timesteps are chosen (`spaced_timesteps`); without
    one it is the sampler's own: `linspace`, as the authors' code, and for dpmsolver++ `solver`, as diffusers' pipeline. A
    `cfg` of 1 is no guidance, and one model evaluation a step instead of two; so is a timestep outside `cfg_interval`,
    whose ends are training timesteps that belong to it (arXiv 2404.07724).
    """

    sampler: Annotated[str, Opt("How noise is taken away.", choices=SAMPLERS.keys)] = "ddim"
    steps: Annotated[
        int,
        Opt(
            "Sampling steps, 1 to 1000.",
            metavar="N",
            default=", ".join(f"{name} {sampler.steps}" for name, sampler in SAMPLERS.items()),
        ),
    ] = None  # type: ignore[assignment]  # an int once it is made
    cfg: Annotated[float, Opt("Classifier-free guidance scale; 1 is none.")] = 1.5
    cfg_channels: Annotated[
        GuidanceChannels, Opt("Channels that guidance acts on: 3 (the authors' code) or all (diffusers).")
    ] = "3"
    spacing: Annotated[
        Spacing | None,
        Opt(
            "Timesteps: linspace (the authors' code), leading (diffusers' DDIM), trailing or solver (its DPM-Solver).",
            default="linspace; dpmsolver++ solver",
        ),
    ] = None
    clip: bool = False
    cfg_interval: Annotated[
        tuple[int, int],
        Opt(
            "Guide only at timesteps from LOW to HIGH; the others need half the work.",
            metavar="LOW,HIGH",
            default=",".join(map(str, ALWAYS)),
            parse=parse_interval,
        ),
    ] = ALWAYS

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise DyditError(f"no sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        if self.steps is None:
            object.__setattr__(self, "steps", SAMPLERS[self.sampler].steps)
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
