"""dydit sample"""

from __future__ import annotations

from typing import Annotated

import typer

from dydit_cli.cli import console, options


def sample(
    checkpoint: options.Ckpt,
    out: options.Out,
    num: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    classes: Annotated[str | None, typer.Option(help="Classes in turn, such as 0,1,5-7.", show_default="all")] = None,
    cfg: options.Cfg = 1.5,
    sampler: options.Sampler = "ddim",
    steps: options.SamplingSteps = 50,
    cfg_channels: options.CfgChannels = "3",
    spacing: options.Spacing = "linspace",
    execution: Annotated[
        str, typer.Option(help="sparse (skipped work left out), masked, or complete (everything on).")
    ] = "sparse",
    vae: Annotated[str | None, typer.Option(metavar="DIR", help="An AutoencoderKL folder, for models of latents.")] = None,
    batch: options.Batch = 64,
    seed: options.Seed = 0,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Draw images: single PNGs and a grid.

    Example: `dydit sample digits-dit --num 8 --classes 0,1,2 --steps 10 --out runs/samples`
    """
    from dydit_cli.sampling import sample_images

    settings = options.sampler_settings(sampler, steps, cfg, cfg_channels, spacing)
    reading = options.reading(weights, num_heads, input_size, timestep_variant)
    loaded = options.read(checkpoint, reading)
    chosen = options.parse_classes(classes, loaded.config.num_classes)
    with console.progress("sample", num * steps, "image-steps") as advance:
        result = sample_images(
            loaded,
            out,
            num=num,
            classes=chosen,
            settings=settings,
            execution=execution,  # type: ignore[arg-type]
            vae=vae,
            batch=batch,
            seed=seed,
            device=device,
            force=force,
            on_progress=lambda progress: advance(progress.batch),
        )
    if json:
        console.as_json(result.summary)
    else:
        console.say(
            f"{num} images in {out} ({result.summary['seconds_per_image']:.3f} s per image); all of them: {out / 'grid.png'}"
        )


def register(app: typer.Typer) -> None:
    app.command()(sample)
