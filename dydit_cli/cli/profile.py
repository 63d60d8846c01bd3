"""dydit profile"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dydit_cli import units
from dydit_cli.cli import console, options

if TYPE_CHECKING:
    from dydit_cli.profiling.profile import Profile


def profile(
    checkpoint: options.Ckpt,
    out: options.Out,
    images: Annotated[int, typer.Option(metavar="N", help="Images to draw and average over, classes in turn.")] = 16,
    sampler: options.Sampler = "ddim",
    steps: options.SamplerSteps = None,
    cfg: options.Cfg = 1.5,
    cfg_channels: options.CfgChannels = "3",
    spacing: options.Spacing = None,
    batch: options.Batch = 64,
    seed: options.Seed = 0,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    device: options.Device = "auto",
    force: options.Force = False,
    card: Annotated[bool, typer.Option("--card", help="Add the figures to the checkpoint folder's README.md too.")] = False,
    json: options.Json = False,
) -> None:
    """Count a DyDiT's FLOPs at every timestep of a sampling run.

    Writes timesteps.csv, routing.npz and profile.json.

    Example: `dydit profile runs/digits-0.5 --out runs/profile-0.5`
    """
    from dydit_cli.profiling.card import add_to_card
    from dydit_cli.profiling.profile import profile as run

    settings = options.sampler_settings(sampler, steps, cfg, cfg_channels, spacing)
    reading = options.reading(weights, num_heads, input_size, timestep_variant)
    with console.progress("profile", images * settings.steps, "image-steps") as advance:
        result = run(
            options.read(checkpoint, reading),
            out,
            images=images,
            settings=settings,
            batch=batch,
            seed=seed,
            device=device,
            force=force,
            on_progress=lambda progress: advance(progress.batch),
        )
    if card:
        add_to_card(checkpoint, result)
    if json:
        console.as_json(result.summary)
    else:
        show(result)
        console.say(f"figures: dydit visualize {out} --figure architecture --out FILE.png (or tokens, flops)")


def show(result: Profile) -> None:
    """The profile's table, by phase of the schedule, in 80 columns."""
    summary = result.summary
    console.table(
        f"{summary['checkpoint']}: per forward and image",
        ["timesteps", "static", "dynamic", "ratio", "heads", "groups", "tokens"],
        [_row(str(row["phase"]), row) for row in result.phases.to_dict("records")]
        + [_row("all", result.table.mean().to_dict())],
    )
    console.say(
        f"1 MAC = 1 FLOP of the papers; {summary['sampler']}, {summary['steps']} steps, cfg {summary['cfg']:g}, "
        f"{summary['images']} images, seed {summary['seed']}, {summary['device']}\n"
        f"ratio {summary['ratio']:.4f} of all MACs; {summary['routed_ratio']:.4f} of attention and MLP, what lambda steers"
    )


def _row(name: str, means: Mapping[Any, Any]) -> list[str]:
    return [
        name,
        units.macs(means["static_macs"]),
        units.macs(means["dynamic_macs"]),
        f"{means['ratio']:.3f}",
        *(units.share(means[f"active_{part}_share"]) for part in ("heads", "groups", "tokens")),
    ]


def register(app: typer.Typer) -> None:
    app.command()(profile)
