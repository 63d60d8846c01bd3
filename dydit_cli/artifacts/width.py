"""What `dydit profile --width-only` leaves: heads and channel groups at every timestep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dydit_cli import marks
from dydit_cli.artifacts.base import Folder
from dydit_cli.diffusion.process import process_of
from dydit_cli.files import atomic_folder, write_json
from dydit_cli.model.families import config_from_dict

TABLE_FILE, MASKS_FILE = "width.csv", "width.npz"


@dataclass(frozen=True)
class WidthProfile(Folder):
    """`summary` is width.json; `table` has a row for every timestep, the lowest first; heads and groups are T x L x H."""

    kind = "width"
    name = "a profile of heads and groups"
    made_by = "dydit profile CKPT --width-only --out DIR"
    mark = marks.WIDTH
    files = (mark, TABLE_FILE, MASKS_FILE)
    format = "dydit-width"

    summary: dict[str, Any]
    table: pd.DataFrame
    heads: NDArray[np.bool_]
    groups: NDArray[np.bool_]

    @property
    def phases(self) -> pd.DataFrame:
        """Means of the table over four equal phases of the schedule, the noisiest first; `timesteps` names each."""
        timeline = process_of(config_from_dict(self.summary["model"])).timeline
        phase, names = timeline.phase_of(self.table["timestep"].to_numpy()), timeline.phases()
        means = self.table.drop(columns="timestep").groupby(phase).mean()
        means.insert(0, "timesteps", [names[i] for i in means.index])
        return means.reset_index(drop=True)

    def write(self, folder: str | Path) -> None:
        """Writes width.json, width.csv and width.npz at once."""
        with atomic_folder(folder) as temporary:
            self.table.to_csv(temporary / TABLE_FILE, index=False)
            np.savez_compressed(temporary / MASKS_FILE, heads=self.heads, groups=self.groups)
            write_json(temporary / self.mark, self.summary)

    @classmethod
    def read(cls, path: str | Path) -> WidthProfile:
        folder = Path(path)
        summary = cls.read_summary(folder)
        with cls.reading(folder), np.load(folder / MASKS_FILE, allow_pickle=False) as arrays:
            return cls(summary, pd.read_csv(folder / TABLE_FILE), arrays["heads"], arrays["groups"])
