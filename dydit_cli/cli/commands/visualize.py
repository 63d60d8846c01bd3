"""Draw which heads, channels and tokens a DyDiT uses, what it costs, how its training went, or how it compares.

Example: `dydit visualize runs/profile-0.5 --figure architecture --out architecture.png`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dydit_cli.cli import console, options
from dydit_cli.options import Arg, Opt


def figure_names() -> list[str]:
    """Those that are registered."""
    from dydit_cli.figures.base import all_figures

    return sorted(all_figures())


def visualize(
    sources: Annotated[
        Sequence[Path],
        Arg(
            "SOURCE...",
            "What a command wrote: a profile's folder; for `training` a run's, for `loss-gap` and `loss-maps` that of "
            "`dydit losses`, for `tradeoff` and `tradeoff-steps` a study's, for `frontier` that of `dydit frontier`; for "
            "`samples` a study's or several of `dydit sample`; for `time` the file of `dydit bench --json`.",
        ),
    ],
    out: Annotated[Path, Opt("The picture: .png, .svg or .pdf.", ("--out", "-o"), metavar="FILE")],
    figure: Annotated[str, Opt("Which one.", metavar="NAME", choices=figure_names)] = "architecture",
    data: Annotated[bool, Opt("Also write what is drawn as CSV, beside the picture.")] = False,
    force: options.Force = False,
) -> None:
    from dydit_cli.figures.visualize import visualize as run

    picture = run(sources, figure, out, data=data, force=force)
    console.say(f"{picture}, its numbers {picture.with_suffix('.csv')}" if data else str(picture))
