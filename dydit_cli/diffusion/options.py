"""How a sampling run goes: sampler, timesteps, guidance."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from dydit_cli.errors import DyditError
from dydit_cli.model.options import GuidanceChannels
from dydit_cli.options import Opt

if TYPE_CHECKING:
    from dydit_cli.diffusion.process import Process
    from dydit_cli.model.config import ModelConfig

Spacing = Literal["linspace", "leading", "trailing", "solver"]

TRAIN_STEPS = 1000

MOST_TIMESTEPS = TRAIN_STEPS  # at which losses are compared, or that a batch is spread over

SdeForm = Literal["sigma", "linear", "decreasing", "increasing-decreasing", "sbdm"]

LastStep = Literal["mean", "euler", "tweedie", "none"]

TimestepDraw = Literal["uniform", "lognormal"]

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
    """How samples are drawn, of models of the process `process`. `steps` is the usual number, None where the solver chooses.

    `timesteps` returns those at which the model is called, in their order, or None where the solver chooses. `load` returns
    the function that runs it, importing what it needs (`sampler.Run`). `takes` are the settings that mean something to this
    one and not to every sampler; `spacing` is its usual one. `kind` is whether an equation with noise is solved, or one
    without, where the protocol says so.
    """

    process: str
    steps: int | None
    load: Callable[[], Any]
    timesteps: Callable[[ReadySettings], Sequence[float] | None] = lambda ready: spaced(ready)
    takes: tuple[str, ...] = ("spacing",)
    spacing: Spacing = "linspace"
    kind: Literal["ODE", "SDE"] | None = None


def _in(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module(f"dydit_cli.diffusion.{module}"), name)


def spaced(ready: ReadySettings) -> list[int]:
    """The timesteps of a whole-numbered schedule, the noisiest first."""
    assert ready.steps is not None
    return spaced_timesteps(ready.steps, ready.spacing or "linspace")


SDE = ("sde_form", "sde_norm", "last_step")  # settings of samplers of the SDE


def _solver(name: str, steps: int | None, **facts: Any) -> Sampler:
    """One of flow matching, by its function's name; that of its timesteps is beside it."""
    timesteps = _in("solvers", f"{name}_timesteps")
    return Sampler(
        "flow",
        steps,
        _in("solvers", name),
        lambda ready: timesteps()(ready),
        **{"takes": ("time_shift",), "kind": "ODE", **facts},
    )


# by name; a new one is an entry here
SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("gaussian", 250, _in("sampler", "ddpm")),
    "ddim": Sampler("gaussian", 50, _in("sampler", "ddim")),
    "dpmsolver++": Sampler("gaussian", 20, _in("sampler", "dpm_solver"), spacing="solver"),
    "euler": _solver("euler", 50),
    "heun": _solver("heun", 25),
    "dopri5": _solver("dopri5", None, takes=()),
    "euler-maruyama": _solver("euler_maruyama", 250, takes=SDE, kind="SDE"),
    "heun-sde": _solver("heun_sde", 125, takes=SDE, kind="SDE"),
}

USUAL = {"gaussian": "ddim", "flow": "euler"}  # by process


def samplers_of(process: str) -> list[str]:
    """The names of the samplers of a process."""
    return [name for name, sampler in SAMPLERS.items() if sampler.process == process]


def parse_timestep(text: str) -> float:
    """A whole number where it can be one. Raises `ValueError` for what is none, or is under 0."""
    value = int(text) if text.strip().isdecimal() else float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def parse_interval(text: str) -> tuple[float, float]:
    """`100,800` or `0.11,1` as two numbers; what can be a whole number is one. Raises `DyditError` for anything else."""
    try:
        low, high = map(parse_timestep, text.split(","))
    except ValueError:
        raise DyditError(f"--cfg-interval {text}: write two timesteps, for instance 100,800 or 0.11,1") from None
    return low, high


