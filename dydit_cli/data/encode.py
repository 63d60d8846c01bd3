"""`dydit encode`: a VAE's latents of a folder of pictures, in shards that survive a kill, made by any number of processes.

A shard is a fixed slice of the listed pictures and appears whole or not at all: the same command again makes what is
missing, and no picture is there twice. What is kept is the Gaussian's mean and std, from which training samples anew
each time, of the picture and of its mirror image: a latent cannot be mirrored later.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from dydit_cli.data.dataset import Skipped
from dydit_cli.data.imagefolder import THREADS, Listing, list_pictures, none_readable, read_picture, reason, to_model
from dydit_cli.data.latents import (
    FORMAT,
    FORMAT_VERSION,
    INDEX_FILE,
    SETTINGS_FILE,
    SHARDS,
    LatentIndex,
    ShardEntry,
    open_shard,
    read_index,
)
from dydit_cli.data.vae import Encoder, load_encoder
from dydit_cli.devices import pick_device
from dydit_cli.distributed import share_work
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, atomic_file, check_output, write_json
from dydit_cli.provenance import made_by

SHARD_SIZE = 5000

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

OnStage = Callable[[str, int, str], None]  # what, how many, of which unit


def _silent(*what: Any) -> None:
    pass


@dataclass(frozen=True)
class Encoding:
    """`index` is index.json as it is now; `encoded` how many pictures this run went through, unreadable ones too."""

    index: LatentIndex
    encoded: int
    processes: int
    seconds: float


@dataclass(frozen=True)
class _Run:
    folder: Path
    listing: Listing
    shard_size: int

    @property
    def count(self) -> int:
        return -(-len(self.listing.files) // self.shard_size)

    def path(self, shard: int) -> Path:
        return self.folder / SHARDS / f"{shard:06d}.safetensors"

    def slice(self, shard: int) -> range:
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, len(self.listing.files)))

    def missing(self) -> list[int]:
        return [shard for shard in range(self.count) if not self.path(shard).is_file()]


def encode(
    images: str | Path,
    out: str | Path,
    vae: str | Path,
    *,
    size: int = 256,
    batch: int = 8,
    shard_size: int = SHARD_SIZE,
    dtype: str = "fp32",
    device: str = "auto",
    force: bool = False,
    on_stage: OnStage = _silent,
    on_progress: Callable[[int], None] = _silent,
) -> Encoding | None:
    """Writes what is missing in `out` of the latents of `images`, a folder of class folders, cropped to `size` pixels.

    Under a launcher the processes share the shards. `batch` pictures go through the VAE at once, each with its mirror
    image; latents are kept in `dtype`, fp32 or fp16. The main process gets the result, the others None. Raises
    `DyditError` for a folder without a readable image, a size that the VAE cannot halve, or an `out` that holds something
    else or was begun with other settings (without `force`, which starts anew).
    """
    if dtype not in DTYPES:
        raise DyditError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    start = time.perf_counter()
    with share_work(device) as team:
        if not team.main:  # one display is enough
            on_stage, on_progress = _silent, _silent
        run = _Run(Path(out), list_pictures(images), shard_size)
        if run.listing.root.resolve() in run.folder.resolve().parents:
            raise DyditError(f"{out}: lies in the folder of the images, where it would be a class; choose another OUT")
        place = Resumable(run.folder, SETTINGS_FILE, FORMAT, "latents", "OUT")
        encoder = load_encoder(vae, pick_device(device))
        if size < 1 or size % encoder.factor:
            raise DyditError(f"size {size}: {vae} makes a latent pixel of {encoder.factor}; give a multiple of that")
        shape = (encoder.channels, size // encoder.factor, size // encoder.factor)
        asked = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "images": str(images),
            "files": len(run.listing.files),
            "files_sha256": hashlib.sha256("\n".join(run.listing.files).encode()).hexdigest(),
            "classes": list(run.listing.classes),
            "size": size,
            "shape": list(shape),
            "dtype": dtype,
            "shard_size": shard_size,
            "vae": str(vae),
            "vae_sha256": encoder.sha256,
            "scaling_factor": encoder.scaling_factor,
        }
        if force:
            check_output(run.folder, force)
        else:
            place.check(asked, free=("images", "vae"))  # the same ones may lie elsewhere now
        missing = list(range(run.count)) if force else run.missing()
        team.wait()  # all have looked before anything changes
        if team.main:
            place.begin({**asked, **made_by()}, force)
        team.wait()
        mine = missing[team.index :: team.count]
        if mine:
            on_stage("encode", sum(len(run.slice(shard)) for shard in mine), "images")
        for shard in mine:
            _write_shard(run, shard, encoder, shape, batch, DTYPES[dtype], on_progress)
        team.wait()
        if team.main and (missing or not (run.folder / INDEX_FILE).is_file()):
            _write_index(run, asked, shape)
    if not team.main:
        return None
    encoded = sum(len(run.slice(shard)) for shard in missing)
    return Encoding(read_index(run.folder), encoded, team.count, time.perf_counter() - start)


def _write_shard(
    run: _Run,
    shard: int,
    encoder: Encoder,
    shape: tuple[int, int, int],
    batch: int,
    dtype: torch.dtype,
    on_progress: Callable[[int], None],
) -> None:
    """One file: mean and std, M 2 C S S, label, M, and in its metadata the pictures of its slice that were skipped."""
    wanted, done, skipped = run.slice(shard), 0, list[Skipped]()
    labels: list[int] = []
    mean = torch.empty(len(wanted), 2, *shape, dtype=dtype)
    std = torch.empty_like(mean)
    for chunk in _read_ahead(run.listing, wanted, shape[1] * encoder.factor, batch):
        readable = [(i, pixels) for i, pixels in chunk if not isinstance(pixels, Skipped)]
        skipped += [pixels for _, pixels in chunk if isinstance(pixels, Skipped)]
        if readable:
            pictures = to_model(np.stack([pixels for _, pixels in readable]))
            both = encoder(torch.cat([pictures, pictures.flip(-1)]))
            for tensor, values in zip((mean, std), both, strict=True):
                tensor[done : done + len(readable)] = _by_picture(values)
            done += len(readable)
            labels += [run.listing.labels[i] for i, _ in readable]
        on_progress(len(chunk))
    tensors = {
        "mean": mean[:done].contiguous(),
        "std": std[:done].contiguous(),
        "label": torch.tensor(labels, dtype=torch.int32),
    }
    with atomic_file(run.path(shard)) as temporary:
        save_file(tensors, temporary, {"skipped": json.dumps([[one.file, one.reason] for one in skipped])})


def _by_picture(values: Tensor) -> Tensor:
    """2B C S S, all mirror images after all pictures -> B 2 C S S."""
    return torch.stack(values.chunk(2), dim=1)


def _read_ahead(
    listing: Listing, wanted: range, size: int, batch: int
) -> Iterator[list[tuple[int, NDArray[np.uint8] | Skipped]]]:
    """Chunks of `batch` pictures, S S 3, with their numbers; threads read the next chunk while one is worked on."""

    def read(i: int) -> NDArray[np.uint8] | Skipped:
        try:
            return read_picture(listing.path(i), size)
        except Exception as error:  # damaged files make Pillow's readers raise nearly anything
            return Skipped(listing.files[i], reason(error))

    with ThreadPoolExecutor(THREADS) as pool:
        chunks = [wanted[first : first + batch] for first in range(0, len(wanted), batch)]
        ahead: list[Future[NDArray[np.uint8] | Skipped]] = []
        for n, chunk in enumerate(chunks):
            coming = ahead or [pool.submit(read, i) for i in chunk]
            ahead = [pool.submit(read, i) for i in chunks[n + 1]] if n + 1 < len(chunks) else []
            yield [(i, future.result()) for i, future in zip(chunk, coming, strict=True)]


def _write_index(run: _Run, asked: dict[str, Any], shape: tuple[int, int, int]) -> None:
    """index.json from what the shards themselves say. Raises `DyditError` for a damaged shard, or nothing readable."""
    for leftover in [*run.folder.glob(f".{INDEX_FILE}.*"), *(run.folder / SHARDS).glob(".*")]:
        leftover.unlink()  # what a kill left half-written
    entries, skipped = [], list[tuple[str, str]]()
    for number in range(run.count):
        shard = open_shard(run.path(number))
        shard.check(None, shape)
        bad = [(str(file), str(why)) for file, why in json.loads(shard.metadata.get("skipped", "[]"))]
        if shard.shape[0] + len(bad) != len(run.slice(number)):
            raise DyditError(f"{run.path(number)}: damaged shard (too few pictures); delete it and run the same command again")
        entries.append(ShardEntry(file=run.path(number).name, count=shard.shape[0]))
        skipped += bad
    if len(skipped) == len(run.listing.files):
        raise none_readable(run.listing.root, [Skipped(file, why) for file, why in skipped])
    known = {name: asked[name] for name in ("format", "format_version", "classes", "shape", "size", "dtype")}
    vae = {name: asked[name] for name in ("scaling_factor", "vae", "vae_sha256")}
    count = sum(entry.count for entry in entries)
    index = LatentIndex(**known, **vae, count=count, skipped=tuple(skipped), shards=tuple(entries))
    write_json(run.folder / INDEX_FILE, index.model_dump())
