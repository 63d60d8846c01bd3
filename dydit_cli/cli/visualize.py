"""dydit visualize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dydit_cli.cli import console, options


def visualize(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="What a command wrote: a profile's folder; for `training` a run's, for `loss-gap` and `loss-maps` that of "
            "`dydit losses`, for `tradeoff` a study's; for `samples` a study's or several of `dydit sample`; for `time` the "
            "file of `dydit bench --json`.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture: .png, .svg or .pdf.")],
    figure: Annotated[
        str,
        typer.Option(help="architecture, tokens, flops, training, loss-gap, loss-maps, tradeoff, samples or time."),
    ] = "architecture",
    data: Annotated[bool, typer.Option("--data", help="Also write what is drawn as CSV, beside the picture.")] = False,
    force: options.Force = False,
) -> None:
    """Draw which heads, channels and tokens a DyDiT uses, what it costs, how its training went, or how it compares.

    Example: `dydit visualize runs/profile-0.5 --figure architecture --out architecture.png`
    """
    from dydit_cli.figures.visualize import visualize as run

    picture = run(sources, figure, out, data=data, force=force)
    console.say(f"{picture}, its numbers {picture.with_suffix('.csv')}" if data else str(picture))


def register(app: typer.Typer) -> None:
    app.command()(visualize)
