"""What a pruning method may look at beside the weights, and the model's losses on it.

Legend: B batch, C channels, S size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dydit_cli.data.dataset import Dataset, batches
from dydit_cli.diffusion.objective import LossTerms
from dydit_cli.diffusion.options import MOST_TIMESTEPS
from dydit_cli.diffusion.process import process_of
from dydit_cli.errors import DyditError
from dydit_cli.model.backbone import Backbone
from dydit_cli.seeds import check_seed


def _ignore(amount: int = 1) -> None:
    pass


@dataclass(frozen=True)
class CalibrationData:
    """What a pruning method may look at beside the weights: `batches` of `batch_size` images of `data`, all chance from `seed`.

    `timesteps` and `threshold` are `diff`'s: so many timesteps, of which those count whose loss is at least that share of
    the largest. `on_work` is told of every forward pass. Raises `DyditError` for a number out of range.
    """

    seed: int = 0
    data: Dataset | None = None
    batches: int = 1
    batch_size: int = 64
    timesteps: int = 50
    threshold: float = 0.05
    on_work: Callable[[int], None] = _ignore

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for what, value in (("batches", self.batches), ("images in a batch", self.batch_size)):
            if value < 1:
                raise DyditError(f"{value} {what}; importance is measured on at least 1")
        if not 1 <= self.timesteps <= MOST_TIMESTEPS:
            raise DyditError(f"{self.timesteps} timesteps; choose 1 to {MOST_TIMESTEPS}")
        if not 0 <= self.threshold <= 1:
            raise DyditError(f"threshold {self.threshold:g}; it is a share of the largest loss, from 0 to 1")

    @property
    def images(self) -> str:
        """How many images of what, in words."""
        assert self.data is not None
        return f"{self.batches} x {self.batch_size} images of {self.data.name}"


LABEL_DROPOUT = 0.1  # as in training


class BatchLosses:
    """The model's losses on the batches of the calibration data, with all chance drawn on the cpu by `generator`."""

    def __init__(self, model: Backbone, data: CalibrationData) -> None:
        assert data.data is not None
        self._model, self._calibration, self._data = model, data, data.data
        self.process = process_of(model.config)
        self.generator = torch.Generator().manual_seed(data.seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images B C S S and labels B, a tenth of which stand for none."""
        stream = batches(self._data, self._calibration.batch_size, self.generator)
        for _ in range(self._calibration.batches):
            x0, y = next(stream)
            dropped = torch.rand(len(y), generator=self.generator) < LABEL_DROPOUT
            yield x0, torch.where(dropped, torch.full_like(y, self._model.config.null_class), y)

    def noise(self, x0: Tensor) -> Tensor:
        return torch.randn(x0.shape, generator=self.generator)

    def at(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> LossTerms:
        device, dtype = self._model.device, self._model.dtype
        x0, noise, t, y = x0.to(device, dtype), noise.to(device, dtype), t.to(device), y.to(device)
        x_t = self.process.add_noise(x0, t, noise)
        return self.process.losses(self._model(x_t, t, y), x0, x_t, t, noise)
