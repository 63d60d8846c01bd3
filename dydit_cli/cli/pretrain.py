"""dydit pretrain"""

from __future__ import annotations

from typing import Annotated

import typer

from dydit_cli.cli import console, options
from dydit_cli.cli.training import describe, finish, interruptible


def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML recipe with a [model] section.")],
    out: options.Out,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Optimiser steps, in place of the recipe's.")] = None,
    setting: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of the recipe.")] = [],  # noqa: B006
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Train a static DiT from random weights, as the bundled digits model was.

    Example: `dydit pretrain digits/pretrain --steps 20 --out runs/digits-dit`
    """
    from dydit_cli.train.run import pretrain as run
    from dydit_cli.train.run import resolve_recipe

    resolved = resolve_recipe(recipe, steps=steps, settings=setting)
    with interruptible() as stop:
        with console.progress("pretrain", resolved.train.steps, "steps") as advance:
            result = run(
                resolved,
                out,
                device=device,
                force=force,
                on_step=lambda metrics: advance(1, describe(metrics)),
                should_stop=stop,
            )
        finish(result, out, stop, json, {})


def register(app: typer.Typer) -> None:
    app.command()(pretrain)
