"""Samples by the ten thousand: shards that survive a kill, drawn by any number of processes, joined into one .npz.

A shard is a fixed slice of image indices and appears whole or not at all, and an image depends on its index alone: so
the same command again draws what is missing, and no image is there twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.artifacts.samples import ARRAY_FILE, ARRAY_FORMAT, RECORD_FILE, SHARDS, read_npz, rgb, write_npz
from dydit_cli.checkpoint.read import CheckpointLike, LoadOptions, read
from dydit_cli.diffusion.generate import Progress
from dydit_cli.distributed import share_work
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, check_output, sha256
from dydit_cli.provenance import made_by
from dydit_cli.sampling.sampler import ImageSampler, SamplingConfig, open_sampler, protocol

FORMAT, FORMAT_VERSION = ARRAY_FORMAT, 1

SHARD_SIZE = 500

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


def _silent(*what: Any) -> None:
    pass


@dataclass(frozen=True)
class ShardedRun:
    """The folder of a run of `images` images: samples.json (what it was asked for), shards/ and samples.npz."""

    folder: Path
    images: int
    shard_size: int

    @property
    def samples(self) -> Path:
        return self.folder / ARRAY_FILE

    @property
    def count(self) -> int:
        return -(-self.images // self.shard_size)

    def path(self, shard: int) -> Path:
        return self.folder / SHARDS / f"{shard:06d}.npz"

    def slice(self, shard: int) -> tuple[int, int]:
        """The shard's first image, and how many it has."""
        first = shard * self.shard_size
        return first, min(self.shard_size, self.images - first)

    def missing(self) -> list[int]:
        """The shards that are still to be drawn: none once they are joined."""
        return [] if self.samples.is_file() else [i for i in range(self.count) if not self.path(i).is_file()]


def sample_npz(
    checkpoint: CheckpointLike,
    out: str | Path,
    how: SamplingConfig = SamplingConfig(),
    *,
    num: int,
    shard_size: int = SHARD_SIZE,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
    on_stage: OnStage = _silent,
    on_progress: Callable[[int], None] = _silent,
) -> dict[str, Any] | None:
    """Draws what is missing of `num` images and joins them in `out`/samples.npz, as `write_npz` writes it.

    Under a launcher the processes share the shards, and on several machines the file system too. Returns the protocol
    with `drawn` (images that this run drew) and `seconds`, in the main process, and None in the others. Raises
    `DyditError` where `out` holds something else or a run with other settings (without `force`, which starts anew).
    """
    start = time.perf_counter()
    run = ShardedRun(Path(out), num, shard_size)
    place = Resumable(run.folder, RECORD_FILE, FORMAT, "samples")
    with share_work(how.device) as team:
        if not team.main:  # one display is enough
            on_stage, on_progress = _silent, _silent
        loaded = read(checkpoint, reading)
        asked = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "images": num,
            "shard_size": shard_size,
            **protocol(loaded, how),
            "checkpoint_sha256": None if loaded.file is None else sha256(loaded.file),
            "read_as": "; ".join((loaded.found, *loaded.notes)),  # of the two sets of a training checkpoint, which
            "model": loaded.config.to_dict(),
        }
        if force:
            check_output(run.folder, force)
        else:
            # the same weights may go by another name
            place.check(asked, free=("checkpoint",) if asked["checkpoint_sha256"] is not None else ())
        missing = list(range(run.count)) if force else run.missing()
        team.wait()  # all have looked before anything changes
        if team.main:
            place.begin({**asked, **made_by()}, force)
        team.wait()
        if missing:
            draw_shards(run, missing[team.index :: team.count], open_sampler(loaded, how), on_stage, on_progress)
        team.wait()
        if team.main and not run.samples.is_file():
            on_stage("join", run.count, "shards", 1)
            join(run, on_progress)
    if not team.main:
        return None
    drawn = sum(run.slice(shard)[1] for shard in missing)
    return {**asked, "drawn": drawn, "processes": team.count, "seconds": time.perf_counter() - start}


def draw_shards(
    run: ShardedRun, shards: list[int], image_sampler: ImageSampler, on_stage: OnStage, on_progress: Callable[[int], None]
) -> None:
    """Draws these shards, one file after the other."""

    def report(progress: Progress) -> None:
        on_progress(progress.batch)

    on_stage("sample", sum(run.slice(shard)[1] for shard in shards), "images", image_sampler.how.settings.steps)
    for shard in shards:
        pixels = rgb(image_sampler.pixels(image_sampler.samples(*run.slice(shard), report)))
        write_npz(run.path(shard), pixels.shape, [pixels])


def join(run: ShardedRun, on_progress: Callable[[int], None]) -> None:
    """Writes samples.npz from the shards, one in memory at a time. Raises `DyditError` for a damaged shard."""
    for leftover in [*run.folder.glob(f".{ARRAY_FILE}.*"), *(run.folder / SHARDS).glob(".*")]:
        leftover.unlink()  # what a kill left half-written
    image = read_npz(run.path(0)).shape[1:]  # S S 3

    def parts() -> Iterator[NDArray[np.uint8]]:
        for shard in range(run.count):
            pixels, wanted = read_npz(run.path(shard)), (run.slice(shard)[1], *image)
            if pixels.shape != wanted:
                raise DyditError(
                    f"{run.path(shard)}: damaged shard (its shape is {pixels.shape}, not {wanted}); "
                    "delete it and run the same command again"
                )
            yield pixels
            on_progress(1)

    write_npz(run.samples, (run.images, *image), parts())
