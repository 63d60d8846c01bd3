"""Put protocol, figures, tables and samples of any runs on one page that needs no network and no other file.

Example: `dydit report runs/profile-0.5 runs/digits-0.5 --out runs/report.html`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dydit_cli.cli import console, options
from dydit_cli.options import Arg, Opt


def report(
    runs: Annotated[
        Sequence[Path],
        Arg(
            "RUN...",
            "What dydit wrote: folders of runs, profiles, samples, losses, studies or the demo, and the JSON files of "
            "`dydit evaluate` and `dydit bench`.",
        ),
    ],
    out: Annotated[Path, Opt("The page: .html.", ("--out", "-o"), metavar="FILE")],
    title: Annotated[str | None, Opt("Its title.", default="from the names of what is in it")] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.reports.report import make_report

    page = make_report(runs, out, title=title, force=force)
    if json:
        console.as_json({**page.to_dict(), "runs": [str(path) for path in runs]})
    else:
        console.say(str(page.path))
