"""The registry of data sets. A file in this folder registers its own, and every command takes it by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dydit_cli.data.dataset import Dataset, ImageData
from dydit_cli.model.config import ModelConfig


@dataclass(frozen=True)
class SupportVectors:
    """The parameters of a support-vector classifier."""

    c: float
    gamma: float


@dataclass(frozen=True)
class DataSource:
    """A data set `name`, or with `takes_path` one for every `name:PATH`.

    `load(path, config)` returns the training part, `path` being "" for a set without one and `config` the configuration of
    the model that it is for, where that is known; `load_held_out` the part that nothing is trained on, or None where there
    is no such part. Both raise `DyditError` for data that cannot be read. `classifier` tells the set's classes apart.
    """

    name: str
    load: Callable[[str, ModelConfig | None], Dataset]
    load_held_out: Callable[[str, ModelConfig | None], Dataset | None] = lambda path, config: None
    takes_path: bool = False
    classifier: SupportVectors | None = None

    @property
    def usage(self) -> str:
        """As it is written after `--data`."""
        return f"{self.name}:PATH" if self.takes_path else self.name


SOURCES: dict[str, DataSource] = {}

Split = TypeVar("Split", bound=Callable[..., ImageData])


def register(source: DataSource) -> None:
    """Adds `source`; its name must be new."""
    if source.name in SOURCES:
        raise ValueError(f"there is a data set {source.name!r} already")
    SOURCES[source.name] = source


def dataset(name: str, **facts: Any) -> Callable[[Split], Split]:
    """Registers the decorated `load(held_out)`, which returns either part, as the data set `name`.

    `facts` are the other fields of `DataSource`.
    """

    def decorate(load: Split) -> Split:
        register(DataSource(name, lambda path, config: load(False), lambda path, config: load(True), **facts))
        return load

    return decorate
