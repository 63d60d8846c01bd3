"""Latents as LightningDiT's own script writes them: one sample of each picture and one of its mirror image.

A folder of latents_rankRR_shardSSS.safetensors with the tensors latents and latents_flip, M C S S, and labels, M; beside
them latents_stats.pt with the mean and std of the set, 1 C 1 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dydit_cli.checkpoint.latent_stats import STATS_FILE, read_norm
from dydit_cli.data.dataset import Skipped, check_fits, check_norm, locate
from dydit_cli.data.measure import measure
from dydit_cli.errors import DyditError, naming
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.latent_norm import LatentNorm

NAMES = ("latents", "latents_flip", "labels")


def is_lightningdit(folder: Path) -> bool:
    """Whether `folder` holds files of those names."""
    return any(folder.glob("latents_rank*.safetensors"))


class LightningDiTLatents:
    """Training from such a folder; an odd seed takes the mirrored latent.

    The files are taken by name, and mapped into memory. Without latents_stats.pt the statistics are measured at opening, as
    LightningDiT does. The folder does not tell how many classes there are: those of `config`, where it is given. Raises
    `DyditError` for a damaged file.
    """

    varied = True
    class_names = None
    skipped: Sequence[Skipped] = ()

    def __init__(self, folder: str | Path, config: ModelConfig | None = None) -> None:
        self.name = f"latents:{folder}"
        paths = sorted(Path(folder).glob("*.safetensors"))
        opened = [_open(path) for path in paths]
        self._files = [file for file, _ in opened]
        self.shape = opened[0][1][1:]
        for path, (_, shape) in zip(paths, opened, strict=True):
            if shape[1:] != self.shape:
                raise DyditError(f"{path}: its latents are {list(shape[1:])}, and those before it {list(self.shape)}")
        self._ends = torch.tensor([shape[0] for _, shape in opened]).cumsum(0)
        self._labels = torch.cat([file.get_tensor("labels").long() for file in self._files])
        if not len(self._labels) or int(self._labels.min()) < 0:
            raise DyditError(f"{folder}: its latents have no labels, or negative ones")
        most = int(self._labels.max()) + 1
        self.num_classes = most if config is None else max(most, config.num_classes)
        stats = Path(folder) / STATS_FILE
        with naming(folder):
            norm = read_norm(stats) if stats.is_file() else measure(lambda i: self._row(i, "latents"), len(self))
            self.latents: LatentNorm = norm.check(self.shape[0])

    def __len__(self) -> int:
        return len(self._labels)

    def check(self, config: ModelConfig, latents: LatentNorm | None = None) -> None:
        check_fits(self.name, config, self.shape[0], self.shape[1], self.num_classes)
        check_norm(self.name, self.latents, latents, f"put the model's own {STATS_FILE} beside the latents")

    def take(self, index: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seeds = [0] * len(index) if seed is None else seed.tolist()
        rows = [self._row(i, NAMES[s % 2]) for i, s in zip(index.tolist(), seeds, strict=True)]
        return self.latents.normalise(torch.stack(rows)), self._labels[index]

    def prefetch(self, index: Tensor) -> None:
        """Does nothing: a row of a mapped file is in memory, or the system reads ahead."""

    def _row(self, i: int, name: str) -> Tensor:
        """C S S float32."""
        file, row = locate(self._ends, i)
        return self._files[file].get_slice(name)[row : row + 1][0].float()


def _open(path: Path) -> tuple[Any, tuple[int, ...]]:
    """The file, and its shape M C S S."""
    try:
        file = safe_open(path, framework="pt")
        shape, flipped, labels = (tuple(file.get_slice(name).get_shape()) for name in NAMES)
    except (OSError, SafetensorError) as error:
        raise DyditError(f"{path}: not latents as LightningDiT writes them ({error})") from None
    if len(shape) != 4 or flipped != shape or labels != shape[:1]:
        raise DyditError(f"{path}: its {', '.join(NAMES)} are {shape}, {flipped} and {labels}, which do not fit together")
    return file, shape
