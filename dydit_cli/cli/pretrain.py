"""dydit pretrain"""

from __future__ import annotations

from typing import Annotated

import typer

from dydit_cli.cli import options
from dydit_cli.cli.training import Out, Resume, finish, interruptible, only_resume, train
from dydit_cli.errors import DyditError


def pretrain(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A TOML recipe with a [model] section.")] = None,
    out: Out = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Optimiser steps, in place of the recipe's.")] = None,
    setting: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of the recipe.")] = [],  # noqa: B006
    resume: Resume = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Train a static DiT from random weights, as the bundled digits model was.

    Ctrl-C saves; the same command again, or --resume, continues to the very same end.

    Example: `dydit pretrain digits/pretrain --steps 20 --out runs/digits-dit`
    """
    from dydit_cli.train.run import random_start, resolve_recipe, unfinished

    if resume is not None:
        only_resume({"RECIPE": recipe, "--out": out, "--set": setting, "--force": force})
        place, asked = resume, unfinished(resume, settings={} if steps is None else {"train.steps": steps})
    elif recipe is None or out is None:
        raise DyditError(f"{'RECIPE' if recipe is None else '--out'} is missing (see dydit pretrain --help)")
    else:
        place, asked = out, random_start(resolve_recipe(recipe, steps=steps, settings=setting))
    with interruptible() as stop:
        result = train("pretrain", asked, place, device, force, stop)
        finish("pretrain", result, place, stop, json, {})


def register(app: typer.Typer) -> None:
    app.command()(pretrain)
