"""Train a static DiT from random weights, as the bundled digits model was.

Ctrl-C saves; the same command again, or --resume, continues to the very same end.

Example: `dydit pretrain digits/pretrain --steps 20 --out runs/digits-dit`
"""

from __future__ import annotations

from typing import Annotated

from dydit_cli.cli import options
from dydit_cli.cli.build import Typed
from dydit_cli.cli.training import finish, interruptible, only_resume, train
from dydit_cli.errors import DyditError
from dydit_cli.options import Arg

SHARED = PLANNED = True


def pretrain(
    typed: Typed,
    recipe: Annotated[str | None, Arg("RECIPE", "A TOML recipe with a [model] section.", options.recipe_names)] = None,
    out: options.RunOut = None,
    steps: options.TrainSteps = None,
    setting: options.Settings = (),
    resume: options.Resume = None,
    track: options.Track = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    from dydit_cli.train.run import random_start, resolve_recipe, unfinished

    if resume is not None:
        only_resume(typed, "--steps")
        folder, spec = resume, unfinished(resume, settings={} if steps is None else {"train.steps": steps})
    elif recipe is None or out is None:
        raise DyditError(f"{'RECIPE' if recipe is None else '--out'} is missing (see dydit pretrain --help)")
    else:
        folder, spec = out, random_start(resolve_recipe(recipe, steps=steps, settings=setting))
    with interruptible() as stop:
        result = train("pretrain", spec, folder, device, force, track, stop)
        finish("pretrain", result, folder, stop, json)
