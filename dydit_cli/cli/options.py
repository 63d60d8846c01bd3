"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dydit_cli.cli import console
from dydit_cli.errors import DyditError
from dydit_cli.seeds import LARGEST

if TYPE_CHECKING:
    from dydit_cli.checkpoint.checkpoint import Checkpoint
    from dydit_cli.checkpoint.read import LoadOptions
    from dydit_cli.diffusion.sampler import SamplerSettings
    from dydit_cli.sampling.sampler import SamplingConfig

Ckpt = Annotated[
    str,
    typer.Argument(metavar="CKPT", help="A checkpoint: folder, .pt, .safetensors, hub id, or `digits-dit`, `glyphs-dit`."),
]

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")]

Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]

Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]

Seed = Annotated[int, typer.Option(min=0, max=LARGEST, help="The same seed gives the same result.")]

Weights = Annotated[str, typer.Option(help="Which weights of a training checkpoint: ema or model.")]

NumHeads = Annotated[int | None, typer.Option(metavar="N", help="Attention heads, where weights alone do not tell them.")]

InputSize = Annotated[int | None, typer.Option(metavar="N", help="Latent pixels a side, where weights alone do not tell it.")]

TimestepVariant = Annotated[
    str | None,
    typer.Option(
        metavar="original|diffusers",
        help="Which code the weights were trained with. A diffusers folder is read as diffusers runs it; weights that "
        "began at the DiT authors' release want `original`.",
        show_default="what the format implies",
    ),
]

Spacing = Annotated[
    str | None,
    typer.Option(
        help="Timesteps: linspace (the authors' code), leading (diffusers' DDIM), trailing or solver (its DPM-Solver).",
        show_default="linspace; dpmsolver++ solver",
    ),
]

Sampler = Annotated[str, typer.Option(help="ddpm, ddim or dpmsolver++.")]

SamplingSteps = Annotated[int, typer.Option("--steps", metavar="N", help="Sampling steps, 1 to 1000.")]

SamplerSteps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Sampling steps, 1 to 1000.", show_default="ddpm 250, ddim 50, dpmsolver++ 20"),
]

Cfg = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")]

CfgInterval = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Guide only at timesteps from LOW to HIGH; the others need half the work.",
        show_default="0,999",
    ),
]

PlanMemory = Annotated[
    float | None,
    typer.Option(metavar="GB", help="The most that copies of weights take.", show_default="a quarter of what is free"),
]

Tome = Annotated[
    float,
    typer.Option(
        "--tome",
        metavar="RATIO",
        help="Merge this share of a static model's tokens before every attention (ToMe), at most 0.75.",
        show_default="none",
    ),
]

CfgChannels = Annotated[str, typer.Option(help="Channels that guidance acts on: 3 (the authors' code) or all (diffusers).")]

Batch = Annotated[int, typer.Option(min=1, help="Images drawn at once (guidance doubles it).")]


def reading(weights: str, num_heads: int | None, input_size: int | None, timestep_variant: str | None) -> LoadOptions:
    """Checked hints for the reader from options as they were typed."""
    from dydit_cli.checkpoint.read import LoadOptions

    return LoadOptions(weights, num_heads, input_size, timestep_variant)  # type: ignore[arg-type]


def read(checkpoint: str, reading: LoadOptions) -> Checkpoint:
    """The checkpoint; what was found and inferred is said on stderr where it is not our own folder."""
    from dydit_cli.checkpoint.read import read

    loaded = read(checkpoint, reading)
    if loaded.found != "dydit folder":
        console.note(f"{checkpoint}: {'; '.join((loaded.found, loaded.config.size_name, *loaded.notes))}")
    return loaded


def sampler_settings(
    sampler: str, steps: int | None, cfg: float, cfg_channels: str, spacing: str | None, cfg_interval: str | None = None
) -> SamplerSettings:
    """Checked settings from options as they were typed; without `steps` the sampler's usual number."""
    from dydit_cli.diffusion.sampler import ALWAYS, DEFAULT_STEPS, SamplerSettings

    return SamplerSettings(
        sampler=sampler,  # type: ignore[arg-type]
        steps=DEFAULT_STEPS.get(sampler, 1) if steps is None else steps,
        cfg=cfg,
        cfg_channels=cfg_channels,  # type: ignore[arg-type]
        spacing=spacing,  # type: ignore[arg-type]
        cfg_interval=ALWAYS if cfg_interval is None else parse_interval(cfg_interval),
    )


def drawing(
    loaded: Checkpoint, settings: SamplerSettings, classes: str | None, plan_memory: float | None, **given: Any
) -> SamplingConfig:
    """How `loaded` draws, from options as they were typed; `given` are the other fields of `SamplingConfig`."""
    from dydit_cli.sampling.sampler import SamplingConfig

    numbers = parse_classes(classes, loaded.config.num_classes)
    return SamplingConfig(settings=settings, classes=numbers, plan_memory=plan_bytes(plan_memory), **given)


def plan_bytes(plan_memory: float | None) -> int | None:
    """`--plan-memory` in bytes."""
    return None if plan_memory is None else int(plan_memory * 1e9)


def parse_interval(text: str) -> tuple[int, int]:
    """`100,800` as two numbers. Raises `DyditError` for anything else."""
    low, _, high = (part.strip() for part in text.partition(","))
    if not low.isdecimal() or not high.isdecimal():
        raise DyditError(f"--cfg-interval {text}: write two timesteps, for instance 100,800")
    return int(low), int(high)


def parse_classes(text: str | None, num_classes: int) -> list[int]:
    """`0,1,5-7` as a list; all classes for None. Raises `DyditError` for what is no class of the model."""
    if text is None:
        return list(range(num_classes))
    classes: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise DyditError(f"--classes {text}: {part.strip()!r} is no class number; write for instance 0,1,5-7")
        classes.extend(range(int(first), int(last or first) + 1))
    unknown = [c for c in classes if c >= num_classes]
    if unknown or not classes:
        raise DyditError(f"--classes {text}: the model has classes 0 to {num_classes - 1}")
    return classes
