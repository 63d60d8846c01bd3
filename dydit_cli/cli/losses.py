"""dydit losses"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dydit_cli.cli import console, options
from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    from dydit_cli.artifacts.losses import Losses


def losses(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CKPT...", help="One checkpoint, or a small and a large one.")],
    out: options.Out,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion, glyphs or idx:PATH (their held-out images), imagefolder:PATH or latents:PATH.",
            show_default="what CKPT was trained on",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Real images to average over.")] = 32,
    timesteps: Annotated[int, typer.Option(metavar="N", help="Timesteps, evenly over the schedule, 1 to 1000.")] = 1000,
    maps_at: Annotated[
        str | None,
        typer.Option(metavar="T,T,...", help="Where the loss of each patch is kept.", show_default="20,100,250,500,750,950"),
    ] = None,
    map_images: Annotated[int, typer.Option(min=1, metavar="N", help="Images with maps, of different classes.")] = 6,
    map_noises: Annotated[int, typer.Option(min=1, metavar="N", help="Noises that a map is the mean over.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    seed: options.Seed = 0,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure the diffusion loss at every timestep on real images, and patch by patch: for `loss-gap` and `loss-maps`.

    All models see the same images and noise. The loss is the mean squared error of the predicted noise. Writes losses.csv,
    losses.npz and losses.json.

    Example: `dydit losses runs/digits-0.5 digits-dit --out runs/losses --timesteps 50`
    """
    from dydit_cli.evaluate.timestep_loss import MAPS_AT, LossSettings, measure_losses

    settings = LossSettings(
        images=images,
        timesteps=timesteps,
        maps_at=MAPS_AT if maps_at is None else parse_timesteps(maps_at),
        map_images=map_images,
        map_noises=map_noises,
        seed=seed,
        batch=batch,
    )
    reading = options.reading(weights, num_heads, input_size, timestep_variant)
    models = [options.read(checkpoint, reading) for checkpoint in checkpoints]
    with console.stages() as work:
        result = measure_losses(
            models,
            out,
            data=data,
            settings=settings,
            device=device,
            force=force,
            on_stage=work.begin,
            on_work=work.advance,
        )
    if json:
        means = {name: float(mse.mean()) for name, mse in zip(result.names, result.mse, strict=True)}
        console.as_json({**result.summary, "mse": means})
    else:
        show(result)
        console.say(f"figures: dydit visualize {out} --figure loss-gap --out FILE.png (or loss-maps)")


def parse_timesteps(text: str) -> tuple[int, ...]:
    """`20,100,500` as numbers. Raises `DyditError` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise DyditError(f"--maps-at {text}: write timesteps, for instance 20,100,500")
    return tuple(int(part) for part in parts)


def show(result: Losses) -> None:
    """Means over four phases of the schedule."""
    table = result.table
    phase = (table["timestep"] // 250).clip(upper=3)
    rows = []
    for name, own in table.groupby("model", sort=False):
        means = own["mse"].groupby(phase).mean()
        cells = [f"{means[i]:.4f}" if i in means.index else "-" for i in (3, 2, 1, 0)]
        rows.append([str(name), *cells, f"{own['mse'].mean():.4f}"])
    summary = result.summary
    console.table(
        f"Mean squared error of the noise, {summary['images']} {'held-out ' if summary['held_out'] else ''}images of "
        f"{summary['data']}, seed {summary['seed']}, {summary['device']}",
        ["", "t 999 to 750", "749 to 500", "499 to 250", "249 to 0", "all"],
        rows,
    )


def register(app: typer.Typer) -> None:
    app.command()(losses)
