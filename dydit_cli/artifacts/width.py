"""What `dydit profile --width-only` leaves: heads and channel groups at every timestep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dydit_cli.files import atomic_folder, write_json

SUMMARY_FILE, TABLE_FILE, MASKS_FILE = "width.json", "width.csv", "width.npz"


@dataclass(frozen=True)
class WidthProfile:
    """`table` has a row for every timestep, 0 first; heads and groups are T x L x H."""

    summary: dict[str, Any]
    table: pd.DataFrame
    heads: NDArray[np.bool_]
    groups: NDArray[np.bool_]

    def write(self, folder: str | Path) -> None:
        """Writes width.json, width.csv and width.npz at once."""
        with atomic_folder(folder) as temporary:
            self.table.to_csv(temporary / TABLE_FILE, index=False)
            np.savez_compressed(temporary / MASKS_FILE, heads=self.heads, groups=self.groups)
            write_json(temporary / SUMMARY_FILE, self.summary)
