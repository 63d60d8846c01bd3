"""Options that commands share and that are no field of a dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dydit_cli.bundled import MODELS
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.cli import console
from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.model.caching import CacheOptions
from dydit_cli.options import Arg, DtypeName, Opt, Without
from dydit_cli.options import Device as Device
from dydit_cli.options import Seed as Seed
from dydit_cli.train.tracking import TRACKERS

if TYPE_CHECKING:
    from dydit_cli.checkpoint.checkpoint import Checkpoint


def recipe_names() -> list[str]:
    """Of the recipes that ship, for the shell."""
    from dydit_cli.recipe_files import shipped_recipes

    return shipped_recipes()


ANY_CKPT = Arg(
    "CKPT", "A checkpoint: folder, .pt, .safetensors, hub id, or a bundled one, such as `digits-dit`.", MODELS.__iter__
)

Ckpt = Annotated[str, ANY_CKPT]

StaticCkpt = Annotated[
    str, Arg("CKPT", "A static checkpoint of any format, or a bundled one, such as `digits-dit`.", MODELS.__iter__)
]

Recipe = Annotated[
    str, Arg("RECIPE", "A TOML file, or the name of a recipe that ships, such as digits/finetune.", recipe_names)
]

LoadingWithoutRatio = Annotated[LoadOptions, Without("flops_ratio")]  # where a DyDiT of a range stays one

Out = Annotated[Path, Opt("The folder to write.", ("--out", "-o"), metavar="DIR")]

OutArgument = Annotated[Path, Arg("OUT", "The folder to write.")]

Force = Annotated[bool, Opt("Replace what is there.")]

Json = Annotated[bool, Opt("Print the figures as JSON.")]

Classes = Annotated[str | None, Opt("Classes in turn, by number or name, such as 0,5-7,goldfish.", default="all")]

TrainSteps = Annotated[
    int | None, Opt("Optimiser steps; the recipe's phases stretch with them.", metavar="N", default="the recipe's")
]

Settings = Annotated[
    Sequence[str], Opt("Replace one value of the recipe, such as train.ema_decay=0.99.", ("--set",), metavar="KEY=VALUE")
]

RunOut = Annotated[
    Path | None,
    Opt("The folder to write. The same command again continues it after a kill.", ("--out", "-o"), metavar="DIR"),
]

Track = Annotated[
    str | None,
    Opt("Show every step's figures while it runs, in a tracker.", metavar="NAME", choices=TRACKERS.keys, default="none"),
]

Resume = Annotated[
    Path | None,
    Opt(
        "Continue the unfinished run in DIR as it was asked for; nothing else needs to be given. With --steps N it ends after "
        "N steps, and so may a finished one that was run with --set train.keep_state=true.",
        metavar="DIR",
    ),
]


def read(checkpoint: str, loading: LoadOptions) -> Checkpoint:
    """The checkpoint; where it is not our own folder, what was found and inferred is shown on stderr."""
    from dydit_cli.checkpoint.read import read as run

    loaded = run(checkpoint, loading)
    if loaded.found != "dydit folder":
        console.note(f"{checkpoint}: {'; '.join((loaded.found, loaded.config.size_name, *loaded.notes))}")
    return loaded


def read_to_run(checkpoint: str, loading: LoadOptions) -> Checkpoint:
    """As `read`; of a DyDiT of a range for which no FLOPs ratio was given, it is said which it runs at."""
    from dydit_cli.model.config import RoutedConfig

    loaded = read(checkpoint, loading)
    config = loaded.config
    if isinstance(config, RoutedConfig) and config.budgets and not config.allocation:
        low, high = config.budgets[0], config.budgets[-1]
        console.note(f"{checkpoint}: is of all FLOPs ratios from {low:g} to {high:g}, and runs at {high:g}; see --flops-ratio")
    return loaded


def show_cache(
    loaded: Checkpoint,
    cache: CacheOptions,
    settings: SamplerSettings,
    batch: int,
    plan_memory: int | None,
    dtype: DtypeName = "fp32",
) -> None:
    """Says on stderr what a cache will take for `batch` images at once, before it is taken; raises `DyditError` where that is
    over `plan_memory`."""
    from dydit_cli.distributed import is_main

    ready = settings.for_model(loaded.config)
    cache.check(loaded.config)
    kept = (
        *(loaded.config, cache.schedule(ready.timesteps, ready.sampler)),
        *(batch * (1 if ready.cfg == 1 else 2), 4 if dtype == "fp32" else 2),
    )
    if plan_memory is not None:
        cache.check_room(*kept, plan_memory)
    if is_main():
        for line in cache.memory(*kept):
            console.note(line)


def class_numbers(classes: str | None, loaded: Checkpoint) -> list[int] | None:
    """`--classes`, by the names that `loaded` has for them; None for all."""
    from dydit_cli.sampling.classes import parse_classes

    return None if classes is None else parse_classes(classes, loaded.config.num_classes, loaded.labels)
