"""dydit export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dydit_cli.cli import console, options


def export(
    checkpoint: options.Ckpt,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A .pt file, or a folder (diffusers, native).")],
    format: Annotated[str, typer.Option(help="dit or dydit (the public .pt files), diffusers, or native.")],
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.", show_default="as it is")] = None,
    complete: Annotated[bool, typer.Option("--complete", help="Of a DyDiT: its all-on static model.")] = False,
    any_variant: Annotated[
        bool, typer.Option("--any-variant", help="Write even where the format's own code would compute another function.")
    ] = False,
    weights: options.Weights = "ema",
    num_heads: options.NumHeads = None,
    input_size: options.InputSize = None,
    timestep_variant: options.TimestepVariant = None,
    force: options.Force = False,
) -> None:
    """Write a checkpoint in a format that other people's code reads.

    Example: `dydit export digits-dit digits-dit.pt --format dit`
    """
    from dydit_cli.checkpoint.export import export as run

    written = run(
        checkpoint,
        destination,
        format=format,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        complete=complete,
        any_variant=any_variant,
        reading=options.reading(weights, num_heads, input_size, timestep_variant),
        force=force,
    )
    if any_variant:
        variant = written.config.to_dict().get("timestep_variant")
        console.note(f"the model computes the {variant} function; code that reads {destination} may compute another")
    console.say(f"{destination}: {written.config.size_name} as {format}, read from {written.found}")


def register(app: typer.Typer) -> None:
    app.command()(export)
