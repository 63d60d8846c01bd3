"""What a dataclass of settings declares about the command-line options that fill it: `Annotated[int, Opt("Images.")]`.

A new option goes into its component's dataclass, and every command that takes the dataclass has it (cli/build.py). The
modules of these dataclasses import no torch, so that a command's help is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dydit_cli.errors import DyditError
from dydit_cli.seeds import check_seed

DtypeName = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Opt:
    """An option `--name` after its field, or with `names`; a field without one is no option.

    `default` is shown as the default in place of the field's own. `parse` makes the field's value from an `of` that is
    typed, and raises `DyditError` for what it cannot read. `choices` returns what may be typed, where a registry holds it, and
    `complete` names that the shell offers beside files.
    """

    help: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    min: float | None = None
    default: str | None = None
    of: type = str
    parse: Callable[[Any], Any] | None = None
    choices: Callable[[], Iterable[str]] | None = None
    complete: Callable[[], Iterable[str]] | None = None


class Without:
    """Beside a dataclass among the fields of another, or a command's parameters: its fields that are no options there."""

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True)
class Arg:
    """An argument, which has no name on the command line; `metavar` stands for it in help and errors, and `complete` is as an
    option's."""

    metavar: str
    help: str
    complete: Callable[[], Iterable[str]] | None = None


def parse_seed(seed: int) -> int:
    """Raises `DyditError` for what no generator takes."""
    try:
        return check_seed(seed)
    except DyditError as error:
        raise DyditError(f"--{error}") from None


Seed = Annotated[int, Opt("The same seed gives the same result.", metavar="N", default="0", of=int, parse=parse_seed)]

Device = Annotated[str, Opt("auto, cpu, cuda or mps.")]
