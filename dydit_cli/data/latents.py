"""`latents:PATH`: what `dydit encode` wrote, the VAE's mean and std of every picture and of its mirror image.

A folder: encode.json (what was asked for), shards/NNNNNN.safetensors, and index.json once all of them are there. A shard
has the tensors mean and std, M 2 C S S (unmirrored, mirrored), and label, M, for its slice of the pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dydit_cli import marks
from dydit_cli.data.dataset import Dataset, Skipped, check_fits, check_norm, locate
from dydit_cli.data.lightningdit import LightningDiTLatents, is_lightningdit
from dydit_cli.data.registry import DataSource, register
from dydit_cli.errors import DyditError, naming
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.latent_norm import LatentNorm

FORMAT, FORMAT_VERSION = "dydit-latents", 1

STATISTICS_VERSION = 2  # of an index whose latents are normalised by more than a factor

INDEX_FILE, SETTINGS_FILE, SHARDS = "index.json", marks.LATENTS, "shards"


class ShardEntry(BaseModel):
    """A shard's file name and how many pictures it has."""

    model_config = ConfigDict(frozen=True)

    file: str
    count: int = Field(ge=0)


class LatentIndex(BaseModel):
    """index.json. `shape` is C S S; `size` the pictures' pixels a side; `skipped` (file, reason) pairs.

    The shards hold the VAE's own latents; `latents_mean` and `latents_std`, in version 2, and `scaling_factor` say how they
    are normalised.
    """

    model_config = ConfigDict(frozen=True)

    format: str
    format_version: int
    count: int = Field(gt=0)
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    size: int
    dtype: str
    scaling_factor: float = Field(gt=0)
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    vae: str
    vae_sha256: str
    skipped: tuple[tuple[str, str], ...]
    shards: tuple[ShardEntry, ...]

    @property
    def norm(self) -> LatentNorm:
        return LatentNorm.from_dict(self.model_dump())


def read_index(folder: Path) -> LatentIndex:
    """Raises `DyditError` where `folder` holds no whole set of latents of this version."""
    path = folder / INDEX_FILE
    if not path.is_file():
        begun = (folder / SETTINGS_FILE).is_file()
        state = "encoding them has not ended; run the same dydit encode again" if begun else "make them with dydit encode"
        raise DyditError(f"{folder}: no latents ({INDEX_FILE}); {state}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if values.get("format_version") not in (FORMAT_VERSION, STATISTICS_VERSION):
            version = values.get("format_version")
            raise ValueError(f"version {version!r}; this dydit reads up to version {STATISTICS_VERSION}: update dydit")
        index = LatentIndex.model_validate(values)
    except (OSError, ValueError) as error:  # pydantic's and json's errors are ValueErrors
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise DyditError(f"{path}: not an index of latents ({what}); make it again with dydit encode") from None
    with naming(path):
        index.norm.check(index.shape[-3])
    return index


class LatentData:
    """Training from such a folder: mean + std * noise, normalised; the seed draws the noise.

    Shards are mapped into memory, not read: only what is taken is. Raises `DyditError` for a folder that is not whole.
    """

    varied = True

    def __init__(self, folder: str | Path) -> None:
        self.name, self.index = f"latents:{folder}", read_index(Path(folder))
        self.class_names, self.num_classes = self.index.classes, len(self.index.classes)
        self.latents = self.index.norm
        self.skipped = [Skipped(file, reason) for file, reason in self.index.skipped]
        self._shards = [open_shard(Path(folder) / SHARDS / shard.file) for shard in self.index.shards]
        for shard, entry in zip(self._shards, self.index.shards, strict=True):
            shard.check(entry.count, self.index.shape)
        self._labels = torch.cat([shard.labels() for shard in self._shards])
        self._ends = torch.tensor([entry.count for entry in self.index.shards]).cumsum(0)
        if len(self) != self.index.count or not 0 <= int(self._labels.min()) <= int(self._labels.max()) < self.num_classes:
            raise DyditError(f"{folder}: its shards do not fit its {INDEX_FILE}; make it again with dydit encode")

    def __len__(self) -> int:
        return len(self._labels)

    def check(self, config: ModelConfig, latents: LatentNorm | None = None) -> None:
        check_fits(self.name, config, self.index.shape[0], self.index.shape[1], self.num_classes)
        mend = "encode the images with the model's own VAE, or run the same dydit encode with --latent-stats CKPT"
        check_norm(self.name, self.latents, latents, mend)

    def take(self, index: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seeds = [None] * len(index) if seed is None else seed.tolist()
        return torch.stack([self._one(i, s) for i, s in zip(index.tolist(), seeds, strict=True)]), self._labels[index]

    def prefetch(self, index: Tensor) -> None:
        """Does nothing: a row of a mapped file is in memory, or the system reads ahead."""

    def _one(self, i: int, seed: int | None) -> Tensor:
        """C S S float32; the mean itself without a seed."""
        shard, row = locate(self._ends, i)
        mirror = 0 if seed is None else seed % 2
        latent = self._shards[shard].row("mean", row, mirror)
        if seed is not None:
            noise = torch.randn(self.index.shape, generator=torch.Generator().manual_seed(seed))
            latent = latent + self._shards[shard].row("std", row, mirror) * noise
        return self.latents.normalise(latent)


class Shard:
    """One file of a set, open for reading single rows; `shape` is its mean's, M 2 C S S, and `metadata` as written."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        self.shape, *self._others = (tuple(file.get_slice(name).get_shape()) for name in ("mean", "std", "label"))
        self.metadata: dict[str, str] = file.metadata() or {}

    def check(self, count: int | None, shape: tuple[int, int, int]) -> None:
        """Raises `DyditError` where the tensors are not `count` pictures of `shape`; any number for None."""
        wanted = (self.shape[0] if count is None else count, 2, *shape)
        if [self.shape, *self._others] != [wanted, wanted, wanted[:1]]:
            raise damaged(self.path, f"its tensors are {[self.shape, *self._others]}, not {wanted}")

    def labels(self) -> Tensor:
        return self._file.get_tensor("label").long()

    def row(self, name: str, row: int, mirror: int) -> Tensor:
        """C S S float32."""
        return self._file.get_slice(name)[row : row + 1, mirror : mirror + 1][0, 0].float()


def open_shard(path: Path) -> Shard:
    """Raises `DyditError` for a file that is missing, cut short, or no shard."""
    try:
        return Shard(path, safe_open(path, framework="pt"))
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, why: str) -> DyditError:
    """What to do about a bad shard."""
    return DyditError(f"{path}: damaged shard ({why}); delete it, and run the same dydit encode again")


def _load(path: str, config: ModelConfig | None) -> Dataset:
    return LightningDiTLatents(path, config) if is_lightningdit(Path(path)) else LatentData(path)


register(DataSource("latents", _load, takes_path=True))
