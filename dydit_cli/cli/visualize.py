"""dydit visualize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dydit_cli.cli import console, options


def visualize(
    profile: Annotated[
        Path, typer.Argument(metavar="PROFILE", help="A folder that `dydit profile` wrote; for `training`, a run's folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture: .png, .svg or .pdf.")],
    figure: Annotated[str, typer.Option(help="architecture, tokens, flops or training.")] = "architecture",
    force: options.Force = False,
) -> None:
    """Draw which heads, channels and tokens a DyDiT uses, what it costs, or how its training went.

    Example: `dydit visualize runs/profile-0.5 --figure architecture --out architecture.png`
    """
    from dydit_cli.figures.visualize import visualize as run

    console.say(str(run(profile, figure, out, force=force)))


def register(app: typer.Typer) -> None:
    app.command()(visualize)
