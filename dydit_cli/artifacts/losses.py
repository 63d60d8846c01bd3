"""The diffusion loss at every timestep, and by patch at some: what figure 1 of the DyDiT paper is drawn from.

Legend: K models, T timesteps, M images, A timesteps with maps, R images with maps, S patches and P pixels a side, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dydit_cli import marks
from dydit_cli.artifacts.base import Folder
from dydit_cli.diffusion.timeline import Timeline
from dydit_cli.files import atomic_folder, write_json

TABLE_FILE, ARRAYS_FILE = "losses.csv", "losses.npz"

ARRAYS = ("timesteps", "mse", "patch_timesteps", "patches", "images", "labels")


@dataclass(frozen=True)
class Losses(Folder):
    """Mean squared errors of what is predicted, noise as a rule; nothing of the variance's term is in them.

    `mse` is K T M at `timesteps` (T, ascending). `patches` is A R S S, the last model's means over several noises and
    the pixels of a patch, at `patch_timesteps` (A, ascending), for `images` (R C P P) of the classes `labels` (R).
    `summary` is losses.json.
    """

    kind = "losses"
    name = "losses"
    made_by = "dydit losses SMALL LARGE --out DIR"
    mark = marks.LOSSES
    files = (mark, TABLE_FILE, ARRAYS_FILE)
    format = "dydit-losses"

    summary: dict[str, Any]
    timesteps: NDArray[Any]
    mse: NDArray[np.float32]
    patch_timesteps: NDArray[Any]
    patches: NDArray[np.float32]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def names(self) -> list[str]:
        """The models' short names, in the order in which they were given."""
        return [str(model["name"]) for model in self.summary["models"]]

    @property
    def timeline(self) -> Timeline:
        """The scale of the models' timesteps."""
        return Timeline.of(self.summary.get("timeline"))

    @property
    def target(self) -> str:
        """What the models predict, whose error this is."""
        return str(self.summary.get("target", "noise"))

    @property
    def phases(self) -> pd.DataFrame:
        """One row a model, one column a phase of the schedule, the noisiest first: the loss's mean over timesteps and images,
        NaN where there is no timestep."""
        phase = self.timeline.phase_of(self.timesteps)
        names = self.timeline.phases()
        within = [self.mse[:, phase == i] for i in range(len(names))]  # K some M each
        columns = [part.mean(axis=(1, 2), dtype=np.float64) if part.size else np.full(len(self.mse), np.nan) for part in within]
        return pd.DataFrame(dict(zip(names, columns, strict=True)), index=self.names)

    @property
    def table(self) -> pd.DataFrame:
        """One row a model and timestep: the loss's mean over images and the standard error of that mean."""
        frames = [
            pd.DataFrame({"model": name, "timestep": self.timesteps, "mse": mean, "mse_standard_error": error})
            for name, (mean, error) in zip(self.names, map(mean_and_error, self.mse), strict=True)
        ]
        return pd.concat(frames, ignore_index=True)

    def excess(self, model: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(T,) means over images of `model`'s loss less the last model's, and their standard errors: all saw the same
        noise, so the errors are those of the pairs."""
        return mean_and_error(self.mse[model].astype(np.float64) - self.mse[-1])

    def write(self, folder: str | Path) -> None:
        """Writes losses.json, losses.csv and losses.npz at once."""
        with atomic_folder(folder) as temporary:
            self.table.to_csv(temporary / TABLE_FILE, index=False)
            np.savez_compressed(temporary / ARRAYS_FILE, **{name: getattr(self, name) for name in ARRAYS})
            write_json(temporary / self.mark, {**self.header(), **self.summary})

    @classmethod
    def read(cls, path: str | Path) -> Losses:
        folder = Path(path)
        summary = cls.read_summary(folder)
        with cls.reading(folder), np.load(folder / ARRAYS_FILE, allow_pickle=False) as arrays:
            result = cls(summary, *(arrays[name] for name in ARRAYS))
            if result.mse.shape[:2] != (len(result.names), len(result.timesteps)):
                raise ValueError(f"mse is {result.mse.shape}")
            return result


def mean_and_error(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """T M to (T,) means and their standard errors, which one image alone has not: NaN."""
    wide = values.astype(np.float64)
    images = wide.shape[1]
    error = wide.std(axis=1, ddof=1) / math.sqrt(images) if images > 1 else np.full(len(wide), np.nan)
    return wide.mean(axis=1), error
