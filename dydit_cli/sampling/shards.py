"""Samples by the ten thousand: shards that survive a kill, made by any number of processes, joined into one .npz.

A shard is a fixed slice of image indices and appears whole or not at all, and an image depends on its index alone: so
the same command again makes what is missing, a larger number of images adds to what is there, and no image is there twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.artifacts.samples import ARRAY_FILE, RECORD_FILE, read_npz, rgb, write_npz
from dydit_cli.checkpoint.read import CheckpointLike, LoadOptions, read
from dydit_cli.diffusion.generate import Progress
from dydit_cli.distributed import share_work
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, check_output, sha256, write_json
from dydit_cli.sampling.sampler import ImageSampler, SamplingConfig, open_sampler, protocol

FORMAT, FORMAT_VERSION = "dydit-npz", 1

SHARDS = "shards"

SHARD_SIZE = 500

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


def _silent(*what: Any) -> None:
    pass


@dataclass(frozen=True)
class Missing:
    """A shard that is still to be made: `count` images from image `first` on, of which the first `kept` exist."""

    shard: int
    first: int
    count: int
    kept: int

    @property
    def new(self) -> int:
        """How many images are to be sampled."""
        return self.count - self.kept


@dataclass(frozen=True)
class ShardedRun:
    """The folder of a run of `images` images: samples.json (its settings), shards/ and samples.npz.

    In shards/ are NNNNNN.npz, and NNNNNN-COUNT.npz with the first images of a shard that a smaller run ended in.
    """

    folder: Path
    images: int
    shard_size: int

    @property
    def samples(self) -> Path:
        return self.folder / ARRAY_FILE

    @property
    def count(self) -> int:
        return -(-self.images // self.shard_size)

    def path(self, shard: int, beginning: int | None = None) -> Path:
        end = "" if beginning is None else f"-{beginning}"
        return self.folder / SHARDS / f"{shard:06d}{end}.npz"

    def size(self, shard: int) -> int:
        return min(self.shard_size, self.images - shard * self.shard_size)

    def missing(self, batch: int) -> list[Missing]:
        """The shards that are still to be made: none once they are joined.

        What is kept of a beginning are whole batches, so that the others hold the images that one run would give them.
        """
        if self.samples.is_file():
            return []
        shards = [shard for shard in range(self.count) if not self.path(shard).is_file()]
        return [Missing(i, i * self.shard_size, self.size(i), self._kept(i, batch)) for i in shards]

    def beginnings(self, shard: int) -> dict[int, Path]:
        """The files with the first images of `shard`, by how many they hold."""
        return {int(path.stem.partition("-")[2]): path for path in self.path(shard).parent.glob(f"{shard:06d}-*.npz")}

    def _kept(self, shard: int, batch: int) -> int:
        most = min(max(self.beginnings(shard), default=0), self.size(shard))
        return most if most == self.size(shard) else most - most % batch

    def extend(self, settings: dict[str, Any], before: int) -> None:
        """Makes a run of `before` images the beginning of this one. After a kill in between, the same command again does
        what is left, whichever of the two it is of."""
        self.samples.unlink(missing_ok=True)
        last, count = divmod(before, self.shard_size)
        if count and self.path(last).is_file():
            os.replace(self.path(last), self.path(last, count))
        write_json(self.folder / RECORD_FILE, settings)


def sample_npz(
    checkpoint: CheckpointLike,
    out: str | Path,
    config: SamplingConfig = SamplingConfig(),
    *,
    num: int,
    shard_size: int = SHARD_SIZE,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
    on_stage: OnStage = _silent,
    on_progress: Callable[[int], None] = _silent,
) -> dict[str, Any] | None:
    """Samples what is missing of `num` images and joins them in `out`/samples.npz, as `write_npz` writes it.

    Under a launcher the processes share the shards, and on several machines the file system too. Returns the protocol
    with `drawn` (images that this run sampled) and `seconds`, in the main process, and None in the others. Raises
    `DyditError` where `out` holds something else, a run with other settings or one of more images (without `force`, which
    starts anew).
    """
    start = time.perf_counter()
    run = ShardedRun(Path(out), num, shard_size)
    resumable = Resumable(run.folder, RECORD_FILE, FORMAT, "samples")
    with share_work(config.device) as team:
        if not team.main:  # one display is enough
            on_stage, on_progress = _silent, _silent
        loaded = read(checkpoint, reading)
        settings = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "images": num,
            "shard_size": shard_size,
            **protocol(loaded, config),
            "checkpoint_sha256": None if loaded.file is None else sha256(loaded.file),
            "read_as": "; ".join((loaded.found, *loaded.notes)),  # of the two sets of a training checkpoint, which
            "model": loaded.config.to_dict(),
        }
        before = num
        if force:
            check_output(run.folder, force)
        else:
            # the same weights may go by another name
            same = {"checkpoint"} if settings["checkpoint_sha256"] is not None else set()
            recorded = resumable.check(settings, free={"images", *same}).get("images")
            before = recorded if isinstance(recorded, int) else num
        if before > num:
            raise DyditError(
                f"{out}: holds samples with images {before}, and now it is {num}; the first {num} of those are the same ones: "
                "take them, choose another --out, or start anew with --force"
            )
        team.wait()  # all have looked before anything changes
        if team.main:
            resumable.begin(settings, force)
            if before < num:
                run.extend(settings, before)
        team.wait()
        missing = run.missing(config.batch)
        team.wait()  # all know the same shards before one appears
        own = missing[team.index :: team.count]
        if own:
            on_stage("sample", sum(part.new for part in own), "images", config.settings.steps)
            image_sampler = open_sampler(loaded, config)
            for part in own:
                sample_shard(run, part, image_sampler, on_progress)
        team.wait()
        if team.main and not run.samples.is_file():
            on_stage("join", run.count, "shards", 1)
            join(run, on_progress)
    if not team.main:
        return None
    drawn = sum(part.new for part in missing)
    return {**settings, "drawn": drawn, "processes": team.count, "seconds": time.perf_counter() - start}


def sample_shard(run: ShardedRun, part: Missing, image_sampler: ImageSampler, on_progress: Callable[[int], None]) -> None:
    """Writes one shard, with what is kept of its beginning, and removes that."""

    def report(progress: Progress) -> None:
        on_progress(progress.batch)

    beginnings = run.beginnings(part.shard)
    parts = [read_npz(beginnings[max(beginnings)])[: part.kept]] if part.kept else []
    if part.new:
        samples = image_sampler.samples(part.first + part.kept, part.new, report)
        parts.append(rgb(image_sampler.pixels(samples)))
    pixels = np.concatenate(parts)
    write_npz(run.path(part.shard), pixels.shape, [pixels])
    for path in beginnings.values():
        path.unlink()


def join(run: ShardedRun, on_progress: Callable[[int], None]) -> None:
    """Writes samples.npz from the shards, one in memory at a time. Raises `DyditError` for a damaged shard."""
    shards = run.folder / SHARDS
    for leftover in [*run.folder.glob(f".{ARRAY_FILE}.*"), *shards.glob(".*"), *shards.glob("*-*.npz")]:
        leftover.unlink()  # what a kill left
    image = read_npz(run.path(0)).shape[1:]  # S S 3

    def parts() -> Iterator[NDArray[np.uint8]]:
        for shard in range(run.count):
            pixels, shape = read_npz(run.path(shard)), (run.size(shard), *image)
            if pixels.shape != shape:
                raise DyditError(
                    f"{run.path(shard)}: damaged shard (its shape is {pixels.shape}, not {shape}); "
                    "delete it and run the same command again"
                )
            yield pixels
            on_progress(1)

    write_npz(run.samples, (run.images, *image), parts())
