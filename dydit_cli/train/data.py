"""Data sets by name. Each is held in memory as images in [-1, 1] and integer labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig

DATASETS = ("digits",)


@dataclass(frozen=True)
class ImageData:
    """images: M C S S float32 in [-1, 1]; labels: M int64 from 0 to num_classes - 1."""

    name: str
    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, config: DiTConfig) -> None:
        """Raises `DyditError` where a model of `config` cannot be trained on this data."""
        _, channels, height, _ = self.images.shape
        for what, ours, model in (
            ("channels", channels, config.in_channels),
            ("pixels a side", height, config.input_size),
            ("classes", self.num_classes, config.num_classes),
        ):
            if ours != model:
                raise DyditError(
                    f"data set {self.name} has {ours} {what} and the model {model}; choose data that fit the model"
                )


@lru_cache(maxsize=2)
def load_digits_split(held_out: bool = False) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8x8, bundled with it.

    A fifth of each class (360 images) is held out from everything that is trained; `held_out` chooses that part.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pair = train_test_split(bunch.images, bunch.target, test_size=0.2, random_state=0, stratify=bunch.target)
    images, labels = (pair[1], pair[3]) if held_out else (pair[0], pair[2])
    pixels = torch.from_numpy(images).float().div(8).sub(1).unsqueeze(1)  # M 1 8 8, from 0..16
    return ImageData("digits", pixels, torch.from_numpy(labels).long(), 10)


def load_data(name: str) -> ImageData:
    """The training part of the data set `name`; raises `DyditError` for an unknown one."""
    if name not in DATASETS:
        raise DyditError(f"no data set {name!r}; choose one of {', '.join(DATASETS)}")
    return load_digits_split()


def batches(data: ImageData, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end: every image once an epoch, batches running over the epoch's edge.

    Yields images B C S S and labels B.
    """
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        index, order = order[:size], order[size:]
        yield data.images[index], data.labels[index]