@dataclass(frozen=True)
class SamplerSettings:
    """How images are drawn, as far as it is asked for: what is None is the model's own, see `for_model`.

    `cfg_channels` is how many channels guidance acts on. `spacing` is how the timesteps of a whole-numbered schedule are
    chosen (`spaced_timesteps`). A `cfg` of 1 is no guidance, and one model evaluation a step instead of two; so is a timestep
    outside `cfg_interval`, whose ends are timesteps of the model's own scale that belong to it (arXiv 2404.07724).
    """

    sampler: Annotated[
        str | None, Opt("How noise is taken away.", choices=SAMPLERS.keys, default="ddim; euler in flow matching")
    ] = None
    steps: Annotated[
        int | None,
        Opt(
            "Sampling steps.",
            metavar="N",
            default=", ".join(f"{name} {sampler.steps}" for name, sampler in SAMPLERS.items() if sampler.steps),
        ),
    ] = None
    cfg: Annotated[float, Opt("Classifier-free guidance scale; 1 is none.")] = 1.5
    cfg_channels: Annotated[
        GuidanceChannels | None,
        Opt("Channels that guidance acts on: 3 (the authors' code of DiT and SiT) or all (diffusers).", default="3"),
    ] = None
    spacing: Annotated[
        Spacing | None,
        Opt(
            "Timesteps: linspace (the authors' code), leading (diffusers' DDIM), trailing or solver (its DPM-Solver).",
            default="linspace; dpmsolver++ solver",
        ),
    ] = None
    time_shift: Annotated[
        float | None,
        Opt("Flow matching's ODE: under 1 takes small steps near noise, 0.3 in LightningDiT.", metavar="S", default="none"),
    ] = None
    sde_form: Annotated[SdeForm | None, Opt("How the SDE's noise is spread over its timesteps.", default="sigma")] = None
    sde_norm: Annotated[float | None, Opt("How much of it there is.", metavar="N", default="1")] = None
    last_step: Annotated[
        LastStep | None, Opt("The SDE's last step, from 0.04 before the data, which is without noise.", default="mean")
    ] = None
    clip: bool = False
    cfg_interval: Annotated[
        tuple[float, float] | None,
        Opt(
            "Guide only at timesteps from LOW to HIGH; the others need half the work.",
            metavar="LOW,HIGH",
            default=f"0,{TRAIN_STEPS - 1}; 0,1 in flow matching",
            parse=parse_interval,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise DyditError(f"no sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        if self.cfg_channels not in (None, *get_args(GuidanceChannels)):
            raise DyditError(f"guidance channels {self.cfg_channels!r}; choose 3 or all")
        if self.spacing not in (None, *get_args(Spacing)):
            raise DyditError(f"no timestep spacing {self.spacing!r}; choose one of {', '.join(get_args(Spacing))}")
        if not self.cfg >= 1 or self.cfg == float("inf"):
            raise DyditError(f"guidance scale {self.cfg}; it must be 1 (none) or more")
        for name, choices in (("sde_form", SdeForm), ("last_step", LastStep)):
            if getattr(self, name) not in (None, *get_args(choices)):
                raise DyditError(f"no {name} {getattr(self, name)!r}; choose one of {', '.join(get_args(choices))}")
        for name in ("time_shift", "sde_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise DyditError(f"{name} {value}; it must be over 0")

    def for_model(self, config: ModelConfig) -> ReadySettings:
        """These settings for the models of a configuration, with what its process and its family usually take filled in.

        Raises `DyditError` in one line for a sampler of another process, and for what the sampler or the process does not
        take.
        """
        from dydit_cli.diffusion.process import process_of
        from dydit_cli.model.families import family_of

        wanted, process = family_of(config).process, process_of(config)
        name = self.sampler or USUAL[wanted]
        sampler = SAMPLERS[name]
        if sampler.process != wanted:
            fitting = ", ".join(samplers_of(wanted))
            raise DyditError(
                f"sampler {name} is not for {config.size_name}, whose process is {wanted}; choose one of {fitting}"
            )
        for own in OWN:
            if getattr(self, own) is not None and own not in sampler.takes:
                having = ", ".join(each for each in samplers_of(wanted) if own in SAMPLERS[each].takes) or "another process"
                raise DyditError(f"{own} {getattr(self, own)} is not for sampler {name}, but for {having}; leave it out")
        if self.steps is not None and sampler.steps is None:
            raise DyditError(f"{self.steps} steps: sampler {name} chooses its own; leave the number out")
        timeline = process.timeline
        low, high = interval = self.cfg_interval or (timeline.low, timeline.high)
        if not timeline.low <= low <= high <= timeline.high or (
            timeline.whole and not all(isinstance(t, int) for t in interval)
        ):
            raise DyditError(
                f"guidance interval {low} to {high}; give two timesteps from {timeline.low:g} to {timeline.high:g}, the lower "
                "first"
            )
        ready = ReadySettings(
            config=config,
            process=process,
            sampler=name,
            steps=self.steps if self.steps is not None else sampler.steps,
            cfg=self.cfg if config.num_classes else 1.0,
            cfg_channels=self.cfg_channels or config.guided_channels,
            spacing=self.spacing or (sampler.spacing if "spacing" in sampler.takes else None),
            clip=self.clip,
            cfg_interval=interval,
            time_shift=self.time_shift,
            sde_form=(self.sde_form or "sigma") if "sde_form" in sampler.takes else None,
            sde_norm=(self.sde_norm or 1.0) if "sde_norm" in sampler.takes else None,
            last_step=(self.last_step or "mean") if "last_step" in sampler.takes else None,
        )
        _ = ready.timesteps  # a number of steps that cannot be is raised here
        return ready


# settings that not every sampler takes
OWN = ("spacing", "time_shift", *SDE)

# what a protocol says besides, of samplers that solve an equation
SOLVED = ("kind", "solver", "model_calls", "time_shift", *SDE)


@dataclass(frozen=True, eq=False)
class ReadySettings:
    """Settings for the models of one configuration, nothing left open; made by `SamplerSettings.for_model`.

    `steps` is None where the solver chooses, and so is what the sampler does not take.
    """

    config: ModelConfig
    process: Process
    sampler: str
    steps: int | None
    cfg: float
    cfg_channels: GuidanceChannels
    spacing: Spacing | None
    clip: bool
    cfg_interval: tuple[float, float]
    time_shift: float | None = None
    sde_form: SdeForm | None = None
    sde_norm: float | None = None
    last_step: LastStep | None = None

    @cached_property
    def timesteps(self) -> Sequence[float] | None:
        """At which the model is called, in their order; of flow matching as the float32 that the model sees. None where the
        solver chooses them."""
        return SAMPLERS[self.sampler].timesteps(self)

    @property
    def calls(self) -> int | None:
        """How often the model is called for an image, guidance's two halves counting once; None where the solver chooses."""
        return None if self.timesteps is None else len(self.timesteps)

    @property
    def work(self) -> int:
        """What an image counts for in a progress display: its calls, or 1 where nobody knows them."""
        return self.calls or 1

    @property
    def whole_run(self) -> bool:
        """Whether guidance is the same at all timesteps."""
        timeline = self.process.timeline
        return self.cfg == 1 or self.cfg_interval == (timeline.low, timeline.high)

    def guidance_at(self, timestep: float) -> float:
        """The guidance scale at a timestep."""
        low, high = self.cfg_interval
        return self.cfg if float32(low) <= float32(timestep) <= float32(high) else 1.0

    def protocol(self) -> dict[str, Any]:
        """All of it that images depend on, as records of samples and profiles hold it."""
        sampler = SAMPLERS[self.sampler]
        solved = {} if sampler.kind is None else {"kind": sampler.kind, "solver": self.sampler, "model_calls": self.calls}
        own = {name: getattr(self, name) for name in OWN if name != "spacing" and getattr(self, name) is not None}
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "cfg": self.cfg,
            "cfg_channels": self.cfg_channels,
            "cfg_interval": list(self.cfg_interval),
            "spacing": self.spacing,
            **solved,
            **own,
        }


def float32(value: float) -> float:
    """The nearest number that a model can be given."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
