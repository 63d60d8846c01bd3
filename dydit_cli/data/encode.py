"""`dydit encode`: a VAE's latents of a folder of pictures, in shards that survive a kill, made by any number of processes.

With a least number of frames it is clips, folders of pictures, and a shard has whole ones.

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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dydit_cli.checkpoint.latent_stats import read_norm
from dydit_cli.checkpoint.stream import write_safetensors
from dydit_cli.data.dataset import Skipped, locate
from dydit_cli.data.imagefolder import (
    THREADS,
    Listing,
    list_clips,
    list_pictures,
    none_readable,
    read_picture,
    reason,
    to_model,
)
from dydit_cli.data.latents import (
    FORMAT,
    FORMAT_VERSION,
    INDEX_FILE,
    SETTINGS_FILE,
    SHARDS,
    STATISTICS_VERSION,
    LatentIndex,
    ShardEntry,
    open_shard,
    read_index,
)
from dydit_cli.data.measure import measure
from dydit_cli.data.vae import Encoder, load_encoder
from dydit_cli.devices import pick_device
from dydit_cli.distributed import share_work
from dydit_cli.errors import DyditError, naming
from dydit_cli.files import Resumable, Shards, atomic_file, check_output, locked, sweep, write_json
from dydit_cli.model.latent_norm import LatentNorm
from dydit_cli.provenance import made_by

SHARD_SIZE, SHARD_CLIPS = 5000, 20

VAES, MEASURE = "vae", "measure"  # what `latent_stats` may be beside a file

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

OnStage = Callable[[str, int, str], None]  # what, how many, of which unit


@dataclass(frozen=True)
class Encoding:
    """`index` is index.json as it is now; `encoded` how many pictures this run encoded, without the unreadable ones."""

    index: LatentIndex
    encoded: int
    processes: int
    seconds: float


def encode(
    images: str | Path,
    out: str | Path,
    vae: str | Path,
    *,
    size: int = 256,
    frames: int | None = None,
    batch: int = 8,
    shard_size: int | None = None,
    dtype: str = "fp32",
    latent_stats: str = VAES,
    device: str = "auto",
    force: bool = False,
    on_stage: OnStage = lambda *what: None,
    on_progress: Callable[[int], None] = lambda amount: None,
) -> Encoding | None:
    """Writes what is missing in `out` of the latents of `images`, a folder of class folders, cropped to `size` pixels.

    With `frames` the class folders hold clips, folders of frames, and those of fewer frames are left out. Under a launcher
    the processes share the shards. `batch` pictures go through the VAE at once, each with its mirror image; latents are kept
    in `dtype`, fp32 or fp16. `latent_stats` is how training will normalise them: as the VAE's configuration says, by the mean
    and std of these (`measure`), or as `latent_stats.read_norm` reads it; another one later changes the index alone. The main
    process gets the result, the others None. Raises `DyditError` for a folder without a readable image, a size that the VAE
    cannot halve, a VAE that does not say how its latents are normalised, or an `out` that holds something else or was begun
    with other settings (without `force`, which starts anew).
    """
    if dtype not in DTYPES:
        raise DyditError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    start = time.perf_counter()
    with share_work(device) as team, ExitStack() as stack:
        if not team.main:  # one display is enough
            on_stage, on_progress = (lambda *what: None), (lambda amount: None)
        folder, short = Path(out), list[Skipped]()
        if frames is None:
            listing = list_pictures(images)
            items: list[tuple[str, ...]] = [(file,) for file in listing.files]
        else:
            listing, items, short = list_clips(images, frames)
        shard_size = shard_size or (SHARD_SIZE if frames is None else SHARD_CLIPS)
        shards = Shards(folder / SHARDS, len(items), shard_size, ".safetensors")
        if listing.root.resolve() in folder.resolve().parents:
            raise DyditError(f"{out}: lies in the folder of the images, where it would be a class; choose another OUT")
        resumable = Resumable(folder, SETTINGS_FILE, FORMAT, "latents", "OUT")
        encoder = load_encoder(vae, pick_device(device))
        if size < 1 or size % encoder.factor:
            raise DyditError(f"size {size}: {vae} makes a latent pixel of {encoder.factor}; give a multiple of that")
        norm = _asked(latent_stats, encoder)
        shape = (encoder.channels, size // encoder.factor, size // encoder.factor)
        settings = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "images": str(images),
            "files": sum(map(len, items)),
            "files_sha256": hashlib.sha256("\n".join(file for item in items for file in item).encode()).hexdigest(),
            "classes": list(listing.classes),
            "size": size,
            "shape": list(shape),
            "dtype": dtype,
            "shard_size": shard_size,
            "vae": str(vae),
            "vae_sha256": encoder.sha256,
            "scaling_factor": encoder.vae.norm.factor if encoder.vae.norm else None,
            **({} if frames is None else {"frames": frames}),
        }
        if team.main:
            stack.enter_context(locked(out))
        if force:
            check_output(folder, force)
        else:
            resumable.check(settings, free=("images", "vae"))  # the same ones may lie elsewhere now
        missing = list(range(shards.count)) if force else shards.missing()
        team.wait()  # all have looked before anything changes
        if team.main:
            resumable.begin({**settings, **made_by()}, force)
        team.wait()
        own = missing[team.index :: team.count]
        if own:
            on_stage("encode", sum(len(items[i]) for shard in own for i in shards.items(shard)), "images")
        for shard in own:
            _write_shard(listing, items, shards, shard, encoder, shape, batch, DTYPES[dtype], frames, on_progress)
        team.wait()
        if team.main and (missing or not (folder / INDEX_FILE).is_file() or read_index(folder).norm != norm):
            _write_index(folder, listing, shards, settings, shape, norm, short)
    if not team.main:
        return None
    index = read_index(folder)
    encoded = sum(index.shards[shard].count for shard in missing)
    return Encoding(index, encoded, team.count, time.perf_counter() - start)


def _asked(latent_stats: str, encoder: Encoder) -> LatentNorm | None:
    """The normalisation that `latent_stats` names, None where it is still to be measured."""
    if latent_stats == MEASURE:
        return None
    if latent_stats == VAES:
        if encoder.vae.norm is None:
            raise DyditError(
                f"{encoder.vae.path}: its configuration does not say how its latents are normalised; measure it with "
                "--latent-stats measure, or give a file of it"
            )
        return encoder.vae.norm
    with naming(latent_stats):
        return read_norm(latent_stats).check(encoder.channels)


def _write_shard(
    listing: Listing,
    items: list[tuple[str, ...]],
    shards: Shards,
    shard: int,
    encoder: Encoder,
    shape: tuple[int, int, int],
    batch: int,
    dtype: torch.dtype,
    frames: int | None,
    on_progress: Callable[[int], None],
) -> None:
    """One file: mean and std, R 2 C S S, label, M, of clips `first`, M + 1, and in its metadata what of its slice was skipped:
    pictures, and clips with a frame that cannot be read."""
    indices = shards.items(shard)
    rows = [(i, file) for i in indices for file in items[i]]
    owners: list[int] = []  # of each row
    skipped: dict[int, Skipped] = {}
    mean = torch.empty(len(rows), 2, *shape, dtype=dtype)
    std = torch.empty_like(mean)
    for chunk in _read_ahead(listing, rows, shape[1] * encoder.factor, batch):
        readable = [(i, pixels) for i, pixels in chunk if not isinstance(pixels, Skipped)]
        for i, pixels in chunk:
            if isinstance(pixels, Skipped):
                skipped.setdefault(i, pixels)
        if readable:
            pictures = to_model(np.stack([pixels for _, pixels in readable]))
            both = encoder(torch.cat([pictures, pictures.flip(-1)]))
            for tensor, values in zip((mean, std), both, strict=True):
                # 2B C S S -> B 2 C S S
                tensor[len(owners) : len(owners) + len(readable)] = torch.stack(values.chunk(2), dim=1)
            owners += [i for i, _ in readable]
        on_progress(len(chunk))
    whole = [row for row, i in enumerate(owners) if i not in skipped]
    mean, std = (t[: len(owners)] if len(whole) == len(owners) else t[whole] for t in (mean, std))
    kept = [i for i in indices if i not in skipped]
    tensors = {
        "mean": mean.contiguous(),
        "std": std.contiguous(),
        "label": torch.tensor([listing.labels[i] for i in kept], dtype=torch.int32),
    }
    if frames is not None:
        tensors["first"] = torch.tensor([0, *(len(items[i]) for i in kept)]).cumsum(0)
    with atomic_file(shards.path(shard)) as temporary:
        faults = [[one.file, one.reason] for _, one in sorted(skipped.items())]
        write_safetensors(temporary, tensors, {"skipped": json.dumps(faults)})


def _read_ahead(
    listing: Listing, rows: list[tuple[int, str]], size: int, batch: int
) -> Iterator[list[tuple[int, NDArray[np.uint8] | Skipped]]]:
    """Chunks of `batch` pictures, S S 3, with the indices of their items; threads read the next chunk while one is in use."""

    def read(file: str) -> NDArray[np.uint8] | Skipped:
        try:
            return read_picture(listing.root / file, size)
        except Exception as error:  # damaged files make Pillow's readers raise nearly anything
            return Skipped(file, reason(error))

    with ThreadPoolExecutor(THREADS) as pool:
        chunks = [rows[first : first + batch] for first in range(0, len(rows), batch)]
        ahead: list[Future[NDArray[np.uint8] | Skipped]] = []
        for n, chunk in enumerate(chunks):
            futures = ahead or [pool.submit(read, file) for _, file in chunk]
            ahead = [pool.submit(read, file) for _, file in chunks[n + 1]] if n + 1 < len(chunks) else []
            yield [(i, future.result()) for (i, _), future in zip(chunk, futures, strict=True)]


def _write_index(
    folder: Path,
    listing: Listing,
    shards: Shards,
    settings: dict[str, Any],
    shape: tuple[int, int, int],
    norm: LatentNorm | None,
    short: list[Skipped],
) -> None:
    """index.json from the shards' own headers, and the clips that are too `short`; without a `norm` it is measured.

    Raises `DyditError` for a damaged shard, or nothing readable.
    """
    for place in (folder, shards.folder):
        sweep(place)
    opened, entries, skipped = [], [], [(one.file, one.reason) for one in short]
    for number in range(shards.count):
        shard = open_shard(shards.path(number))
        shard.check(None, shape, settings.get("frames"))
        bad = [(str(file), str(why)) for file, why in json.loads(shard.metadata.get("skipped", "[]"))]
        if shard.count + len(bad) != len(shards.items(number)):
            raise DyditError(
                f"{shards.path(number)}: damaged shard (too few pictures); delete it and run the same command again"
            )
        opened.append(shard)
        entries.append(ShardEntry(file=shards.path(number).name, count=shard.count))
        skipped += bad
    if len(skipped) - len(short) == len(listing.files):
        raise none_readable(listing.root, [Skipped(file, why) for file, why in skipped])
    known = {name: settings[name] for name in LatentIndex.model_fields if name in settings}
    count = sum(entry.count for entry in entries)
    if norm is None:
        with naming(folder):
            ends = torch.tensor([entry.count for entry in entries]).cumsum(0)

            def mean_of(i: int) -> Tensor:
                number, item = locate(ends, i)
                return opened[number].read("mean", opened[number].rows(item), 0)  # F C S S, F of 1 for a picture

            norm = measure(mean_of, count)
    known |= norm.to_dict() | ({"format_version": STATISTICS_VERSION} if norm.statistics else {})
    index = LatentIndex(**known, count=count, skipped=tuple(skipped), shards=tuple(entries))
    write_json(folder / INDEX_FILE, index.model_dump(exclude_none=True))
