"""dydit report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dydit_cli.cli import console, options


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="What dydit wrote: folders of runs, profiles, samples, losses, studies or the demo, and the JSON files of "
            "`dydit evaluate` and `dydit bench`.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page: .html.")],
    title: Annotated[str | None, typer.Option(help="Its title.", show_default="from the names of what is in it")] = None,
    force: options.Force = False,
) -> None:
    """Put protocol, figures, tables and samples of any runs on one page that needs no network and no other file.

    Example: `dydit report runs/profile-0.5 runs/digits-0.5 --out runs/report.html`
    """
    from dydit_cli.reports.report import report as run

    console.say(str(run(runs, out, title=title, force=force)))


def register(app: typer.Typer) -> None:
    app.command()(report)
