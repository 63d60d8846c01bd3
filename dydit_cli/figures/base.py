"""What a figure is, and the registry of all: each file beside this one registers its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dydit_cli.artifacts.base import Artifact
from dydit_cli.discovery import import_modules
from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Canvas


Draw = TypeVar("Draw", bound="Callable[[Any], Canvas]")


@dataclass(frozen=True)
class Figure:
    """`takes` are the kinds of artifacts that it can be drawn from. `table` returns all numbers that `draw` shows; both
    get an artifact, or, where it shows `several` side by side, a list of them.

    `title` is a heading and `caption` one or two sentences on what a reader sees, in which {0} is what it is drawn from; of
    one artifact's figures those with a lower `order` come first.
    """

    name: str
    takes: tuple[str, ...]
    title: str
    caption: str
    table: Callable[[Any], pd.DataFrame]
    draw: Callable[[Any], Canvas]
    several: bool = False
    order: int = 0


class TooLittleError(DyditError):
    """A source is whole, and holds too little for the figure: the losses of a single model have no gap."""


_figures: dict[str, Figure] = {}


def figure(name: str, *takes: str, **facts: Any) -> Callable[[Draw], Draw]:
    """Registers the function below it as the drawing of the figure `name`; `facts` are the other fields of `Figure`."""

    def register(draw: Draw) -> Draw:
        _figures[name] = Figure(name, takes, draw=draw, **facts)
        return draw

    return register


def all_figures() -> dict[str, Figure]:
    """Every figure by its name, in their order."""
    import_modules(__package__)
    return {one.name: one for one in sorted(_figures.values(), key=lambda one: (one.order, one.name))}


def figures_of(artifact: Artifact) -> list[Figure]:
    """The figures that can be drawn from `artifact`."""
    return [one for one in all_figures().values() if artifact.kind in one.takes]


def find_figure(name: str) -> Figure:
    """The figure of this name; raises `DyditError` for an unknown one."""
    every = all_figures()
    if name not in every:
        raise DyditError(f"no figure {name!r}; choose one of {', '.join(sorted(every))}")
    return every[name]
