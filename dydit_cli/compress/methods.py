"""What a pruning method is, whatever it cuts, and the registry of all: each file beside this one registers its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from dydit_cli.compress.calibration import CalibrationData
from dydit_cli.discovery import import_modules
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.model.config import ModelConfig


@dataclass(frozen=True)
class Kept:
    """What of a model stays: `blocks`, their numbers in the original, and of each of them `heads` and `channels`, (kept,)
    int64 each; all ascending. `seen` says in a phrase what the choice was made on."""

    blocks: list[int]
    heads: list[Tensor]
    channels: list[Tensor]
    seen: str


class PruningMethod(ABC):
    """One way to make a static model smaller. `batches` is how many of the calibration data it looks at by default, 0 for
    none."""

    batches: int = 0

    @abstractmethod
    def smaller(self, config: ModelConfig, keep: float) -> ModelConfig:
        """`config` with the share `keep`, over 0 and at most 1, of the MACs of attention and MLP in its blocks, or as near as
        that can be. Raises `DyditError` where it is less than the least that can stay."""

    @abstractmethod
    def choose(self, model: Backbone, smaller: ModelConfig, data: CalibrationData) -> Kept:
        """What of `model`, which may be changed, becomes a model of `smaller`."""

    def passes(self, config: ModelConfig, smaller: ModelConfig, data: CalibrationData) -> int:
        """How many forward passes `choose` takes with each batch, for the progress shown."""
        return 1


_methods: dict[str, PruningMethod] = {}


def register(name: str, method: PruningMethod) -> None:
    """Adds a pruning method under a name."""
    _methods[name] = method


def pruning_methods() -> dict[str, PruningMethod]:
    """All of them by name, in the order of their files, whichever was imported first."""
    import_modules(__package__)
    return dict(sorted(_methods.items(), key=lambda item: type(item[1]).__module__))


def find_method(name: str) -> PruningMethod:
    """The method of this name; raises `DyditError` for an unknown one."""
    every = pruning_methods()
    if name not in every:
        raise DyditError(f"no pruning method {name!r}; choose one of {', '.join(every)}")
    return every[name]
