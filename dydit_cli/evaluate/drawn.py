"""Images that a checkpoint draws while they are looked at: nothing is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.lineage import sha256
from dydit_cli.devices import pick_device, world_size
from dydit_cli.diffusion.generate import Progress
from dydit_cli.errors import DyditError
from dydit_cli.evaluate.features import Pixels
from dydit_cli.evaluate.fit import Fitter
from dydit_cli.evaluate.images import Labels, OnWork
from dydit_cli.sampling.painter import Drawing, open_painter, protocol


class DrawnImages:
    """`count` images of a checkpoint: the same ones as `dydit sample` writes for the same settings."""

    def __init__(self, loaded: Checkpoint, how: Drawing, count: int) -> None:
        if world_size() > 1:
            raise DyditError(
                f"WORLD_SIZE={world_size()}: several processes share the sampling only in dydit sample --npz; "
                "sample so, and evaluate its folder"
            )
        self.name, self.count, self.per = str(loaded.path), count, how.settings.steps
        self._painter = open_painter(loaded, how)
        self.labels: Labels | None = self._painter.labels(0, count).numpy()
        self.record: dict[str, Any] = {
            "images": count,
            **protocol(loaded, how),
            "checkpoint_sha256": None if loaded.file is None else sha256(loaded.file),
            "device": pick_device(how.device).type,
        }

    def batches(self, size: int, fitter: Fitter, on_work: OnWork) -> Iterator[Pixels]:
        """As many at once as are drawn at once, whatever `size` says."""
        batch = self._painter.how.batch

        def report(progress: Progress) -> None:
            on_work(progress.batch)

        for first in range(0, self.count, batch):
            samples = self._painter.samples(first, min(batch, self.count - first), report)
            yield fitter(self._painter.pixels(samples))

    def sha256(self) -> str:
        """Of what the images depend on: there is no file of them."""
        return hashlib.sha256(repr(self.record).encode()).hexdigest()
