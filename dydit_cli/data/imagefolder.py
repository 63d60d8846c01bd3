"""A folder of pictures as training data, read when they are needed by a few threads that look one batch ahead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.data.dataset import check_fits
from dydit_cli.data.pictures import Listing, Skipped, header_fault, list_pictures, none_readable, read_picture, reason
from dydit_cli.errors import DyditError
from dydit_cli.model.config import DiTConfig

THREADS = min(8, os.cpu_count() or 1)  # decoding lets go of Python's lock
PIXEL_CHANNELS = (1, 3)

Picture = tuple[NDArray[np.uint8], int]  # S S C, and its label


class ImageFolder:
    """Class folders of pictures, cropped to `size` x `size`, mirrored at random; of `channels` 3, or 1 for grey.

    At opening every file's first bytes are looked at. One that proves damaged later is replaced by the next readable
    one, label and all, so that what comes at an index never depends on threads.
    """

    varied = True

    def __init__(self, root: str | Path, size: int, channels: int = 3, threads: int = THREADS) -> None:
        self.name, self.size, self.channels = f"imagefolder:{root}", size, channels
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dydit-pictures")
        self._ahead: dict[int, Future[Picture]] = {}
        everything = list_pictures(root)
        faults = list(self._pool.map(lambda i: header_fault(everything.path(i)), range(len(everything.files))))
        pairs = zip(everything.files, faults, strict=True)
        self._skipped = {file: Skipped(file, fault) for file, fault in pairs if fault is not None}
        if len(self._skipped) == len(everything.files):
            raise none_readable(everything.root, self.skipped)
        readable = [i for i, fault in enumerate(faults) if fault is None]
        self._listing = Listing(
            everything.root,
            everything.classes,
            tuple(everything.files[i] for i in readable),
            tuple(everything.labels[i] for i in readable),
        )

    @property
    def num_classes(self) -> int:
        return len(self._listing.classes)

    @property
    def skipped(self) -> Sequence[Skipped]:
        return [self._skipped[file] for file in sorted(self._skipped)]

    def __len__(self) -> int:
        return len(self._listing.files)

    def check(self, config: DiTConfig) -> None:
        check_pixels(self.name, config)
        check_fits(self.name, config, self.channels, self.size, self.num_classes)

    def take(self, index: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wanted: list[int] = index.tolist()
        coming = [self._ahead.pop(i) if i in self._ahead else self._pool.submit(self._read, i) for i in wanted]
        pictures = [future.result() for future in coming]
        images = to_model(np.stack([pixels for pixels, _ in pictures]))
        if seed is not None:
            images = torch.where((seed % 2 == 1)[:, None, None, None], images.flip(-1), images)
        return images, torch.tensor([label for _, label in pictures])

    def prefetch(self, index: Tensor) -> None:
        wanted = index.tolist()
        for i in set(self._ahead) - set(wanted):  # hinted at, and never taken
            self._ahead.pop(i).cancel()
        for i in wanted:
            if i not in self._ahead:
                self._ahead[i] = self._pool.submit(self._read, i)

    def _read(self, first: int) -> Picture:
        for step in range(len(self)):
            i = (first + step) % len(self)
            try:
                return read_picture(self._listing.path(i), self.size, self.channels), self._listing.labels[i]
            except Exception as error:  # damaged files make Pillow's readers raise nearly anything
                file = self._listing.files[i]
                self._skipped[file] = Skipped(file, reason(error))
        raise none_readable(self._listing.root, self.skipped)


def check_pixels(name: str, config: DiTConfig) -> None:
    """Raises `DyditError` for a model of latents, which cannot be trained on pixels."""
    if config.in_channels not in PIXEL_CHANNELS:
        raise DyditError(
            f"data set {name} is pixels and the model takes latents of {config.in_channels} channels; "
            "write them once with dydit encode IMAGES OUT --vae PATH and give latents:OUT"
        )


def to_model(pixels: NDArray[np.uint8]) -> Tensor:
    """B S S C from 0..255 -> B C S S float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
