"""Samples as pictures: single PNGs and a grid."""

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
from dydit_cli.pixels import make_grid, picture, save_png
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

    Raises `DyditError` for an existing `out` (without `force`), an unknown class, a latent model without a VAE, or
    several processes.
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
        pictures = [picture(image) for image in image_sampler.pixels(samples)]
        for i, (image, label) in enumerate(zip(pictures, image_sampler.labels(0, num).tolist(), strict=True)):
            save_png(image, temporary / picture_name(i, label))
        save_png(make_grid(pictures), temporary / GRID_FILE)
        write_json(temporary / RECORD_FILE, summary)
    return summary
