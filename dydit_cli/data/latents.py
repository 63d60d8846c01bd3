"""`latents:PATH`: what `dydit encode` wrote, the VAE's mean and std of every picture and of its mirror image.

A folder: encode.json (what was asked for), shards/NNNNNN.safetensors, and index.json once all of them are there. A shard
has the tensors mean and std, R 2 C S S (unmirrored, mirrored), and label, M, for its slice of the M pictures or clips. A clip
is as many rows as it has frames, from row `first[i]` to `first[i + 1]` - 1; a picture is one row, and there is no `first`.
"""

from __future__ import annotations

import json
from operator import sub
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
from dydit_cli.seeds import derived

FORMAT, FORMAT_VERSION = "dydit-latents", 1

STATISTICS_VERSION = 2  # of an index whose latents are normalised by more than a factor

CLIPS = 1_000_003  # keeps what one seed draws of a clip apart from what it draws of the next

INDEX_FILE, SETTINGS_FILE, SHARDS = "index.json", marks.LATENTS, "shards"


class ShardEntry(BaseModel):
    """A shard's file name and how many pictures it has."""

    model_config = ConfigDict(frozen=True)

    file: str
    count: int = Field(ge=0)


class LatentIndex(BaseModel):
    """index.json. `shape` is C S S; `size` the pictures' pixels a side; `skipped` (file, reason) pairs; `frames` how many each
    clip has at least, None of pictures.

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
    frames: int | None = Field(default=None, gt=0)
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

    Of a clip `frames` in a row are taken, by default the least that any has; the seed draws which, and without one it is the
    first ones. Shards are mapped into memory, not read: only what is taken is. Raises `DyditError` for a folder that is not
    whole.
    """

    varied = True

    def __init__(self, folder: str | Path, frames: int | None = None) -> None:
        self.name, self.index = f"latents:{folder}", read_index(Path(folder))
        least = self.index.frames
        self.frames = None if least is None else min(least, frames or least)
        self.class_names, self.num_classes = self.index.classes, len(self.index.classes)
        self.latents = self.index.norm
        self.skipped = [Skipped(file, reason) for file, reason in self.index.skipped]
        self._shards = [open_shard(Path(folder) / SHARDS / shard.file) for shard in self.index.shards]
        for shard, entry in zip(self._shards, self.index.shards, strict=True):
            shard.check(entry.count, self.index.shape, self.frames)
        self._labels = torch.cat([shard.labels() for shard in self._shards])
        self._ends = torch.tensor([entry.count for entry in self.index.shards]).cumsum(0)
        if len(self) != self.index.count or not 0 <= int(self._labels.min()) <= int(self._labels.max()) < self.num_classes:
            raise DyditError(f"{folder}: its shards do not fit its {INDEX_FILE}; make it again with dydit encode")

    def __len__(self) -> int:
        return len(self._labels)

    def check(self, config: ModelConfig, latents: LatentNorm | None = None) -> None:
        check_fits(self.name, config, self.index.shape[0], self.index.shape[1], self.num_classes, self.frames)
        mend = "encode the images with the model's own VAE, or run the same dydit encode with --latent-stats CKPT"
        check_norm(self.name, self.latents, latents, mend)

    def take(self, index: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seeds = [None] * len(index) if seed is None else seed.tolist()
        return torch.stack([self._one(i, s) for i, s in zip(index.tolist(), seeds, strict=True)]), self._labels[index]

    def prefetch(self, index: Tensor) -> None:
        """Does nothing: a row of a mapped file is in memory, or the system reads ahead."""

    def _one(self, i: int, seed: int | None) -> Tensor:
        """C S S, or of a clip F C S S, float32; the mean itself without a seed."""
        number, item = locate(self._ends, i)
        shard, generator = self._shards[number], torch.Generator()
        rows = shard.rows(item)
        if seed is not None:
            generator.manual_seed(seed if self.frames is None else derived(seed, CLIPS, i))
        if self.frames is not None:
            starts = len(rows) - self.frames + 1
            start = 0 if seed is None else int(torch.randint(starts, (), generator=generator))
            rows = rows[start : start + self.frames]
        mirror = 0 if seed is None else seed % 2
        latent = shard.read("mean", rows, mirror)  # F C S S, F of 1 for a picture
        if seed is not None:
            noise = torch.randn(latent.shape, generator=generator)
            latent = latent + shard.read("std", rows, mirror) * noise
        return self.latents.normalise(latent if self.frames is not None else latent[0])


class Shard:
    """One file of a set, open for reading single rows; `count` is its pictures or clips, and `metadata` as written."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        self._shapes = [tuple(file.get_slice(name).get_shape()) for name in ("mean", "std", "label")]
        self.count: int = self._shapes[2][0]
        self.metadata: dict[str, str] = file.metadata() or {}
        self._first = file.get_tensor("first").tolist() if "first" in file.keys() else None  # noqa: SIM118

    def check(self, count: int | None, shape: tuple[int, int, int], frames: int | None) -> None:
        """Raises `DyditError` where the tensors are not `count` pictures of `shape`, or with `frames` clips of at least so
        many; any number for None."""
        first, items = self._first, self.count if count is None else count
        if (first is None) != (frames is None):
            raise damaged(self.path, "it has no clips" if first is None else "it has clips, not pictures")
        if first is not None and frames is not None:
            least = min(map(sub, first[1:], first), default=frames)
            if first[:1] != [0] or least < frames:
                raise damaged(self.path, f"it has clips of {least} frames")
        wanted = (items if first is None else first[-1], 2, *shape)
        if self._shapes != [wanted, wanted, (items,)] or (first is not None and len(first) != items + 1):
            raise damaged(self.path, f"its tensors are {self._shapes}, not {wanted}")

    def labels(self) -> Tensor:
        return self._file.get_tensor("label").long()

    def rows(self, item: int) -> range:
        """Those of a picture, one, or of a clip, one for each frame."""
        return range(item, item + 1) if self._first is None else range(*self._first[item : item + 2])

    def read(self, name: str, rows: range, mirror: int) -> Tensor:
        """F C S S float32, F rows."""
        return self._file.get_slice(name)[rows.start : rows.stop, mirror : mirror + 1][:, 0].float()


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
    if is_lightningdit(Path(path)):
        return LightningDiTLatents(path, config)
    return LatentData(path, None if config is None else config.frames)


register(DataSource("latents", _load, takes_path=True))
