"""dydit visualize"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from dydit_cli.cli import console, options


class WithFigures(TyperCommand):
    """A command whose help lists every figure: their files are loaded when they are wanted, not for `dydit --help`."""

    def format_help(self, *arguments: Any) -> None:
        from dydit_cli.figures.base import all_figures

        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "figure":
                option.help = f"One of {', '.join(sorted(all_figures()))}."
        super().format_help(*arguments)


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
        typer.Option(metavar="NAME", help="Which one."),
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
    app.command(cls=WithFigures)(visualize)
