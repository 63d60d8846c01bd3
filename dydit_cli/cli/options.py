"""Options that commands share and that are no field of a dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dydit_cli.cli import console
from dydit_cli.errors import DyditError
from dydit_cli.options import Arg, Opt
from dydit_cli.options import Device as Device
from dydit_cli.options import Seed as Seed

if TYPE_CHECKING:
    from dydit_cli.checkpoint.checkpoint import Checkpoint
    from dydit_cli.checkpoint.options import LoadOptions

Ckpt = Annotated[str, Arg("CKPT", "A checkpoint: folder, .pt, .safetensors, hub id, or `digits-dit`, `glyphs-dit`.")]

StaticCkpt = Annotated[str, Arg("CKPT", "A static checkpoint of any format, or `digits-dit`, `glyphs-dit`.")]

Out = Annotated[Path, Opt("The folder to write.", ("--out", "-o"), metavar="DIR")]

OutArgument = Annotated[Path, Arg("OUT", "The folder to write.")]

Force = Annotated[bool, Opt("Replace what is there.")]

Json = Annotated[bool, Opt("Print the figures as JSON.")]

Classes = Annotated[str | None, Opt("Classes in turn, such as 0,1,5-7.", default="all")]

TrainSteps = Annotated[
    int | None, Opt("Optimiser steps; the recipe's phases stretch with them.", metavar="N", default="the recipe's")
]

Settings = Annotated[
    Sequence[str], Opt("Replace one value of the recipe, such as train.ema_decay=0.99.", ("--set",), metavar="KEY=VALUE")
]

RunOut = Annotated[
    Path | None, Opt("The folder to write. The same command again continues it after a kill.", ("--out", "-o"), metavar="DIR")
]

Resume = Annotated[
    Path | None, Opt("Continue the unfinished run in DIR as it was asked for; nothing else needs to be given.", metavar="DIR")
]


def read(checkpoint: str, loading: LoadOptions) -> Checkpoint:
    """The checkpoint; where it is not our own folder, what was found and inferred is shown on stderr."""
    from dydit_cli.checkpoint.read import read

    loaded = read(checkpoint, loading)
    if loaded.found != "dydit folder":
        console.note(f"{checkpoint}: {'; '.join((loaded.found, loaded.config.size_name, *loaded.notes))}")
    return loaded


def parse_classes(text: str | None, num_classes: int) -> list[int]:
    """`0,1,5-7` as a list; all classes for None. Raises `DyditError` for what is no class of the model."""
    if text is None:
        return list(range(num_classes))
    classes: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise DyditError(f"--classes {text}: {part.strip()!r} is no class number; write for instance 0,1,5-7")
        classes.extend(range(int(first), int(last or first) + 1))
    unknown = [c for c in classes if c >= num_classes]
    if unknown or not classes:
        raise DyditError(f"--classes {text}: the model has classes 0 to {num_classes - 1}")
    return classes
