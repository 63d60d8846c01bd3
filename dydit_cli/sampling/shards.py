"""Samples by the ten thousand: shards that survive a kill, made by any number of processes, joined into one .npz.

A shard is a fixed slice of image indices and appears whole or not at all, and an image depends on its index alone: so
the same command again makes what is missing, a larger number of images adds to what is there, and no image is there twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dydit_cli.artifacts.samples import ARRAY_FILE, ARRAY_FORMAT, RECORD_FILE, SHARDS, read_npz, rgb, write_npz
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.distributed import share_work
from dydit_cli.errors import DyditError
from dydit_cli.files import Resumable, Shards, check_output, locked, sha256, sweep, write_json
from dydit_cli.provenance import made_by
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import ImageSampler, open_sampler, protocol

FORMAT_VERSION = 1

SHARD_SIZE = 500

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


class ShardedRun(Shards):
    """The files NNNNNN.npz of a run of images, and as NNNNNN.begun.npz what a smaller run made of its last one."""

    def begun_path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.begun{self.ending}"

    def begun(self, shard: int, batch: int) -> int:
        """How many images of `shard` exist; whole batches count, so that it ends up as in a run that was never smaller."""
        path, size = self.begun_path(shard), len(self.items(shard))
        count = min(len(read_npz(path)), size) if path.is_file() else 0
        return count if count == size else count - count % batch

    def extend(self, before: int) -> None:
        """Makes the last shard of a run of `before` images a begun one."""
        last = before // self.size
        if before % self.size and self.path(last).is_file():
            os.replace(self.path(last), self.begun_path(last))


def sample_npz(
    checkpoint: CheckpointLike,
    out: str | Path,
    config: SamplingConfig = SamplingConfig(),
    *,
    num: int,
    shard_size: int = SHARD_SIZE,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
    on_stage: OnStage = lambda *what: None,
    on_progress: Callable[[int], None] = lambda amount: None,
) -> dict[str, Any] | None:
    """Samples what is missing of `num` images and joins them in `out`/samples.npz, as `write_npz` writes it.

    Under a launcher the processes share the shards, and on several machines the file system too. Returns the protocol
    with `drawn` (images that this run sampled) and `seconds`, in the main process, and None in the others. Raises
    `DyditError` where `out` holds something else, a run with other settings or one of more images (without `force`, which
    starts anew).
    """
    start = time.perf_counter()
    folder = Path(out)
    run = ShardedRun(folder / SHARDS, num, shard_size, ".npz")
    resumable = Resumable(folder, RECORD_FILE, ARRAY_FORMAT, "samples")
    with share_work(config.device) as team, ExitStack() as stack:
        if not team.main:  # one display is enough
            on_stage, on_progress = (lambda *what: None), (lambda amount: None)
        loaded = read(checkpoint, reading)
        settings = {
            "format": ARRAY_FORMAT,
            "format_version": FORMAT_VERSION,
            "images": num,
            "shard_size": shard_size,
            **protocol(loaded, config),
            "checkpoint_sha256": None if loaded.file is None else sha256(loaded.file),
            "read_as": "; ".join((loaded.found, *loaded.notes)),  # of the two sets of a training checkpoint, which
            "model": loaded.config.to_dict(),
        }
        before = num
        if team.main:
            stack.enter_context(locked(folder))
        if force:
            check_output(folder, force)
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
            resumable.begin({**settings, **made_by()}, force)
            if before < num:  # the record last: after a kill in between, this command and the earlier one both continue
                (folder / ARRAY_FILE).unlink(missing_ok=True)
                run.extend(before)
                write_json(folder / RECORD_FILE, {**settings, **made_by()})
        team.wait()
        joined = (folder / ARRAY_FILE).is_file()
        new = {} if joined else {i: run.items(i)[run.begun(i, config.batch) :] for i in run.missing()}
        team.wait()  # all know the same shards before one appears
        own = list(new)[team.index :: team.count]
        if own:
            on_stage("sample", sum(len(new[shard]) for shard in own), "images", config.settings.for_model(loaded.config).work)
            image_sampler = open_sampler(loaded, config)
            for shard in own:
                sample_shard(run, shard, new[shard], image_sampler, on_progress)
        team.wait()
        if team.main and not joined:
            on_stage("join", run.count, "shards", 1)
            join(run, folder / ARRAY_FILE, on_progress)
    if not team.main:
        return None
    drawn = sum(map(len, new.values()))
    return {**settings, "drawn": drawn, "processes": team.count, "seconds": time.perf_counter() - start}


def sample_shard(
    run: ShardedRun, shard: int, new: range, image_sampler: ImageSampler, on_progress: Callable[[int], None]
) -> None:
    """Writes one shard: what was begun of it, and the images `new`."""
    begun = len(run.items(shard)) - len(new)
    parts = [read_npz(run.begun_path(shard))[:begun]] if begun else []
    if new:
        parts.append(rgb(image_sampler.pixels(image_sampler.samples(new.start, len(new), on_progress))))
    pixels = np.concatenate(parts)
    write_npz(run.path(shard), pixels.shape, [pixels])
    run.begun_path(shard).unlink(missing_ok=True)


def join(run: ShardedRun, path: Path, on_progress: Callable[[int], None]) -> None:
    """Writes the file `path` from the shards, one in memory at a time. Raises `DyditError` for a damaged shard."""
    for folder in (path.parent, run.folder):
        sweep(folder)
    for leftover in run.folder.glob("*.begun.*"):
        leftover.unlink()  # of fewer images
    image = read_npz(run.path(0)).shape[1:]  # S S 3, or F S S 3

    def parts() -> Iterator[NDArray[np.uint8]]:
        for shard in range(run.count):
            pixels, shape = read_npz(run.path(shard)), (len(run.items(shard)), *image)
            if pixels.shape != shape:
                raise DyditError(
                    f"{run.path(shard)}: damaged shard (its shape is {pixels.shape}, not {shape}); "
                    "delete it and run the same command again"
                )
            yield pixels
            on_progress(1)

    write_npz(path, (run.total, *image), parts())
