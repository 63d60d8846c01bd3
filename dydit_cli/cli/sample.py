"""dydit sample"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dydit_cli import units
from dydit_cli.cli import console, options
from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    from dydit_cli.checkpoint.checkpoint import Checkpoint
    from dydit_cli.sampling.sampler import SamplingConfig


def sample(
    checkpoint: options.Ckpt,
    out: options.Out,
    num: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    classes: options.Classes = None,
    cfg: options.Cfg = 1.5,
    cfg_interval: options.CfgInterval = None,
    cfg_channels: options.CfgChannels = "3",
    sampler: options.Sampler = "ddim",
    steps: options.SamplerSteps = None,
    spacing: options.Spacing = None,
    execution: Annotated[
        str, typer.Option(help="sparse (skipped work left out), masked, or complete (everything on).")
    ] = "sparse",
    tome: options.Tome = 0,
    dtype: Annotated[str, typer.Option(help="The model runs in fp32, bf16 or fp16; the sampler in fp32.")] = "fp32",
    vae: Annotated[
        str | None, typer.Option(metavar="DIR", help="An AutoencoderKL, for models of latents: a folder or hub id.")
    ] = None,
    npz: Annotated[
        bool,
        typer.Option(
            "--npz",
            help="One array for ADM's evaluation suite, samples.npz, in place of pictures. The same command again "
            "continues after a kill, and adds images for a larger --num; "
            "`accelerate launch -m dydit_cli sample ...` shares it over processes.",
        ),
    ] = False,
    shard_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images in a shard of --npz.", show_default="500")
    ] = None,
    batch: options.Batch = 64,
    compile: Annotated[
        bool, typer.Option("--compile", help="Let torch.compile fuse what it can: for long runs on a GPU.")
    ] = False,
    plan_memory: options.PlanMemory = None,
    seed: options.Seed = 0,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Draw images: single PNGs and a grid, or with --npz one array.

    Example: `dydit sample digits-dit --num 8 --classes 0,1,2 --steps 10 --out runs/samples`
    """
    if shard_size is not None and not npz:
        raise DyditError("--shard-size is for --npz; add it, or leave the size out")
    settings = options.sampler_settings(sampler, steps, cfg, cfg_channels, spacing, cfg_interval)
    loaded = options.read(checkpoint, options.reading(weights, num_heads, input_size, timestep_variant))
    how = options.drawing(
        loaded, settings, classes, plan_memory, seed=seed, execution=execution, dtype=dtype, vae=vae, batch=batch,
        device=device, compile=compile, tome=tome,
    )  # fmt: skip
    if npz:
        write_array(loaded, out, how, num, shard_size, force, json)
    else:
        write_pictures(loaded, out, how, num, force, json)


def write_pictures(loaded: Checkpoint, out: Path, how: SamplingConfig, num: int, force: bool, json: bool) -> None:
    from dydit_cli.sampling.images import sample_images

    with console.progress("sample", num, "images", per=how.settings.steps) as advance:
        summary = sample_images(loaded, out, how, num=num, force=force, on_work=advance)
    if json:
        console.as_json(summary)
    else:
        console.say(f"{num} images in {out} ({summary['seconds_per_image']:.3f} s per image); all of them: {out / 'grid.png'}")


def write_array(
    loaded: Checkpoint, out: Path, how: SamplingConfig, num: int, shard_size: int | None, force: bool, json: bool
) -> None:
    from dydit_cli.artifacts.samples import ARRAY_FILE
    from dydit_cli.sampling.shards import SHARD_SIZE, sample_npz

    with console.stages() as work:
        summary = sample_npz(
            loaded,
            out,
            how,
            num=num,
            shard_size=shard_size or SHARD_SIZE,
            force=force,
            on_stage=work.begin,
            on_progress=work.advance,
        )
    if summary is None:  # the main process is_main for all
        return
    if json:
        console.as_json(summary)
    else:
        drawn, took = summary["drawn"], units.seconds(summary["seconds"])
        console.say(f"{num} images in {out / ARRAY_FILE} (arr_0), {drawn} of them drawn now, in {took}")


def register(app: typer.Typer) -> None:
    app.command()(sample)
