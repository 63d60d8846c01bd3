"""Samples as pictures: single PNGs and a grid; of videos the frames side by side, and a GIF of each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dydit_cli.artifacts.samples import GRID_FILE, RECORD_FILE, picture_name
from dydit_cli.checkpoint.options import LoadOptions
from dydit_cli.checkpoint.read import CheckpointLike, read
from dydit_cli.devices import world_size
from dydit_cli.errors import DyditError
from dydit_cli.files import atomic_folder, check_output, write_json
from dydit_cli.pixels import make_grid, picture, save_gif, save_png
from dydit_cli.provenance import made_by
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import OnWork, open_sampler, record_of


def sample_images(
    checkpoint: CheckpointLike,
    out: str | Path,
    config: SamplingConfig = SamplingConfig(),
    *,
    num: int = 64,
    reading: LoadOptions = LoadOptions(),
    force: bool = False,
    on_work: OnWork = lambda images: None,
) -> dict[str, Any]:
    """Samples `num` images into the folder `out`: grid.png, NNNNN-classK.png and samples.json, whose content is returned.

    A video's picture is the row of its frames; NNNNN-classK.gif beside it moves. Raises `DyditError` for an existing `out`
    (without `force`), an unknown class, a latent model without a VAE, or several processes.
    """
    out = check_output(out, force)
    if world_size() > 1:
        raise DyditError(f"WORLD_SIZE={world_size()}: several processes can share a run only with --npz; add it")
    loaded = read(checkpoint, reading)
    image_sampler = open_sampler(loaded, config)
    start = time.perf_counter()
    samples = image_sampler.samples(0, num, on_work)
    seconds = time.perf_counter() - start
    summary = {**record_of(loaded, config, num), "seconds": seconds, "seconds_per_image": seconds / num, **made_by()}
    with atomic_folder(out) as temporary:
        pixels, video = image_sampler.pixels(samples), loaded.config.frames is not None
        names = [temporary / picture_name(i, label) for i, label in enumerate(image_sampler.labels(0, num).tolist())]
        if video:
            clips = [[picture(frame) for frame in frames] for frames in pixels]
            for frames, name in zip(clips, names, strict=True):
                save_gif(frames, name.with_suffix(".gif"))
            pictures = [make_grid(frames, len(frames)) for frames in clips]
        else:
            pictures = [picture(image) for image in pixels]
        for image, name in zip(pictures, names, strict=True):
            save_png(image, name)
        save_png(make_grid(pictures, 1 if video else None), temporary / GRID_FILE)
        write_json(temporary / RECORD_FILE, summary)
    return summary
