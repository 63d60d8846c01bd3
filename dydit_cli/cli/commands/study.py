"""The trade-off study: DyDiT, prunings, ToMe, fewer steps and the control at several amounts of work, measured alike.

The same command continues it after a kill; started twice, two processes share the rows. Times are taken at the end, by one.

Example: `dydit study digits/tradeoff --out runs/tradeoff`
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from dydit_cli.cli import console, options
from dydit_cli.cli.build import Typed
from dydit_cli.cli.training import interruptible
from dydit_cli.options import Arg, Opt

if TYPE_CHECKING:
    from dydit_cli.studies.study import Study

SHARED = True  # it refuses them itself, and says how it is shared


def study(
    typed: Typed,
    recipe: Annotated[
        str, Arg("RECIPE", "A study's TOML file, or one that ships with dydit: digits/tradeoff.", options.recipe_names)
    ],
    out: options.Out,
    setting: Annotated[
        Sequence[str], Opt("Replace one value of the recipe, such as evaluation.images=200.", ("--set",), metavar="KEY=VALUE")
    ] = (),
    time: Annotated[bool, Opt("Take times when all rows are done.")] = True,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.studies.recipe import read_study
    from dydit_cli.studies.study import study as run

    asked = read_study(recipe, setting)
    with interruptible() as stop:
        with console.stages() as work:
            result = run(
                asked, out, time=time, device=device, force=force, on_stage=work.begin, on_work=work.advance, should_stop=stop
            )
        if json:
            console.as_json({"out": str(out), **result.to_dict(), "resume": typed.again if result.interrupted else None})
        else:
            show(result, str(out))
        if result.interrupted:
            console.note(f"continue with: {typed.again}")
            raise SystemExit(128 + (stop.signal or signal.SIGTERM))
        if result.left:
            console.note(
                f"{result.left} rows are with other processes, of which the last to finish takes the times; "
                f"if none is running: {typed.again}"
            )


def show(result: Study, out: str) -> None:
    """The summary, how it came about, and where the files are."""
    from dydit_cli.studies.tables import FEW, protocol_line, short, shown

    console.table("Quality over work", *shown(result.summary, FEW, short, result.protocol["steps"]))
    console.say(protocol_line(result.protocol))
    console.say(f"files in {out}: study.csv, summary.csv, study.md, study.json, samples.npz")
